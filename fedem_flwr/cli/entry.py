"""The command line, `fedem`. Bad input gives one line and exit code 2, never a traceback."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedem_flwr.cli.around import ended_like_ctrl_c, warnings_shown
from fedem_flwr.cli.bench import bench
from fedem_flwr.cli.compare import compare
from fedem_flwr.cli.data_sets import app as data_app
from fedem_flwr.cli.deploy import app as deploy_app
from fedem_flwr.cli.shared import DataDir, Dataset, Protocol, Quiet, Settings, Trust, text
from fedem_flwr.cli.tune import tune
from fedem_flwr.errors import FedemError, InputError, Interrupted
from fedem_flwr.terminal import console, write_what_can_be_written
from fedem_flwr.version import __version__

app = typer.Typer(
    name="fedem",
    help="Federated recommendation, measured honestly: fedials, FedEM (elastic merging) and its comparison methods.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
app.add_typer(deploy_app, name="deploy")
app.command()(compare)
app.command()(bench)

_INTERRUPTED = 130  # exit code


@app.command()
def run(
    experiment: Annotated[str | None, typer.Argument(help="a TOML file, or a shipped experiment; options win")] = None,
    dataset: Dataset = None,
    method: Annotated[str | None, typer.Option(help="a preset of configs/methods")] = None,
    protocol: Protocol = None,
    runtime: Annotated[
        str | None, typer.Option(help="inprocess (default), ray (Flower's simulation) or network (real processes)")
    ] = None,
    users_per_node: Annotated[int | None, typer.Option(help="users that one Flower node hosts; 0: all")] = None,
    rounds: Annotated[int | None, typer.Option(help="rounds of training")] = None,
    seed: Annotated[int | None, typer.Option(help="of every draw, the split's included")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda")] = None,
    out: Annotated[Path | None, typer.Option(help="run directory; default: a new one under runs/")] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="another method, on the same split; may be repeated")
    ] = None,
    data_dir: DataDir = None,
    superlink: Annotated[str | None, typer.Option(help="host:port of a SuperLink that runs already; nodes too")] = None,
    federation: Annotated[
        Path | None, typer.Option(help="what is known of the nodes' data: federation/ of `fedem data shard`")
    ] = None,
    certs: Annotated[Path | None, typer.Option(help="the server's keys, of `fedem deploy certs`")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="network: plain HTTP, unknown nodes")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a run that --out holds")] = False,
    track: Annotated[str | None, typer.Option(help="also tell the run to a tracker: mlflow")] = None,
    quiet: Quiet = False,
    settings: Settings = None,
) -> None:
    """Train and evaluate a method; without arguments, on the embedded synthetic data."""
    from fedem_flwr.cli import run as commands
    from fedem_flwr.cli.options import options_tree

    options = options_tree(
        {
            "data": {"dataset": dataset, "protocol": protocol, "data_dir": text(data_dir)},
            "method": {"name": method},
            "run": {
                "runtime": runtime or ("network" if superlink else None),
                "users_per_node": users_per_node,
                "rounds": rounds,
                "seed": seed,
                "device": device,
            },
            "network": {"superlink": superlink, "certs": text(certs), "insecure": insecure or None},
            "tracking": {"to": track},
        },
        settings or [],
    )
    commands.run(experiment, options, out, against or [], overwrite=overwrite, quiet=quiet, federation=federation)


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(help="the directory of an interrupted run")],
    back_to: Annotated[
        int | None,
        typer.Option(min=1, metavar="ROUND", help="go on from an earlier checkpoint than the newest, and forget later"),
    ] = None,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Continue an interrupted run to the same final result."""
    from fedem_flwr.cli import run as commands

    commands.resume(run_dir, back_to, quiet=quiet, trusted=trust)


app.command()(tune)


@app.command()
def audit(
    dataset: Dataset = None,
    rounds: Annotated[int, typer.Option(min=1, help="rounds of each trained row")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="of every draw, the split's included")] = 0,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(help="also write the table there, as audit.md and audit.json")] = None,
    quiet: Quiet = False,
    settings: Settings = None,
) -> None:
    """Measure the leak of the literature's protocol on a data set: the same methods under both protocols."""
    from fedem_flwr.cli import audit as commands
    from fedem_flwr.cli.options import options_tree

    options = options_tree(
        {"data": {"dataset": dataset, "data_dir": text(data_dir)}, "run": {"rounds": rounds, "seed": seed}},
        settings or [],
    )
    commands.audit(options, out, quiet=quiet)


