"""`fedem bench`: how fast the program is beside plain ways to do the same, how that grows, whether it got slower."""
