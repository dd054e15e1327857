"""The state store: what was saved comes back, whatever happened in between."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from worlds import config_of, prepare

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.nodes import state_store
from fedem_flwr.nodes.host import NodeHost
from fedem_flwr.nodes.state_store import DiskStateStore

ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__"),
    hnp.arrays(
        dtype=st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_]),
        shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=4,
)


def table(value: float) -> dict[str, np.ndarray]:
    return {"items": np.full((3, 2), value, dtype=np.float32), "count": np.array(int(value))}


def assert_state(store: DiskStateStore, node: str, round: int, value: float | None) -> None:
    loaded = store.load(node, round)
    if value is None:
        assert loaded is None
        return
    assert loaded is not None and loaded.keys() == {"items", "count"}
    for name, expected in table(value).items():
        assert loaded[name].dtype == expected.dtype
        np.testing.assert_array_equal(loaded[name], expected)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


@given(ARRAYS)
def test_any_arrays_come_back_equal(arrays: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = DiskStateStore(Path(directory))
        turned = {name: values.T for name, values in arrays.items()}  # not in C order
        store.save("node", 1, turned)
        loaded = store.load("node", 1)
        assert loaded is not None and loaded.keys() == turned.keys()
        for name, expected in turned.items():
            assert loaded[name].dtype == expected.dtype and loaded[name].shape == expected.shape
            np.testing.assert_array_equal(loaded[name], expected)


def test_load_gives_the_state_as_it_was_after_a_round(tmp_path: Path) -> None:
    store = DiskStateStore(tmp_path / "run")
    assert_state(store, "a", 3, None)
    store.save("a", 1, table(1))
    store.save("b", 1, table(10))
    store.save("a", 4, table(4))
    assert_state(store, "a", 4, 4)
    assert_state(store, "a", 9, 4)  # sat out rounds 5 to 9
    assert_state(store, "a", 3, 1)
    assert_state(store, "a", 0, None)
    assert_state(store, "b", 4, 10)
    store.save("a", 4, table(5))
    store.save("a", 4, table(5))
    assert_state(store, "a", 4, 5)


def test_saving_again_changes_nothing(tmp_path: Path) -> None:
    store = DiskStateStore(tmp_path)
    store.save("a", 1, table(1))
    once = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    store.save("a", 1, table(1))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == once
    assert files(tmp_path) == ["round-00000001.safetensors"]


def test_loaded_arrays_are_mapped_and_may_be_written_to(tmp_path: Path) -> None:
    store = DiskStateStore(tmp_path)
    store.save("a", 1, table(1))
    loaded, again = store.load("a", 1), store.load("a", 1)
    assert loaded is not None and again is not None
    assert isinstance(loaded["items"].base, np.memmap)
    loaded["items"][:] = 9
    np.testing.assert_array_equal(again["items"], table(1)["items"])
    store.save("a", 1, table(2))  # a mapping outlives its file
    store.save("a", 2, table(3))
    store.prune("a", 2)
    np.testing.assert_array_equal(again["items"], table(1)["items"])
    assert_state(store, "a", 2, 3)


def test_crash_before_the_rename_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    store = DiskStateStore(tmp_path)
    store.save("a", 1, table(1))
    for interrupted_round in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(state_store.os, "replace", crash)
            store.save("a", interrupted_round, table(7))
    assert len(files(tmp_path)) == 3, "two files left half done"
    survivor = DiskStateStore(tmp_path)
    assert_state(survivor, "a", 2, 1)
    survivor.save("a", 2, table(2))
    assert_state(survivor, "a", 2, 2)
    survivor.save("a", 3, table(3))
    survivor.prune("a", 3)
    assert files(tmp_path) == ["round-00000003.safetensors"]


def test_written_and_flushed_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        events.append("directory" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        real_fsync(handle)

    def replace(source: str, target: Path) -> None:
        assert Path(source).parent == target.parent
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(state_store.os, "fsync", fsync)
    monkeypatch.setattr(state_store.os, "replace", replace)
    store = DiskStateStore(tmp_path)
    store.save("a", 1, table(1))
    assert events == ["directory", "file", "rename", "directory"]  # the first: the new node's own name


@pytest.mark.parametrize("damage", ["empty", "short", "text", "header", "long"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    store = DiskStateStore(tmp_path)
    store.save("a", 3, table(1))
    path = next(tmp_path.rglob("*.safetensors"))
    content = path.read_bytes()
    damaged = {
        "empty": b"",
        "short": content[:-1],
        "text": b"not a table at all, but long enough to have a header",
        "header": content[:9] + b"\xff\xff" + content[11:],
        "long": content + b"more",
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(FedemError) as raised:
        store.load("a", 3)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_only_what_must_outlast_the_machine_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Ray a run goes on from checkpoints: what is kept between them outlasts processes."""
    flushed: list[bool] = []
    monkeypatch.setattr(state_store, "flush_to_disk", lambda path: flushed.append(path.is_dir()))
    prepared = prepare(tmp_path, config_of("fedmf", run={"users_per_node": 20}))
    for lasting, durable, times in ((True, False, 1), (False, True, 1), (False, False, 0)):
        host = NodeHost(prepared.directory.path, prepared.nodes, lasting=lasting)
        cohort = host.cohort(0, 0)
        host.keep(0, 1, cohort, durable=durable, keep_from=[0])
        assert flushed.count(True) >= times and flushed.count(False) == times
        flushed.clear()
        assert NodeHost(prepared.directory.path, prepared.nodes).cohort(0, 1).state.keys() == cohort.state.keys()


