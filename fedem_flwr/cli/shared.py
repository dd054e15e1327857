"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Dataset = Annotated[
    str | None, typer.Option(help="a known name (see `fedem data list`) or the path of a delimited file")
]
Protocol = Annotated[str | None, typer.Option(help="strict (default), paper (the literature's, leaky) or temporal")]
DataDir = Annotated[
    Path | None, typer.Option(help="folder with known data sets; default: $FEDEM_DATA, the cache, a download")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="a setting, as section.key=value; may be repeated")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the result")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="let a run that was not made here import code, write elsewhere, start processes as it says"
    ),
]


def text(path: Path | None) -> str | None:
    """A path as configurations have it; None where none was given."""
    return None if path is None else str(path)
