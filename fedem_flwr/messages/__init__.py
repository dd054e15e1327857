"""What crosses between server and nodes: arrays in messages, and how the two sides meet."""
