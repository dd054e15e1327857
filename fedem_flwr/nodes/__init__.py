"""A node's own side: its users' data and their private state between rounds."""