@pytest.mark.parametrize("step", ["save_file", "fsync"])
def test_full_disk_is_one_line_and_keeps_the_old_state(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = DiskStateStore(tmp_path)
    store.save("a", 1, table(1))
    with monkeypatch.context() as patch, pytest.raises(FedemError, match="No space left on device") as raised:
        patch.setattr(state_store if step == "save_file" else state_store.os, step, full)
        store.save("a", 2, table(2))
    assert "\n" not in str(raised.value) and "a after round 2" in str(raised.value)
    assert files(tmp_path) == ["round-00000001.safetensors"]
    assert_state(store, "a", 2, 1)


@settings(max_examples=40)
@given(st.sets(st.integers(0, 12)), st.integers(0, 13))
def test_prune_never_changes_what_a_later_load_gives(rounds: set[int], keep_from: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = DiskStateStore(Path(directory))
        for number in sorted(rounds):
            store.save("a", number, {"round": np.array(number)})
        before = [store.load("a", asked) for asked in range(keep_from, 15)]
        store.prune("a", keep_from)
        assert [store.load("a", asked) for asked in range(keep_from, 15)] == before
        kept = len(files(Path(directory)))
        assert kept == sum(number > keep_from for number in rounds) + any(number <= keep_from for number in rounds)


@settings(max_examples=40)
@given(st.sets(st.integers(0, 12)), st.integers(0, 13), st.integers(0, 13))
def test_prune_keeps_what_each_of_several_rounds_needs(rounds: set[int], keep_from: int, working: int) -> None:
    """A run is resumed from one round, and repeats another; what lies between is nobody's."""
    with tempfile.TemporaryDirectory() as directory:
        store = DiskStateStore(Path(directory))
        for number in sorted(rounds):
            store.save("a", number, {"round": np.array(number)})
        needed = [keep_from, *range(max(keep_from, working), 15)]
        before = [store.load("a", asked) for asked in needed]
        store.prune("a", keep_from, working)
        assert [store.load("a", asked) for asked in needed] == before
        kept = files(Path(directory))
        assert len(kept) <= 2 + sum(number > max(keep_from, working) for number in rounds)


def test_bad_requests_are_input_errors(tmp_path: Path) -> None:
    store = DiskStateStore(tmp_path)
    for name in ("", "..", "a/b", "../a", ".hidden"):
        with pytest.raises(InputError, match="cannot name"):
            store.save(name, 1, table(1))
    with pytest.raises(InputError, match="rounds go from 0"):
        store.save("a", -1, table(1))
    with pytest.raises(FedemError, match="cannot store"):
        store.save("a", 1, {"x": np.array(["text"])})
    assert files(tmp_path) == []
