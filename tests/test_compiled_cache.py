"""What was compiled is kept, in a folder of one's own; whatever is wrong with it costs time and nothing else."""

from __future__ import annotations

import logging
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedem_flwr.engine.fused import compiled
from fedem_flwr.engine.fused.compiled import _Entry, folder_compiled_ahead, folder_for_compiled


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
    entries = []  # kept: of a file that was only run, the compiler finds what is alive
    for name in ("one", "other"):
        file = home / name / "tripling.py"
        file.parent.mkdir()
        file.write_text("def tripled(x):\n    return 3 * x\n")
        entries.append(_Entry(runpy.run_path(str(file))["tripled"]))
        assert entries[-1](4) == 12
    assert list(map(hits, entries)) == [0, 1]


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


@pytest.fixture
def ahead(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that was filled, and that lies on a file system which is now only to be read."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(home / "ahead"))
    first = _Entry(doubled)
    assert first(4) == 8 and first.folder is not None and folder_compiled_ahead() is None
    can = os.access

    def only_read(path: Path, mode: int) -> bool:
        return not Path(path).is_relative_to(home / "ahead") and can(path, mode)

    monkeypatch.setattr(os, "access", only_read)
    return first.folder


def test_what_was_compiled_ahead_is_read(home: Path, ahead: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And what is not there is kept in one's own folder."""
    there = {file: file.stat().st_mtime_ns for file in ahead.iterdir()}
    with caplog.at_level(logging.WARNING):
        entry = _Entry(doubled)
        assert entry(4) == 8 and hits(entry) == 1 and not caplog.messages
        assert entry(4.5) == 9.0 and hits(entry) == 1  # type: ignore[arg-type]
        again = _Entry(doubled)
        assert again(4) == 8 and again(4.5) == 9.0 and hits(again) == 2  # type: ignore[arg-type]
    assert len(caplog.messages) == 1 and "compiling 'doubled' for this machine" in caplog.messages[0]
    assert entry.folder is not None and entry.folder.is_relative_to(home / "cache") and entry._files()
    assert there == {file: file.stat().st_mtime_ns for file in ahead.iterdir()}


def test_it_is_read_also_where_nothing_can_be_written(home: Path, ahead: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "cache").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(home / "cache"))
    entry = _Entry(doubled)
    assert entry(4) == 8 and entry.folder is None and hits(entry) == 1
    assert entry(4.5) == 9.0  # type: ignore[arg-type]


def test_where_it_is_damaged_it_costs_time(ahead: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in ahead.glob("*.nb?"):
        file.write_bytes(b"nonsense")
    with caplog.at_level(logging.WARNING):
        assert _Entry(doubled)(4) == 8
        again = _Entry(doubled)
        assert again(4) == 8 and hits(again) == 1
    assert sum("ahead cannot be read" in line for line in caplog.messages) == 2


@pytest.mark.parametrize(
    "what", ["root's", "somebody else's", "writable by others", "a file so", "in such a folder", "a link"]
)
def test_it_is_read_where_nobody_else_can_have_written_it(
    what: str, home: Path, ahead: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies there is executed."""
    place = home / "ahead" / "fedem-flwr"
    assert folder_compiled_ahead() == ahead
    monkeypatch.setattr(compiled, "_ROOT", os.getuid() if what == "root's" else os.getuid() + 2)
    monkeypatch.setattr(compiled, "_account", lambda: os.getuid() + (what in ("root's", "somebody else's")))
    if what == "writable by others":
        (place / "compiled").chmod(0o775)
    elif what == "a file so":
        next(ahead.glob("*.nbi")).chmod(0o666)
    elif what == "in such a folder":
        place.parent.chmod(0o1777)
    elif what == "a link":
        place.rename(home / "moved")
        place.symlink_to(home / "moved")
    assert folder_compiled_ahead() == (ahead if what == "root's" else None)


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
