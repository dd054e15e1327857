"""The command line, `fedem`: one file a command group."""

from __future__ import annotations

from fedem_flwr.cli.entry import app, main

__all__ = ["app", "main"]
