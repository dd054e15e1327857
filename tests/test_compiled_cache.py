"""What was compiled is kept, in a folder of one's own; whatever is wrong with it costs time and nothing else."""

from __future__ import annotations

import logging
import runpy
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedem_flwr.engine.fused import compiled
from fedem_flwr.engine.fused.compiled import _Entry, folder_for_compiled


def doubled(x: int) -> int:
    return 2 * x


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and another temporary folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def hits(entry: _Entry) -> int:
    return sum(entry.compiled.stats.cache_hits.values())


def test_it_is_compiled_once_and_says_so(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        first = _Entry(doubled)
        assert [first(4), first(5)] == [8, 10] and hits(first) == 0
        assert ["compiling 'doubled' for this machine" in line for line in caplog.messages] == [True]
        again = _Entry(doubled)
        assert again(4) == 8 and hits(again) == 1 and len(caplog.messages) == 1
    assert first.folder is not None and first.folder.is_relative_to(home / "cache" / "fedem-flwr" / "compiled")


def test_it_does_not_matter_where_the_sources_lie(home: Path) -> None:
    """Flower unpacks an app into a folder of each version's own; what was compiled is found from all of them."""
    found = []
    for name in ("one", "other"):
        file = home / name / "tripling.py"
        file.parent.mkdir()
        file.write_text("def tripled(x):\n    return 3 * x\n")
        entry = _Entry(runpy.run_path(str(file))["tripled"])
        assert entry(4) == 12
        found.append(hits(entry))
    assert found == [0, 1]


def test_of_several_that_want_it_at_once_one_compiles(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As processes do, which know nothing of each other."""
    entries, together = [_Entry(doubled) for _ in range(3)], threading.Barrier(3)

    def call(entry: _Entry) -> int:
        together.wait()
        return int(entry(4))

    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(3) as pool:
        assert list(pool.map(call, entries)) == [8, 8, 8]
    assert len(caplog.messages) == 1 and sorted(map(hits, entries)) == [0, 1, 1]


def test_a_damaged_cache_is_made_anew(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = _Entry(doubled)
    first(4)
    for file in first._files():
        file.write_bytes(b"nonsense")
    with caplog.at_level(logging.WARNING):
        again = _Entry(doubled)
        assert again(4) == 8
    assert "cannot be kept or read" in caplog.messages[-1] and not first._files()
    mended = _Entry(doubled)
    assert mended(4) == 8 and first._files()


@pytest.mark.parametrize("what", ["a file", "writable by others", "no home"])
def test_another_folder_is_taken_where_one_will_not_do(what: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "a file":
        (home / "cache").write_text("")
    elif what == "writable by others":
        (home / "cache" / "fedem-flwr").mkdir(parents=True)
        (home / "cache" / "fedem-flwr").chmod(0o777)
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")

        def homeless() -> Path:
            raise RuntimeError

        monkeypatch.setattr(Path, "home", homeless)
    found = folder_for_compiled()
    assert found is not None and found.is_relative_to(home / "temporary")
    assert found.stat().st_mode & 0o077 == 0


def test_the_compilers_own_setting_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(home / "chosen"))
    found = folder_for_compiled()
    assert found is not None and found.is_relative_to(home / "chosen" / "fedem-flwr")


def test_a_compiler_that_keeps_things_otherwise_costs_time(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(compiled.caching, "_CacheLocator")
    with caplog.at_level(logging.WARNING):
        entry = _Entry(doubled)
        assert entry(4) == 8 and entry.folder is None
    assert "a way of its own" in caplog.messages[0]


def test_without_any_folder_it_still_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "cache").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(home / "cache"))
    assert folder_for_compiled() is None
    entry = _Entry(doubled)
    assert entry(4) == 8 and entry.folder is None


def test_the_compiler_is_not_imported_before_somebody_trains() -> None:
    code = (
        "import sys, fedem_flwr.cli, fedem_flwr.engine.cohort, fedem_flwr.methods.fedem; print('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
