"""`fedem run --runtime network`: real processes give what one process gives, and nothing of them is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_run import assert_same_results
from worlds import TINY_OPTIONS, USERS, carry_out, config_of, done, prepare

from fedem_flwr.cli import main
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.network.processes import FEDEM

pytestmark = pytest.mark.network
TOGETHER = 120.0  # seconds that anything here may take
ALLOW = "--set=privacy.individual_uploads=true"  # for fedem, which uploads tables of single users


def left_of(folder: Path) -> list[int]:
    """Processes whose command line names a folder, or that have a file of it open; this one left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            named = [os.fsdecode((entry / "cmdline").read_bytes()), *map(os.readlink, (entry / "fd").iterdir())]
            if int(entry.name) != os.getpid() and any(str(folder) in each for each in named):
                found.append(int(entry.name))
    return found


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TOGETHER
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def fedem(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("method", ["fedem", "fedials"])
def test_the_network_equals_one_process(method: str, tmp_path: Path) -> None:
    each = {"users_per_node": USERS // 2}
    allowed = {"individual_uploads": method == "fedem"}
    here = carry_out(tmp_path / "here", config_of(method, run=each))
    there = carry_out(tmp_path / "there", config_of(method, run={**each, "runtime": "network"}, privacy=allowed))
    assert there.run.nodes == 2 and there.outcome.failures == []
    assert there.outcome.caveats == here.outcome.caveats
    assert_same_results(here, there)
    assert left_of(tmp_path) == []


def test_a_stock_strategy_over_the_network(tmp_path: Path) -> None:
    """Flower's own strategies know nothing of introductions: the loop sees to them."""
    stock = {"method": {"strategy": "flwr.FedAvg", "client": "table"}}
    each = {"users_per_node": USERS // 2, "rounds": 2}
    here = carry_out(tmp_path / "here", config_of("fedmf", **stock, run=each))
    run = prepare(tmp_path / "there", config_of("fedmf", **stock, run={**each, "runtime": "network"}))
    there = done(run, carry_out_rounds(run, lambda _: None))
    for name in here.server:
        np.testing.assert_allclose(there.server[name], here.server[name], atol=1e-5)
    assert there.outcome.failures == []


def options(out: Path) -> list[str]:
    some = [*TINY_OPTIONS, ALLOW, "--method", "fedem", "--rounds", "6", "--set=run.checkpoint_every=2"]
    return ["run", "--runtime", "network", "--out", str(out), "--quiet", *some]


def started(out: Path) -> subprocess.Popen[bytes]:
    """With processes that are really started, so that the kernel tells them when this one has died."""
    command = [*FEDEM, *options(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def rounds_of(out: Path) -> int:
    with suppress(OSError):
        return (out / "metrics.jsonl").read_text().count("\n")
    return 0


def comparable(path: Path) -> dict[str, Any]:
    summary = json.loads((path / "summary.json").read_text())
    return {"metrics": summary["metrics"], "rounds": summary["rounds"], "failures": summary["failures"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nobody interrupts."""
    out = tmp_path_factory.mktemp("uninterrupted") / "whole"
    assert fedem(*options(out)) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])  # SIGTERM does as SIGINT: test_passed_over
def test_an_interrupted_run_leaves_nothing_and_goes_on(number: int, whole: Path, tmp_path: Path) -> None:
    """Ctrl-C says so in one line; after SIGKILL the kernel tells the children."""
    cut = tmp_path / "cut"
    process = started(cut)
    wait_for(lambda: rounds_of(cut) >= 3 or process.poll() is not None)
    process.send_signal(number)
    _, error = process.communicate(timeout=TOGETHER)
    wait_for(lambda: left_of(cut) == [])
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert error.decode().strip().endswith(f"interrupted; continue with `fedem resume {cut}`")
        assert len(error.decode().strip().splitlines()) == 1
    assert not (cut / "summary.json").exists()
    assert fedem("resume", str(cut), "--quiet") == 0
    assert comparable(cut) == comparable(whole)
    assert left_of(tmp_path) == []


def test_recommendations_come_from_the_nodes_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FedEM keeps tables on the nodes: a run on this machine finds them when it recommends."""
    out = tmp_path / "run"
    options = ["--runtime", "network", "--method", "fedem", "--rounds", "2", "--insecure", "--quiet", ALLOW]
    assert fedem("run", *options, "--out", str(out), *TINY_OPTIONS) == 0
    user = np.load(out / "split" / "user_ids.npy")[0]
    capsys.readouterr()
    assert fedem("recommend", str(out), "--user", str(user), "--top", "3", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["items"]) == 3


def test_a_deployment_serves_runs_and_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "place"
    data = tmp_path / "ratings.csv"
    rng = np.random.default_rng(0)
    rows = [f"u{user},i{item},{when}" for user in range(24) for when, item in enumerate(rng.permutation(40)[:14])]
    data.write_text("user,item,time\n" + "\n".join(rows) + "\n")
    assert fedem("deploy", "status", "--dir", str(place)) == 2
    assert "holds no deployment" in capsys.readouterr().err
    try:
        assert fedem("deploy", "up", "--dir", str(place), "--dataset", str(data), "--nodes", "2", "--port", "0") == 0
        command = capsys.readouterr().out.strip().splitlines()[-1].partition(": fedem ")[2].split()
        assert fedem("deploy", "up", "--dir", str(place)) == 0
        assert "everything runs already" in capsys.readouterr().out
        for other in (["--nodes", "3"], ["--host", "0.0.0.0"], ["--port", "9"], ["--insecure"], ["--seed", "1"]):
            assert fedem("deploy", "up", "--dir", str(place), *other) == 2
            assert "holds a deployment with " in capsys.readouterr().err
        assert place.stat().st_mode & 0o077 == 0, "interactions and private state"
        assert fedem("deploy", "status", "--dir", str(place)) == 0
        out = tmp_path / "run"
        assert fedem(*command, "--out", str(out), "--method", "fedmf", "--rounds", "2", "--quiet") == 0
        summary = json.loads((out / "summary.json").read_text())
        assert summary["users"] == 24 and summary["failures"] == 0 and summary["controls"] == {}
        assert not (out / "split").exists(), "the experimenter of a deployment has no data"
        assert fedem("recommend", str(out), "--user", "u1") == 2
        assert "does not hold the data" in capsys.readouterr().err
    finally:
        assert fedem("deploy", "down", "--dir", str(place), "--remove") == 0
    assert left_of(place) == [] and not place.exists()
    assert fedem("deploy", "down", "--dir", str(place)) == 2


def test_what_cannot_start_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [*TINY_OPTIONS, "--dataset", "synthetic"]
    place = tmp_path / "place"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, words in (
            (["--host", "foo bar"], "no name or address of a host"),
            (["--host", "192.0.2.1"], "no address of this machine"),
            (["--port", port], f"port {port} cannot be used"),
        ):
            assert fedem("deploy", "up", "--dir", str(place), "--insecure", "--dataset", "synthetic", *options) == 2
            assert words in capsys.readouterr().err and not place.exists()
    run = tmp_path / "run"
    (tmp_path / "certs").mkdir()
    for options, words in (
        (["--certs", str(tmp_path / "certs")], "goes with --superlink"),
        (["--superlink", "nowhere", "--federation", str(tmp_path)], "describes no federation"),
    ):
        assert fedem("run", "--runtime", "network", "--out", str(run), *options, *data) == 2
        assert words in capsys.readouterr().err and not run.exists()


def test_nobody_at_the_address_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [*TINY_OPTIONS, "--dataset", "synthetic"]
    shards = [option for option in data if option.startswith(("--set=data", "--dataset", "synthetic"))]
    assert fedem("data", "shard", *shards, "--out", str(tmp_path / "shards"), "--quiet") == 0
    assert fedem("deploy", "certs", "--out", str(tmp_path / "certs")) == 0
    capsys.readouterr()
    there = [
        "--superlink",
        "127.0.0.1:9",
        "--certs",
        str(tmp_path / "certs"),
        "--out",
        str(tmp_path / "run"),
        "--quiet",
    ]
    known = ["--federation", str(tmp_path / "shards" / "federation"), "--set=network.reconnect=0.5"]
    assert fedem("run", *there, *known, "--method", "fedmf") == 1
    error = capsys.readouterr().err.strip()
    assert "no SuperLink answers at 127.0.0.1:9" in error and len(error.splitlines()) == 1
    assert fedem("run", *there) == 2
    assert "--federation" in capsys.readouterr().err
    assert fedem("run", "--superlink", "nowhere", *known, "--out", str(tmp_path / "bad")) == 2
    assert "write host:port" in capsys.readouterr().err and not (tmp_path / "bad").exists()
    (tmp_path / "certs" / "server.key").unlink()
    assert fedem("run", *there[:4], *known, "--out", str(tmp_path / "bad")) == 2
    assert "server.key" in capsys.readouterr().err and not (tmp_path / "bad").exists()
