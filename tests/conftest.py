"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from preloaded import Preloaded
from security_page import shown_attacks

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton, where it is
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before anything imports Flower, which decides then
_ACCOUNT = tempfile.TemporaryDirectory(prefix="fedem-tests-")
os.environ["XDG_STATE_HOME"] = _ACCOUNT.name  # not where whoever runs the tests keeps a key
# Compiled once, and not in every test that has a cache of its own.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path.home() / ".cache"))

ROOT = Path(__file__).resolve().parent.parent
ONE_OF_SEVERAL = "PYTEST_XDIST_WORKER" in os.environ  # processes that run tests

# How long an example takes is the machine's business; what continuous integration changes beside that stays.
settings.register_profile("unhurried", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_configure() -> None:
    # A shell's background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if ONE_OF_SEVERAL:  # they share the cores
        import torch

        torch.set_num_threads(1)


def pytest_make_parametrize_id(val: Any, argname: str) -> str | None:
    """Bytes do not name a test: an archive holds the second in which it was made, and processes must agree on names."""
    return argname if isinstance(val, bytes) else None


@cache
def started_by(file: Path) -> str:
    """The mark of a file whose tests start processes: those of one mark wait for each other. Else empty."""
    marked = r"^(?:@|pytestmark = .*)pytest\.mark\.(ray|network)\b"  # one marked parameter does not count
    found = re.search(marked, file.read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else ""


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = ROOT / "tests"
    for item in items:
        file = str(item.path.relative_to(tests)) if item.path.is_relative_to(tests) else ""
        if (file, getattr(item, "originalname", item.name)) in shown_attacks():
            item.add_marker("attacks")
    if ONE_OF_SEVERAL:  # what takes longest comes first
        items.sort(key=lambda item: not started_by(item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Spread files over processes: a file's tests share what they look at. Those that start processes stay together.

    There is one process more than there are cores, as those with these tests mostly wait.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = nodeid.partition("::")[0]
            if mark := started_by(config.rootpath / file):
                return mark
            # Of the conformance table a row: its cells look at the same runs, and the next row's at others.
            return nodeid.rpartition("-")[0] if file.endswith("conformance/test_conformance.py") else file

    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def forking() -> Iterator[Preloaded]:
    """Commands that are started as processes are forks of one that has imported everything."""
    from fedem_flwr.network import processes

    source = Preloaded()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": source.popen}))
        yield source


@pytest.fixture(scope="session")
def raylets() -> Iterator[str]:
    """The address of a Ray cluster of two machines, one for all tests: joining it costs less than a start of Ray."""
    from raylets import two_raylets

    with two_raylets() as address:
        yield address


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets (their licences forbid shipping them); skips where there is none."""
    for candidate in (os.environ.get("FEDEM_DATA"), str(ROOT.parent / "shared" / "data")):
        if candidate and (Path(candidate) / "filmtrust" / "ratings.dat").is_file():
            return Path(candidate)
    pytest.skip("real data sets not found: set FEDEM_DATA to the folder that holds filmtrust/, ml-100k/, ...")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch has one thread, and whatever it had afterwards."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of reports stay empty, where they are not what is tested: encoding them takes most of the time."""
    for module in ("report.plots", "leaderboard.pictures"):
        monkeypatch.setattr(f"fedem_flwr.{module}.image_bytes", lambda figure, image_format: b"")


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """The same for a whole file, its fixtures included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedem_flwr.report.plots.image_bytes", lambda figure, image_format: b"")
        yield


@pytest.fixture(scope="module")
def hurry() -> Iterator[None]:
    """No pauses between repetitions of a round, and no machine crashes."""
    from fedem_flwr.runtime import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "REPEAT_PAUSE", 0.0)
        patch.setattr(os, "fsync", lambda handle: None)
        yield
