"""A run's directory from a stranger: it is data, and does nothing but what somebody has said that it may."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from strangers_folder import changed_array, configured, linked, pickled, pickled_checkpoint, with_code
from worlds import carry_out, config_of

import fedem_flwr as fedem
from fedem_flwr.cli import main
from fedem_flwr.client_app import FromContext
from fedem_flwr.config import load_resolved
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import write_atomically
from fedem_flwr.network.link import Address
from fedem_flwr.network.processes import Child
from fedem_flwr.network.server import ServerOptions, serve
from fedem_flwr.network.trust import check_private
from fedem_flwr.nodes.host import RUN_RECORD
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime import simulation
from fedem_flwr.runtime.consent import write_config
from fedem_flwr.runtime.inprocess import task_identity

pytestmark = pytest.mark.attacks
USER = ("--user", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stranger") / "run"
    carry_out(out, config_of("fedmf", run={"rounds": 2, "checkpoint_every": 1}))
    return out


@pytest.fixture(autouse=True)
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This account has a home of its own, and has made no run."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "account"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What is made where an attack has its way."""
    return tmp_path / "taken-over"


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code, and the last line of standard error; a refusal is one line."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.strip().splitlines() or [""]
    code = int(stopped.value.code or 0)
    assert code == 0 or len(lines) == 1, lines
    return code, lines[-1]


# --- what it names


ENTRANCES: dict[str, Callable[[Path], object]] = {
    "resume": fedem.resume,
    "load": lambda run: fedem.load(run).config,
    "recommend": lambda run: fedem.load(run).recommender(),
    "server": lambda run: serve(RunDirectory(run), ServerOptions(Address("127.0.0.1:9"), b"secret")),
    "supernode": lambda run: FromContext().of(*of_a_server(run)),
}


def of_a_server(run: Path) -> tuple[Message, Context]:
    record = RecordDict({RUN_RECORD: ConfigRecord({"run-dir": str(run)})})
    with task_identity():
        message = Message(record, 2, "query")
    return message, Context(1, 2, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {})


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_code_that_it_names_is_not_imported(entrance: str, run: Path, marker: Path) -> None:
    with_code(run, marker)
    with pytest.raises(InputError, match=r"names code to import \(method.strategy = 'os:system'\)"):
        ENTRANCES[entrance](run)
    assert not marker.exists()


