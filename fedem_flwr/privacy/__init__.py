"""What a curious server can make of the uploads: attacks on arrays as they cross, to be measured and reported."""
