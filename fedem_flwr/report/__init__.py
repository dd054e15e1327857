"""What a person sees of a run: progress, the run directory, tables, plots and the HTML report.

Everything here reads and writes plain files and JSON-like dictionaries; nothing knows how a run was executed.
"""

from __future__ import annotations

from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.report.run_path import default_run_path

__all__ = ["RunDirectory", "default_run_path"]
