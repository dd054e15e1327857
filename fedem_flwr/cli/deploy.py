"""The command line's `fedem deploy`: networked processes on this machine, and each of their roles by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Networked processes: keys, a SuperLink with nodes on this machine, or one node or server by itself.",
    no_args_is_help=True,
)

Superlink = Annotated[str, typer.Option(help="the SuperLink, as host:port")]
Certs = Annotated[Path | None, typer.Option(help="folder made by `fedem deploy certs`")]
Insecure = Annotated[bool, typer.Option("--insecure", help="plain HTTP and unknown nodes: for trying things out")]
Folder = Annotated[Path, typer.Option("--dir", help="folder of the deployment")]
Individual = Annotated[
    bool, typer.Option("--allow-individual-uploads", help="let uploads of single users go up: their sums, their tables")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="only the result")]

DEPLOYMENT = Path("deployment")


@app.command()
def certs(
    out: Annotated[Path, typer.Option(help="folder that is made")] = Path("certs"),
    nodes: Annotated[int, typer.Option(min=0, help="key pairs for so many nodes")] = 2,
    host: Annotated[list[str] | None, typer.Option(help="name or address of the SuperLink; may be repeated")] = None,
    add: Annotated[bool, typer.Option("--add", help="add nodes to a folder that is there")] = False,
    rekey: Annotated[
        list[str] | None, typer.Option(help="make a new key for this node of a folder that is there; may be repeated")
    ] = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="sign the SuperLink's certificate anew, for --host or the old names")
    ] = False,
) -> None:
    """Make a CA, the SuperLink's certificate, keys of server and nodes, and the roster."""
    from fedem_flwr.cli import deployments as commands_deploy

    commands_deploy.certs(out, nodes, host or [], add=add, rekey=rekey or [], renew=renew)


@app.command()
def up(
    directory: Folder = DEPLOYMENT,
    dataset: Annotated[str | None, typer.Option(help="a known name, or a path; of a new deployment")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="of a new deployment; default: 2")] = None,
    protocol: Annotated[str | None, typer.Option(help="strict (default) or paper; of a new deployment")] = None,
    seed: Annotated[int | None, typer.Option(help="of the split; of a new deployment")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="folder with known data sets")] = None,
    host: Annotated[
        str | None, typer.Option(help="where the SuperLink of a new deployment listens; default: 127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="its port; 0: any that is free; default: 8000")
    ] = None,
    insecure: Insecure = False,
    allow_individual_uploads: Individual = False,
    quiet: Quiet = False,
) -> None:
    """Start a SuperLink and its nodes, which go on until `down`; what runs already is left alone."""
    from fedem_flwr.cli import deployments as commands_deploy

    commands_deploy.up(
        directory,
        {"dataset": dataset, "protocol": protocol, "data_dir": None if data_dir is None else str(data_dir)},
        nodes,
        seed,
        host,
        port,
        insecure=insecure,
        individual_uploads=allow_individual_uploads,
        quiet=quiet,
    )


@app.command()
def status(directory: Folder = DEPLOYMENT) -> None:
    """Show what runs, and what each process said last; exit code 1 if something does not run."""
    from fedem_flwr.cli import deployments as commands_deploy

    commands_deploy.status(directory)


@app.command()
def down(
    directory: Folder = DEPLOYMENT,
    remove: Annotated[
        bool, typer.Option("--remove", help="also delete its folder: keys, shards, private state")
    ] = False,
) -> None:
    """Stop what `up` started."""
    from fedem_flwr.cli import deployments as commands_deploy

    commands_deploy.down(directory, remove=remove)


@app.command()
def node(
    superlink: Superlink,
    shard: Annotated[Path, typer.Option(help="this node's data, made by `fedem data shard`")],
    state: Annotated[Path, typer.Option(help="folder for its private state, on a disk that stays")],
    certs: Certs = None,
    name: Annotated[str, typer.Option(help="which key of the certs folder is this node's")] = "node-0",
    insecure: Insecure = False,
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0: torch's own choice")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    smallest_sum: Annotated[
        int | None,
        typer.Option(min=1, help="fewest users whose sum goes up; default: 2, or 1 with --allow-individual-uploads"),
    ] = None,
    allow_individual_uploads: Individual = False,
    method: Annotated[
        list[str] | None,
        typer.Option(help="carry out this method only (as method.strategy or method.client name it); may be repeated"),
    ] = None,
    bound: Annotated[
        list[str] | None,
        typer.Option(
            help="refuse runs with a setting outside of SETTING=LEAST..MOST, such as local.epochs=..50; may be "
            "repeated. local.negatives=1.. holds unless it is given, or single users' uploads are allowed"
        ),
    ] = None,
    require_secret_draws: Annotated[
        bool, typer.Option("--require-secret-draws", help="refuse runs without privacy.secret_draws")
    ] = False,
    coarse_counts: Annotated[
        bool,
        typer.Option("--coarse-counts", help="say of each user only the most interactions of its group of N or more"),
    ] = False,
    fixed_groups: Annotated[
        bool,
        typer.Option("--fixed-groups", help="send sums over whole groups of N users or more that never change"),
    ] = False,
    keep_runs: Annotated[int, typer.Option(min=1, help="keep the private state of so many runs, the newest")] = 5,
    admission: Annotated[
        float, typer.Option(min=0, help="seconds to wait until the SuperLink admits this node")
    ] = 120.0,
    health: Annotated[
        Path | None,
        typer.Option(help="a file that is touched while this node works or has contact"),
    ] = None,
    max_memory: Annotated[
        int, typer.Option(min=0, help="MB that runs may take; default: half of what the machine or container has")
    ] = 0,
    max_epochs: Annotated[int, typer.Option(min=1, help="most local epochs that a run may ask for")] = 1000,
    max_seconds: Annotated[float, typer.Option(min=1, help="most seconds for one answer")] = 3600.0,
) -> None:
    """Run one node until it is stopped."""
    from fedem_flwr.cli import deployments as commands_deploy

    commands_deploy.node(
        superlink,
        shard,
        state,
        certs,
        name,
        insecure=insecure,
        threads=threads,
        device=device,
        policy={
            "smallest_sum": smallest_sum,
            "single_users": allow_individual_uploads,
            "methods": method or [],
            "bounds": bound or [],
            "secret_draws": require_secret_draws,
            "coarse_counts": coarse_counts,
            "fixed_groups": fixed_groups,
        },
        keep_runs=keep_runs,
        admission=admission,
        health=health,
        max_memory=max_memory,
        max_epochs=max_epochs,
        max_seconds=max_seconds,
    )


@app.command()
def server(
    run_dir: Annotated[Path, typer.Argument(help="a prepared run; `fedem run --runtime network` makes one")],
    superlink: Superlink,
    certs: Certs = None,
    secret: Annotated[Path | None, typer.Option(help="the superexec secret, where there are no certs")] = None,
    insecure: Insecure = False,
) -> None:
    """Carry out the rounds that are left of a run; `fedem run` and `fedem resume` start this."""
    from fedem_flwr.cli import deployments as commands_deploy

    commands_deploy.server(run_dir, superlink, certs, secret, insecure=insecure)
