"""The configurations that come with fedem-flwr: datasets/, methods/ and whole experiments, as TOML.

A package only so that a wheel can hold them, as `fedem_flwr.presets`: see `fedem_flwr/rooms.py`.
"""
