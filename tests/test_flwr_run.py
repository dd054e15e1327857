"""`flwr run .`: the app that Flower's own commands start goes from its data to its report, as `fedem run` does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.clientapp import ClientApp
from test_network_run import left_of, wait_for
from worlds import config_of, figures, prepare

from fedem_flwr import server_app
from fedem_flwr.client_app import FromContext
from fedem_flwr.config import resolve
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.network.link import Address
from fedem_flwr.network.processes import Child, await_listening, free_port, running
from fedem_flwr.nodes.answering import build_client_app
from fedem_flwr.nodes.host import STATE_FOLDER
from fedem_flwr.protocol.shards import FEDERATION_FOLDER
from fedem_flwr.protocol.temporal import SECOND
from fedem_flwr.report.progress import RoundProgress
from fedem_flwr.report.run_directory import REPORT, SUMMARY, RunDirectory
from fedem_flwr.runtime.flower import FlowerGrid
from fedem_flwr.runtime.inprocess import InProcessGrid, task_identity
from fedem_flwr.runtime.prepared import PreparedRun

ROOT = Path(__file__).resolve().parent.parent
APP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
BIN = Path(sys.executable).parent
USERS, ITEMS, EACH = 24, 30, 12
SECONDS = 240.0
PACKAGES = ("fedem_flwr", "strategies", "clients", "configs")
BESIDE = ("pyproject.toml", "README.md", "LICENSE")


def nodes_app() -> ClientApp:
    """Nodes that are described by their context."""
    return build_client_app(FromContext())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a fresh clone has it, without environments, in which Flower would look at every file."""
    folder = tmp_path_factory.mktemp("project")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BESIDE:
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file of user, item, rating, time: two groups, each with items of its own."""
    path, half = tmp_path_factory.mktemp("data") / "tiny.csv", ITEMS // 2
    rows = [
        f"u{user},i{(user % 2) * half + (user + turn) % half},5,{100 * turn + user}"
        for user in range(USERS)
        for turn in range(EACH)
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs land in the test's folder, and so does what is kept of controls."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def start(settings: Mapping[str, Any], nodes: int = 2) -> None:
    """What Flower does with the ServerApp, over nodes in this process that know no more than a SuperNode does."""
    context = Context(1, 1, {}, RecordDict(), {**APP["config"], **settings})
    with task_identity():
        server_app.app(InProcessGrid(nodes_app(), nodes=nodes, run_config=context.run_config), context)


def the_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def assert_finished(run: Path, *, rounds: int, runtime: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / SUMMARY).read_text())
    assert [summary[key] for key in ("rounds", "nodes", "runtime", "failures")] == [rounds, 2, runtime, 0]
    assert summary["controls"]["popularity"] and summary["metrics"]["best_validation"]
    assert "<html" in (run / REPORT).read_text()
    return summary


def test_no_arguments_are_the_embedded_data_and_their_preset() -> None:
    with ExitStack() as held:
        run = server_app._prepared({}, "ray", held)
    assert run.config.data.dataset == "synthetic" and run.config.run.rounds > 1
    assert (run.config.run.runtime, run.config.run.device) == ("ray", "cpu")
    assert run.directory.path.parent == Path.cwd() / "runs"
    assert run.directory.read_command() == "flwr run ."


def test_a_run_ends_like_every_other(ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start({"dataset": str(ratings), "method": "fedmf", "rounds": 2})
    run, said = the_run(tmp_path), capsys.readouterr().out
    assert f"run directory: {run}\n" in said and f"report: {run / REPORT}\n" in said
    summary = assert_finished(run, rounds=2, runtime="network")
    assert summary["command"].startswith("flwr run . --run-config 'dataset=")


@pytest.mark.usefixtures("undrawn")
def test_a_run_up_to_an_instant_is_trained_twice_over_the_same_nodes(ratings: Path, tmp_path: Path) -> None:
    start({"dataset": str(ratings), "method": "fedials", "rounds": 2, "protocol": "temporal"})
    summary = assert_finished(the_run(tmp_path), rounds=2, runtime="network")
    second = RunDirectory(the_run(tmp_path) / SECOND)
    assert second.read_metrics()[-1]["test"]["ndcg@10"] == summary["metrics"]["best_validation"]["ndcg@10"]
    assert summary["temporal"]["groups"][0]["users"] == second.read_metrics()[-1]["evaluated_users"] == USERS // 4


def test_a_run_that_was_interrupted_goes_on(ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"dataset": str(ratings), "method": "fedmf", "rounds": 7, "run-dir": str(tmp_path / "named")}
    seen: list[int] = []

    def update(self: RoundProgress, round_: int, line: Mapping[str, object]) -> None:
        seen.append(round_)
        if len(seen) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(RoundProgress, "update", update)
    with pytest.raises(KeyboardInterrupt):
        start(settings)
    start(settings)
    assert seen[:9] == [1, 2, 3, 4, 5, 6, 5, 6, 7]  # from the checkpoint of round 5, whose line was not due yet
    assert_finished(tmp_path / "named", rounds=7, runtime="network")
    went_on = PreparedRun.open(RunDirectory(tmp_path / "named"))
    config = went_on.config.changed("run", runtime="inprocess")
    plain = PreparedRun.create(RunDirectory(tmp_path / "plain").create(), config, went_on.split)
    carry_out_rounds(plain, lambda line: None)
    for one, other in zip(went_on.directory.read_metrics(), plain.directory.read_metrics(), strict=True):
        assert figures(one) == figures(other)


def test_who_keeps_state_elsewhere_does_not_go_on_with_a_run(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", config_of("fedmf", run={"runtime": "network", "users_per_node": 20}))
    (run.directory.path / STATE_FOLDER).mkdir(parents=True)
    with pytest.raises(InputError, match="flwr run"):
        carry_out_rounds(run, lambda line: None, resume=True)
    (run.directory.path / FEDERATION_FOLDER).mkdir()
    with pytest.raises(InputError, match="fedem resume"):
        start({"run-dir": str(run.directory.path)})


def test_users_without_a_node_are_waited_for_and_then_missed(tmp_path: Path) -> None:
    class Halved(InProcessGrid):
        def get_node_ids(self) -> list[int]:
            return super().get_node_ids()[:1]

    run = prepare(tmp_path / "run", config_of("fedmf"))
    with task_identity():
        grid = FlowerGrid(Halved(nodes_app(), nodes=2, run_config={}), run.directory.path)
        with pytest.raises(FedemError, match=r"20 of 40 users.*--node-config"):
            grid.await_users(40, 0.5)


def test_a_node_that_does_not_see_the_run_says_so(tmp_path: Path) -> None:
    with task_identity():
        grid = FlowerGrid(InProcessGrid(nodes_app(), nodes=2, run_config={}), tmp_path / "elsewhere")
        with pytest.raises(FedemError, match="elsewhere of the server is not on this machine"):
            grid.await_users(40, 0.5)


def test_the_bundle_holds_the_package_and_nothing_else(project: Path) -> None:
    (project / "notes.json").write_text("{}")
    with zipfile.ZipFile(BytesIO(build_fab_from_disk(project))) as bundle:
        held = {name for name in bundle.namelist() if name != ".info/CONTENT"}
    files = (path for package in PACKAGES for path in (project / package).rglob("*") if path.is_file())
    assert held == {str(path.relative_to(project)) for path in files if path.name != "py.typed"} | set(BESIDE)


# With Flower's own commands, as a user has them.


@pytest.fixture
def environment(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the project, with a Flower home of the test's own, the documented setting, and no way to any network."""
    unreachable = "http://127.0.0.1:9"
    variables = {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flower"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        "HTTPS_PROXY": unreachable,
        "HTTP_PROXY": unreachable,
        "NO_PROXY": "127.0.0.1,localhost",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "local",  # not the cluster that other tests have started
        "UV_OFFLINE": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(project)
    yield
    shutil.rmtree(project / "runs", ignore_errors=True)
    for pid in left_of(tmp_path / "flower"):  # a SuperLink that `flwr run` started goes on until somebody stops it
        with suppress(ProcessLookupError):
            os.kill(pid, SIGTERM)
    wait_for(lambda: left_of(tmp_path / "flower") == [])


def flwr_run(*arguments: str) -> str:
    """`flwr run .`, until the run is over; returns what it says."""
    command = [str(BIN / "flwr"), "run", ".", *arguments, "--stream"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    return told.stdout + told.stderr


def assert_told(said: str, *, runtime: str, rounds: int) -> None:
    assert Path("runs").is_dir(), said
    run = the_run(Path.cwd())
    assert f"run directory: {run}\n" in said and f"report: {run / REPORT}\n" in said, said
    assert_finished(run, rounds=rounds, runtime=runtime)


@pytest.mark.ray
@pytest.mark.usefixtures("environment")
def test_no_arguments_in_flowers_simulation() -> None:
    assert_told(flwr_run(), runtime="ray", rounds=resolve({}, {}).run.rounds)


@contextmanager
def superlink(folder: Path) -> Iterator[None]:
    """A SuperLink with two SuperNodes, as Flower's documentation starts them, and a connection of that name."""
    address = Address(f"127.0.0.1:{free_port()}")
    host, port = address.place.split(":")
    (folder / "flower").mkdir()
    (folder / "flower" / "config.toml").write_text(
        f'[superlink]\ndefault = "mine"\n\n[superlink.mine]\naddress = "{address.place}"\ninsecure = true\n'
    )
    serving = ["flower-superlink", "--insecure", "--host", host, "--port", port]
    children = [Child("SuperLink", serving, folder / "superlink.log")]
    for node in range(2):
        hosting = ["flower-supernode", "--insecure", "--superlink", address.place, "--port", str(free_port())]
        hosting += ["--node-config", f"partition-id={node} num-partitions=2"]
        children.append(Child(f"node-{node}", hosting, folder / f"node-{node}.log"))
    with running(children):
        children[0].start()
        await_listening(children[0], address)
        for child in children[1:]:
            child.start()
        yield


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_against_a_superlink(ratings: Path, tmp_path: Path) -> None:
    settings = f'dataset="{ratings}" method="fedmf" rounds=1 threads=1'
    with superlink(tmp_path):
        assert_told(flwr_run("--run-config", settings), runtime="network", rounds=1)
