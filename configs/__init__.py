"""The configurations that come with fedem-flwr: datasets/, methods/ and whole experiments, as TOML.

A package only so that an installed copy finds them too: ``importlib.resources.files("configs")``.
"""
