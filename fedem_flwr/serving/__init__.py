"""The model that a finished run serves: to its users, to anybody with a history, and for a last look at it."""
