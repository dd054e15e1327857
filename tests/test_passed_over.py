"""Nothing that is given is passed over in silence: options of another runtime, empty values, paths in files, help."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from worlds import TINY_OPTIONS

from fedem_flwr.cli import app, main
from fedem_flwr.cli.options import experiment_tree, options_tree

pytestmark = pytest.mark.usefixtures("undrawn")
QUICK = [*TINY_OPTIONS, "--rounds=1", "--method=fedmf", "--quiet"]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 2) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        screen = capsys.readouterr()
        assert (stopped.value.code or 0) == code, screen.err
        return screen.err.strip() if code else screen.out

    return run


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--certs=nope"], "--certs"),
        (["--insecure"], "--insecure"),
        (["--set=network.database=true"], "network.database"),
        (["--set=network.join_timeout=5", "--runtime=ray"], "network.join_timeout"),
        (["--data-dir=nope"], "nope does not exist"),
    ],
)
def test_what_the_runtime_has_no_use_for(said, options: list[str], word: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    error = said("run", *QUICK, *options, "--out=run")
    assert word in error and "\n" not in error
    assert not list(tmp_path.iterdir())


def test_an_audit_refuses_what_it_would_not_do(said) -> None:  # type: ignore[no-untyped-def]
    assert "method.name" in said("audit", "--set=method.name=fedem")
    assert "data.protocol" in said("audit", "--set=data.protocol=strict")
    assert "nope does not exist" in said("data", "list", "--data-dir=nope")


@pytest.mark.parametrize(
    "given", [["--out="], ["--out", ""], ["--dataset="], ["--against", ""], [""], ["--method", " "]]
)
def test_an_empty_value_is_no_value(said, given: list[str], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "is empty" in said("run", *given, *QUICK)
    assert not list(tmp_path.iterdir())


def test_an_empty_list_of_methods(said, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "e.toml").write_text("methods = []\n")
    assert "methods = [] names no method" in said("run", "e.toml", *QUICK)
    assert not (tmp_path / "runs").exists()


def test_paths_in_a_file_are_relative_to_it(said, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "ratings.csv").write_text("".join(f"{u},{(u + 3 * i) % 31}\n" for u in range(12) for i in range(12)))
    (folder / "it.toml").write_text(
        "methods = ['fedmf']\n[data]\ndataset = 'ratings.csv'\ndata_dir = 'sets'\n[network]\ncerts = 'certs'\n"
        "[evaluation]\ncache_dir = '~/cache'\n[variants.fedmf.data]\ndataset = '../other.csv'\n"
    )
    tree, _ = experiment_tree("experiment/it.toml")
    assert tree["data"] == {"dataset": "experiment/ratings.csv", "data_dir": str(folder / "sets")}
    assert tree["network"] == {"certs": str(folder / "certs")}
    assert tree["evaluation"] == {"cache_dir": str(Path("~/cache").expanduser())}
    assert tree["variants"]["fedmf"]["data"]["dataset"] == "experiment/../other.csv"
    (folder / "a.toml").write_text("[data]\ndataset = 'ratings.csv'\n")
    said("run", "experiment/a.toml", *QUICK[3:], "--out=run", code=0)
    (folder / "grid.toml").write_text("datasets = ['ratings.csv', 'ml-100k']\n")
    assert experiment_tree("experiment/grid.toml")[0] == {"datasets": ["experiment/ratings.csv", "ml-100k"]}
    for name in ("ml-100k", "synthetic", "ml-100"):  # names, known or not
        (folder / "n.toml").write_text(f"[data]\ndataset = '{name}'\n")
        assert experiment_tree("experiment/n.toml")[0] == {"data": {"dataset": name}}


def test_folders_in_options_are_relative_to_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And said in full, so that a run can be resumed from elsewhere."""
    monkeypatch.chdir(tmp_path)
    tree = options_tree({"data": {"dataset": "a.csv"}, "network": {"certs": "keys"}}, ["evaluation.cache_dir=c"])
    assert tree["data"] == {"dataset": "a.csv"} and tree["network"] == {"certs": str(tmp_path / "keys")}
    assert tree["evaluation"] == {"cache_dir": str(tmp_path / "c")}


def test_what_was_meant_is_said_once(said) -> None:  # type: ignore[no-untyped-def]
    for command in (["rum"], ["deploy", "nod"], ["run", "--rouns=3"], ["data", "inf"]):
        error = said(*command)
        assert error.count("id you mean") == 1 and "\n" not in error
    assert error.endswith("(see fedem data --help)")


def commands(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *path, name)


def test_help_is_complete(said) -> None:  # type: ignore[no-untyped-def]
    """Everywhere: -h, a word on each option, and that it may be repeated where it may."""
    for path, command in commands(typer.main.get_command(app)):
        assert said(*path, "-h", code=0) == said(*path, "--help", code=0)
        for parameter in command.params:
            if isinstance(parameter, click.Option) or parameter.param_type_name == "option":
                words = getattr(parameter, "help", "") or ""
                assert words, (path, parameter.name)
                assert ("may be repeated" in words) == bool(parameter.multiple), (path, parameter.name)  # type: ignore[attr-defined]


def test_an_interrupt_names_the_run(said, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """And nothing to go on with where there is no run."""

    def interrupt(*_: object, **__: object) -> None:
        signal.raise_signal(numbers.pop())

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    monkeypatch.setattr("fedem_flwr.experiment.flow.carry_out_rounds", interrupt)
    assert said("run", *QUICK, "--out=a b", code=130) == "fedem: interrupted; continue with `fedem resume 'a b'`"
    assert said("resume", "a b", "--quiet", code=130) == "fedem: interrupted; continue with `fedem resume 'a b'`"
    monkeypatch.setattr("fedem_flwr.cli.data.show_list", interrupt)
    assert said("data", "list", code=130) == "fedem: interrupted"
