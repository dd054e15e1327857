"""The command line's `fedem data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedem_flwr.cli.shared import DataDir, Dataset, Protocol, Quiet, Settings, text

app = typer.Typer(help="Data sets: what is known, what a file holds, downloads, shards.", no_args_is_help=True)


@app.command("list")
def data_list(data_dir: DataDir = None) -> None:
    """List the known data sets, and whether they are at hand."""
    from fedem_flwr.cli import data as commands_data

    commands_data.show_list(data_dir)


@app.command("info")
def data_info(
    dataset: Annotated[str, typer.Argument(help="a known name or a path")],
    data_dir: DataDir = None,
    settings: Settings = None,
) -> None:
    """Describe a data set: sizes, times, duplicates, what each protocol keeps."""
    from fedem_flwr.cli import data as commands_data
    from fedem_flwr.cli.options import options_tree

    options = options_tree({"data": {"dataset": dataset, "data_dir": text(data_dir)}}, settings or [])
    commands_data.show_info(options)


@app.command("fetch")
def data_fetch(
    dataset: Annotated[str, typer.Argument(help="a known name")],
    data_dir: Annotated[Path | None, typer.Option(help="where to put it; default: the cache")] = None,
    quiet: Quiet = False,
) -> None:
    """Download a known data set and check it."""
    from fedem_flwr.cli import data as commands_data

    commands_data.fetch(dataset, data_dir, quiet=quiet)


@app.command("shard")
def data_shard(
    dataset: Dataset = None,
    nodes: Annotated[int, typer.Option(min=1, help="how many shards, of consecutive users")] = 2,
    out: Annotated[Path, typer.Option(help="folder that is made: federation/ and shards/node-0 ...")] = Path("shards"),
    protocol: Protocol = None,
    seed: Annotated[int | None, typer.Option(help="of the split")] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    settings: Settings = None,
) -> None:
    """Split a data set and cut it into one shard a node, so that no node holds another's users."""
    from fedem_flwr.cli import data as commands_data
    from fedem_flwr.cli.options import options_tree

    data = {"dataset": dataset, "protocol": protocol, "data_dir": text(data_dir)}
    options = options_tree({"data": data, "run": {"seed": seed}}, settings or [])
    commands_data.shard(options, nodes, out, quiet=quiet)
