"""`python -m fedem_flwr.cli`."""

from __future__ import annotations

from fedem_flwr.cli.entry import main

main()