@app.command()
def recommend(
    run_dir: Annotated[Path, typer.Argument(help="the directory of a finished run")],
    user: Annotated[str | None, typer.Option(help="a user of the run, by the id in the data set")] = None,
    history: Annotated[
        str | None,
        typer.Option(
            help="item ids of anybody, oldest first: separated by commas, or a file (columns item, or user,item)"
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="how many items")] = 10,
    exclude_seen: Annotated[
        bool,
        typer.Option(
            "--exclude-seen/--include-seen", " /--no-exclude-seen", help="leave out what the user has met already"
        ),
    ] = True,
    names: Annotated[Path | None, typer.Option(help="a file with item ids and names, shown beside the ids")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table")] = False,
    settings: Settings = None,
    trust: Trust = False,
) -> None:
    """Recommend items to a user of the run, or to anybody whose history is given."""
    from fedem_flwr.cli import recommend as commands_recommend

    commands_recommend.recommend(
        run_dir,
        user,
        history,
        top,
        exclude_seen=exclude_seen,
        names=names,
        as_json=as_json,
        trusted=trust,
        settings=settings or [],
    )


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """`fedem` finds what it needs when a command runs, so that help is instant."""


def _refuse_empty(arguments: Sequence[str]) -> None:
    """An option without a value, as of a variable that is not set, is not the same as no option: a path would be `.`.

    Raises:
        InputError: there is one.
    """
    for at, given in enumerate(arguments):
        if not given.strip() or re.fullmatch("--[a-z-]+=", given):
            name = given.rstrip("=") or (arguments[at - 1] if at and arguments[at - 1][:1] == "-" else "an argument")
            raise InputError(f"{name} is empty: give it a value, or leave it out")


def _usage(error: click.ClickException) -> str:
    """What was typed wrong; both Typer and Click may have added what was meant, and one of them is enough."""
    words = error.format_message()
    first, *meant = re.split(r" (?=\(?Did you mean)", words)
    words = " ".join([first, *meant[:1]])
    context = getattr(error, "ctx", None)
    return f"{words} (see {context.command_path if context else 'fedem'} --help)"


@cache
def command() -> click.Command:
    """All of the command line; made once a process, since each option's type is evaluated for it."""
    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run the command line and turn failures into one line.

    FEDEM_LOG=DEBUG shows before it where an error comes from that was not foreseen, or that a foreseen one was made of;
    FEDEM_TRACEBACK=1 lets the former through, for a debugger.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    errors = console(stderr=True, soft_wrap=True)

    def stop(message: str, code: int, error: Exception | None = None) -> Any:
        if error is not None and os.environ.get("FEDEM_LOG", "").upper() == "DEBUG":
            errors.print("".join(traceback.format_exception(error)).replace("\n", "\n  "))
        errors.print(f"fedem: {' '.join(message.split())}")
        sys.exit(code)

    try:
        write_what_can_be_written()
        _refuse_empty(sys.argv[1:] if arguments is None else arguments)
        with ended_like_ctrl_c(), warnings_shown():
            code = command().main(args=arguments, prog_name="fedem", standalone_mode=False)
    except InputError as error:
        stop(str(error), 2, error if error.__cause__ else None)
    except Interrupted as error:
        stop(str(error), _INTERRUPTED)
    except FedemError as error:
        stop(str(error), 1, error if error.__cause__ else None)
    except click.exceptions.NoArgsIsHelpError:
        sys.exit(2)  # the help was shown
    except click.ClickException as error:
        stop(_usage(error), 2)
    except (KeyboardInterrupt, click.exceptions.Abort):
        stop("interrupted", _INTERRUPTED)
    except OSError as error:
        stop(f"{error.filename or 'a file'}: {error.strerror or error}", 1, error)
    except Exception as error:  # not foreseen: still one line, and the details for whoever asks
        if os.environ.get("FEDEM_TRACEBACK"):
            raise
        stop(f"unexpected {type(error).__name__}: {error} (FEDEM_LOG=DEBUG shows where; please report it)", 1, error)
    else:
        if code == _INTERRUPTED:  # what Typer makes of an interrupt, without a word
            stop("interrupted", code)
        sys.exit(code if isinstance(code, int) else 0)