def test_until_somebody_says_so(run: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_code(run, marker)
    for arguments in (("resume", run), ("recommend", run, *USER)):
        code, line = command(capsys, *arguments)
        assert code == 2 and "--trust" in line and not marker.exists()
    with pytest.raises(Exception, match=r"int|strategy|'"):
        fedem.load(run, trust=True).recommender()  # a number is no strategy
    assert marker.is_dir(), "the attack is a real one"


def test_an_import_is_enough(run: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strangers_module.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    for key in ("strategy", "client"):
        configured(run, method={"strategy": "fedmf", key: "strangers_module:Method"})
        with pytest.raises(InputError, match=f"method.{key} = 'strangers_module:Method'"):
            fedem.load(run).recommender()
    assert not marker.exists()


@pytest.mark.usefixtures("undrawn")
def test_what_this_account_has_made_goes_on_without_a_word(run: Path, tmp_path: Path) -> None:
    config = load_resolved(run / "config.toml")
    mine = config.changed("method", strategy="fedem_flwr.methods.fedmf:FedMF").changed("run", rounds=2)
    write_config(RunDirectory(run), mine.changed("evaluation", cache_dir=str(tmp_path / "cache")))
    assert (run / "config.seal").stat().st_mode & 0o777 == 0o600
    assert fedem.load(run).recommender().method == "fedmf"
    assert fedem.resume(run).metrics.index.tolist() == [1, 2]
    seal = (run / "config.seal").read_bytes()
    configured(run, method={"strategy": "fedem_flwr.methods.fedem:FedEM"})
    with pytest.raises(InputError, match="this account has not made"):  # the seal is of what it said then
        fedem.load(run).recommender()
    write_config(RunDirectory(run), mine)
    assert (run / "config.seal").read_bytes() != seal
    (tmp_path / "account" / "fedem-flwr" / "runs.key").write_bytes(bytes(16))  # of another account
    with pytest.raises(InputError, match="this account has not made"):
        fedem.load(run).recommender()


def test_a_cache_elsewhere_is_not_written_to(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configured(run, evaluation={"cache_dir": str(tmp_path / "victim")})
    code, line = command(capsys, "resume", run)
    assert code == 2 and "names a folder to write to (evaluation.cache_dir = '" in line
    assert command(capsys, "recommend", run, *USER)[0] == 0 and not (tmp_path / "victim").exists()


@pytest.mark.parametrize("words", ["starts processes", "shows keys to the SuperLink", "joins the Ray cluster"])
def test_no_process_is_started_and_no_key_shown(
    words: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Child, "start", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setattr(simulation, "join", lambda *_: pytest.fail("a cluster was joined"))
    place = "192.0.2.9:8000" if "the" in words else ""
    runtime = {"runtime": "ray", "ray_address": place} if "Ray" in words else {"runtime": "network"}
    keys = {"superlink": place, "certs": "/home/victim/certs"} if "keys" in words else {}
    configured(run, run=runtime, network=keys)
    code, line = command(capsys, "resume", run)
    assert code == 2 and words in line and place in line


# --- what lies in it


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "network/logs/server.log", "checkpoint", "split", "checkpoint/latest.json", "against/x"]
)
def test_nothing_is_written_or_read_through_a_link(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = tmp_path / "victim"
    folder = name in ("checkpoint", "split", "against/x")
    if folder:
        shutil.copytree(run / name if (run / name).exists() else run, victim)
    else:
        victim.write_text("precious")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (victim, *victim.rglob("*")))
    linked(run, name, victim)
    for arguments in (("resume", run), ("recommend", run, *USER), ("run", "--out", run, "--overwrite")):
        code, line = command(capsys, *arguments)
        assert code == 2 and f"{run / name} is a link that leads out of {run}" in line
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (victim, *victim.rglob("*"))) == before


def test_a_link_that_comes_later_is_not_followed_either(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    directory = RunDirectory(run).open()
    for name in ("metrics.jsonl", "config.toml", f".config.toml.{os.getpid()}.tmp"):
        linked(run, name, victim)
    with pytest.raises(FedemError, match="it is a symbolic link"):
        directory.append_metrics({"round": 3})
    directory.write_config("mine = 1\n")
    log = run / "network" / "logs" / "server.log"
    linked(run, "network/logs/server.log", victim)
    with pytest.raises(OSError, match="it is a symbolic link"):
        Child("server", ["true"], log).start()
    assert victim.read_text() == "precious"
    assert (run / "config.toml").read_text() == "mine = 1\n" and not (run / "config.toml").is_symlink()


def test_a_link_in_a_files_place_is_replaced_and_an_old_mode_kept(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("precious")
    path.symlink_to(victim)
    write_atomically(path, "new")
    assert victim.read_text() == "precious" and path.read_text() == "new" and not path.is_symlink()
    path.chmod(0o600)
    write_atomically(path, "newer")
    assert path.stat().st_mode & 0o777 == 0o600 and sorted(tmp_path.iterdir()) == [path, victim]


def test_nobody_waits_for_a_pipe_or_runs_in_a_circle(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "circle").symlink_to("circle")
    assert command(capsys, "resume", run) == (
        2,
        f"fedem: {run}/circle is a link that leads out of {run}: put what it means in its place",
    )
    (run / "circle").unlink()
    (run / "config.toml").unlink()
    os.mkfifo(run / "config.toml")
    code, line = command(capsys, "recommend", run, *USER)
    assert code == 2 and "is a pipe or a device" in line


def test_a_file_that_goes_while_it_is_looked_at_is_none(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that goes on, say."""
    monkeypatch.setattr(os, "walk", lambda folder: [(str(folder), [], [".gone.tmp"])])
    assert RunDirectory(run).open().path == run


@pytest.mark.parametrize("name", ["train_items.npy", "item_ids.npy", "user_ids.npy", "checkpoint"])
def test_arrays_are_not_unpickled(name: str, run: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "checkpoint":
        pickled_checkpoint(run, marker)
    else:
        pickled(run, name, marker)
    for arguments in (("resume", run), ("recommend", run, *USER)):
        code, line = command(capsys, *arguments)
        assert (code, "damaged" in line) == (1 if name == "checkpoint" else 2, True)
    assert not marker.exists()


WRONG: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {
    "no such item": ("train_items.npy", lambda x: np.where(np.arange(len(x)) == 3, 10**6, x)),
    "an item before the first": ("test.npy", lambda x: np.where(np.arange(len(x)) == 3, -1, x)),
    "offsets that go back": ("train_offsets.npy", lambda x: np.r_[x[0], x[2], x[1], x[3:]]),
    "codes that are no numbers": ("validation.npy", lambda x: x.astype("U4")),
    "ids that are no texts": ("item_ids.npy", lambda x: np.arange(len(x))),
    "no shape": ("train_offsets.npy", lambda x: np.int64(3)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_values_that_no_split_has(wrong: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed_array(run, *WRONG[wrong])
    for arguments in (("resume", run), ("recommend", run, *USER)):
        code, line = command(capsys, *arguments)
        assert code == 2 and f"damaged split in {run / 'split'}" in line


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("method", "name", "../../victim"), ("method", "name", "/victim"), ("run", "rounds", "../3"), ("method", "a", 1)],
)
def test_names_are_no_paths(
    section: str, key: str, value: object, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configured(run, **{section: {key: value}})
    code, line = command(capsys, "resume", run)
    assert code == 2 and f"{section}.{key}" in line


def test_a_checkpoint_names_no_path(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoint" / "latest.json").write_text('{"round": "../../victim", "pending": null, "failures": []}')
    for arguments in (("resume", run), ("recommend", run, *USER)):
        code, line = command(capsys, *arguments)
        assert code == 2 and "latest.json is damaged" in line


# --- what a message advises


def test_a_command_that_is_advised_does_what_it_says(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`certs = "$(...)"`: whoever copies the remedy runs that remedy alone."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / f"$(mkdir '{marker.name}')"
    folder.mkdir()
    key = folder / "server.key"
    key.touch(0o644)
    with pytest.raises(InputError, match="chmod 600") as refused:
        check_private(key)
    subprocess.run(["sh", "-c", "chmod" + str(refused.value).partition("chmod")[2]], check=True)
    assert key.stat().st_mode & 0o777 == 0o600 and not marker.exists()
    RunDirectory(folder).write_config("")
    _, line = command(capsys, "run", "--out", folder)
    advised = line.partition("`")[2].partition("`, or")[0]
    assert shlex.split(advised) == ["fedem", "resume", str(folder)]
