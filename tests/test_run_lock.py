"""One writer at a time in a run's directory: real processes, killed ones, and what they hand on."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from dying import fedem
from worlds import TINY_OPTIONS

import fedem_flwr
from fedem_flwr.errors import InputError
from fedem_flwr.locking import RUN_LOCK, Lock, lock_run, run_of_parent
from fedem_flwr.network.key_folder import make_certificates
from fedem_flwr.network.link import Address
from fedem_flwr.network.server import ServerOptions, serve
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.report.run_path import new_run_path
from fedem_flwr.server_app import _prepared

pytestmark = pytest.mark.usefixtures("undrawn")

HOLD = (
    "import sys, time; from fedem_flwr.locking import {0} as take; x = take(__import__('pathlib').Path(sys.argv[1]))\n"
)
HOLD += "print('held', flush=True); time.sleep(600)"
RUN = [sys.executable, "-m", "fedem_flwr.cli", "run", *TINY_OPTIONS, "--method=fedmf", "--quiet"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, no_pictures: None) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert (
        fedem("run", *TINY_OPTIONS, "--rounds=2", "--method=fedmf", "--against=fedials", "--quiet", f"--out={out}") == 0
    )
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@contextmanager
def holding(folder: Path, how: str = "lock_run") -> Iterator[subprocess.Popen[str]]:
    """A process that holds a folder until it is killed, with a signal that nobody can handle."""
    command = [sys.executable, "-c", HOLD.format(how), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def wait_for(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.name != RUN_LOCK}


def test_who_writes_into_a_run_takes_its_lock(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line, Python, the network's server, Flower's app; what only reads does not need it."""
    before = contents(run)
    with holding(run) as process:
        for options in (
            ["resume", str(run)],
            *(["run", *TINY_OPTIONS, f"--out={run}", *x] for x in ([], ["--overwrite"])),
        ):
            assert fedem(*options, "--quiet") == 2
            said = capsys.readouterr().err.strip()
            assert f"process {process.pid} on {os.uname().nodename}, since 20" in said and "\n" not in said
            assert "wait until it has ended" in said and ("--out" in said) == (options[0] == "run")
        with pytest.raises(InputError, match="in use"):
            fedem_flwr.resume(run)
        with pytest.raises(InputError, match="in use"):
            fedem_flwr.run(out=run, overwrite=True)
        with pytest.raises(InputError, match="in use"):
            serve(RunDirectory(run), ServerOptions(Address("127.0.0.1:1"), b""))
        with pytest.raises(InputError, match="in use"), ExitStack() as held:
            _prepared({"run-dir": str(run)}, "ray", held)
        assert fedem("recommend", str(run), "--user=0") == 0
        assert fedem_flwr.load(run).metrics is not None
        assert process.poll() is None and contents(run) == before
    assert fedem("resume", str(run), "--quiet") == 0  # at once: nothing is to be removed
    assert not list(run.rglob(RUN_LOCK))


def test_the_runs_beside_are_held_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside = run / "against" / "fedials"
    with holding(beside):
        for command in (["resume", str(run)], ["run", f"--out={run}", "--overwrite"]):
            assert fedem(*command, "--quiet") == 2
            assert f"{beside} is in use" in capsys.readouterr().err
    assert fedem("resume", str(beside), "--quiet") == 0


def test_of_two_starts_at_once_one_wins_and_killed_goes_on_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, rounds = tmp_path / "run", 20
    command = [
        *RUN,
        f"--rounds={rounds}",
        f"--out={out}",
        "--set=local.epochs=30",
        "--set=run.engine=torch",
        "--overwrite",
    ]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    wait_for((out / "metrics.jsonl").exists)
    pid = json.loads((out / RUN_LOCK).read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)  # so that it is not done before the other has come
    winner, loser = sorted(both, key=lambda process: process.pid != pid)
    said = loser.communicate()[1].strip()
    assert loser.returncode == 2 and "\n" not in said
    assert said.startswith(f"fedem: the run directory {out} is in use by process {pid} on ")
    for command in (["resume", str(out)], ["run", *TINY_OPTIONS, "--overwrite", f"--out={out}"]):
        assert fedem(*command, "--quiet") == 2
    assert capsys.readouterr().err.count(f"in use by process {pid}") == 2
    assert winner.poll() is None
    winner.kill()
    winner.communicate()
    assert (out / RUN_LOCK).exists()  # it stays, and means nothing
    assert fedem("resume", str(out), "--quiet") == 0
    lines = [json.loads(line)["round"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, rounds + 1))


