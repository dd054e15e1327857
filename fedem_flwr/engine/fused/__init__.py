"""A client's local round in compiled functions: no interpreter, no allocation, samples in the vector lanes."""