def test_a_lock_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    """Taken, given back and deleted over and over by four: nobody is inside together with another."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom fedem_flwr.errors import InputError\n"
        "from fedem_flwr.locking import lock_run\nfolder, inside, done = Path(sys.argv[1]), 0, 0\n"
        "mark = Path(sys.argv[2])\n"
        "while done < 60:\n"
        "    try:\n        lock = lock_run(folder)\n    except InputError:\n        continue\n"
        "    with lock:\n        mark.touch(exist_ok=False); mark.unlink(); done += 1\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run"), str(tmp_path / "mark")]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4


def test_what_is_handed_on_is_held_until_the_last_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that is killed does not free a run in which its server still writes."""
    with lock_run(tmp_path) as lock:
        environment, files = lock.hand_on()
        command = [sys.executable, "-c", HOLD.format("run_of_parent"), str(tmp_path)]
        child = subprocess.Popen(
            command, env={**os.environ, **environment}, pass_fds=files, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        told = (tmp_path / RUN_LOCK).read_text()
        monkeypatch.setattr(Path, "unlink", lambda *a, **k: pytest.fail("it died"))  # a killed one deletes nothing
        os.close(files[0])
        lock._handle = -1
    monkeypatch.undo()
    gone = json.loads(told) | {"pid": 2**22 - 1}
    (tmp_path / RUN_LOCK).write_text(json.dumps(gone))
    monkeypatch.setattr("fedem_flwr.locking._PATIENCE", 0.2)
    with pytest.raises(InputError, match="in use"):
        lock_run(tmp_path)
    monkeypatch.undo()
    child.send_signal(signal.SIGKILL)
    with child, lock_run(tmp_path):  # waited for: who started it is dead
        pass
    assert not (tmp_path / RUN_LOCK).exists()


def test_a_number_that_is_no_lock_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDEM_LOCK", "0")
    with run_of_parent(tmp_path), pytest.raises(InputError, match="in use"):
        lock_run(tmp_path)


def test_a_link_in_the_lock_s_place_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (tmp_path / RUN_LOCK).symlink_to(other)
    with pytest.raises(InputError, match="symbolic link"):
        lock_run(tmp_path)
    assert not other.exists()


def test_without_locks_it_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), lock_run(tmp_path), lock_run(tmp_path):
        assert "keeps no locks" in caplog.text


def test_two_starts_of_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    paths = [new_run_path("a/b.csv", "fedem", "strict", root=tmp_path / "runs") for _ in range(3)]
    assert len(set(paths)) == 3 and all(path.is_dir() for path in paths)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--out"):
        new_run_path("a", "b", "c", root=tmp_path / "file")


def test_folders_that_are_replaced_as_a_whole_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys and shards of another start are not moved away by a second one."""
    with holding(tmp_path / "certs", "lock_beside"), pytest.raises(InputError, match="in use"):
        make_certificates(tmp_path / "certs", 1)
    make_certificates(tmp_path / "certs", 1)
    with Lock.take(tmp_path / "shards" / "shard.lock", "it"):
        assert fedem("data", "shard", f"--out={tmp_path / 'shards'}", "--quiet", *TINY_OPTIONS[:3]) == 2
        assert "in use" in capsys.readouterr().err
    assert fedem("data", "shard", f"--out={tmp_path / 'shards'}", "--quiet", *TINY_OPTIONS[:3]) == 0
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["federation", "shards"]
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".lock")] == []
