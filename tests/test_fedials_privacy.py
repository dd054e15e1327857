"""What crosses in runs of fedials and fedials-order: sums over several users, and nothing of one of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_privacy import SUMS
from worlds import USERS, Crossing, WatchedGrid, carry_out_watched, config_of

from fedem_flwr.config import Config
from fedem_flwr.engine.history import History
from fedem_flwr.engine.ials import FoldIn, Objective
from fedem_flwr.protocol.split import Split
from fedem_flwr.randomness import keyed_integers

EACH = 7
GRID = r"(fold-in|order)/(\d{3}|users)"
MODEL = {"model": {"dim": 8}, "evaluation": {"every": 1}}
ORDER: dict[str, Any] = {
    "rounds": 4,
    "participants": 1.0,
    "layers": 1,
    "heads": 2,
    "window": 6,
    "negatives": 5,
    "map": 0,
}


def watched(path: Path, method: str, **sections: Any) -> tuple[Split, WatchedGrid, Config]:
    config = config_of(method, **(MODEL | {"run": {"users_per_node": EACH, "rounds": 6}} | sections))
    done, grid = carry_out_watched(path, config)
    assert done.outcome.failures == []
    return done.run.split, grid, config


def trained(grid: WatchedGrid, kind: str) -> list[Crossing]:
    """Replies to training messages that hold an array of this name."""
    found = [c for c in grid.up if c.kind == "train" and kind in c.arrays]
    assert found
    return found


def lists_of(split: Split) -> list[list[int]]:
    return [part.tolist() for part in np.split(np.asarray(split.train_items), split.train_offsets[1:-1])]


def hosted(node: int) -> list[int]:
    each = -(-USERS // -(-USERS // EACH))
    return list(range(each * node, min(USERS, each * node + each)))


def solved(grid: WatchedGrid, split: Split, config: Config, round_: str) -> np.ndarray:
    """(n, d) p of all users in a round, as they solve it."""
    table = next(c.arrays["table"] for c in grid.down if c.kind == "train" and c.round == round_)
    everybody = History(np.arange(split.users), split.items, split.train_offsets, split.train_items)
    fold_in = FoldIn(torch.from_numpy(table), Objective(config.ials.weight, config.ials.ridge))
    return fold_in.of(everybody, everybody.users).numpy()


def assert_only_sums(grid: WatchedGrid, uploads: list[set[str]]) -> None:
    """Names of arrays and metrics, and no state of a client anywhere."""
    for reply in grid.up:
        assert reply.config == {}
        if reply.kind == "query":
            assert set(reply.arrays) == {"users", "samples"} and reply.metrics == {}
        else:
            assert all(SUMS.fullmatch(name) or re.fullmatch(GRID, name) for name in reply.metrics), reply.metrics
            assert all(isinstance(value, int | float) for value in reply.metrics.values())
            assert set(reply.arrays) in (uploads if reply.kind == "train" else [set()])


def assert_no_histories(replies: list[Crossing], split: Split) -> None:
    """Item codes go up in the catalogue's order: no four neighbours of a history, no held-out items."""
    numbers = [x.astype(np.int64) for c in replies for x in c.arrays.values() if x.dtype.kind in "iu"]
    haystack = b"|".join(x.tobytes() for x in numbers)
    telling = [items[at : at + 4] for items in lists_of(split) for at in range(len(items) - 3)]
    telling = [np.array(x, np.int64) for x in telling if not (np.diff(x) > 0).all()]
    assert len(telling) > 5 * USERS and not any(x.tobytes() in haystack for x in telling)
    for held in (split.validation, split.test):
        assert np.asarray(held[:4], np.int64).tobytes() not in haystack


def assert_not_among(rows: np.ndarray, vectors: np.ndarray) -> None:
    """No row is one of the vectors, up to sign."""
    for one in vectors:
        assert min(np.abs(rows - sign * one).max(1).min() for sign in (1, -1)) > 1e-4 * np.abs(one).max()


def test_sums_of_fedials_show_touched_rows_only(tmp_path: Path) -> None:
    split, grid, config = watched(tmp_path / "run", "fedials")
    lists, uploads = lists_of(split), trained(grid, "gram")
    assert_only_sums(grid, [{"items", "rows", "counts", "gram"}])
    assert_no_histories(uploads, split)
    for reply in uploads:
        users = hosted(reply.node)
        touched = np.bincount(np.concatenate([lists[u] for u in users]), minlength=split.items)
        np.testing.assert_array_equal(reply.arrays["items"], np.flatnonzero(touched))
        np.testing.assert_array_equal(reply.arrays["counts"], touched[touched > 0])
        assert len(reply.arrays["rows"]) == np.count_nonzero(touched) < split.items
        p = solved(grid, split, config, reply.round)[users]
        np.testing.assert_allclose(reply.arrays["gram"], p.T @ p, rtol=1e-3, atol=1e-5)
        assert_not_among(np.concatenate([reply.arrays["rows"], reply.arrays["gram"]]), p)


def test_what_a_sum_does_not_hide(tmp_path: Path) -> None:
    """A row that only one of the cohort's users touched is a multiple of that user's p: large cohorts have few."""
    split, grid, config = watched(tmp_path / "run", "fedials")
    lists, alone = lists_of(split), 0
    for reply in trained(grid, "gram"):
        p = solved(grid, split, config, reply.round)
        for item, row, count in zip(*(reply.arrays[name] for name in ("items", "rows", "counts")), strict=True):
            owners = [u for u in hosted(reply.node) if item in lists[u]]
            cosine = abs(p[owners[0]] @ row) / np.linalg.norm(p[owners[0]]) / np.linalg.norm(row)
            alone += count == 1
            assert count == len(owners) and (count > 1 or cosine > 0.9999)
    assert alone


@pytest.mark.parametrize("fine_tune", [True, False])
def test_gradients_of_order_show_windows_and_negatives_only(fine_tune: bool, tmp_path: Path) -> None:
    split, grid, config = watched(tmp_path / "run", "fedials-order", order=ORDER | {"fine_tune": fine_tune})
    lists, uploads = lists_of(split), trained(grid, "positions")
    both = [{"items", "rows", "counts", "gram"}, {"items", "rows", "weights", "positions"}]
    assert_only_sums(grid, both)
    assert_no_histories(uploads, split)
    assert len(uploads) == 4 * 6
    for reply in uploads:
        users, window = hosted(reply.node), ORDER["window"] + 1
        touched = {item for u in users for item in lists[u][-window:]}
        drawn = torch.arange(ORDER["negatives"])
        for u in users:
            touched |= set(
                keyed_integers(split.items, config.run.seed, "order/negatives", int(reply.round), u, drawn).tolist()
            )
        assert reply.arrays["items"].tolist() == (sorted(touched) if fine_tune else [])
        assert reply.arrays["positions"].tolist() == [sum(min(len(lists[u]), window) - 1 for u in users)]
        assert reply.arrays["rows"].shape == (len(reply.arrays["items"]), 8)


@pytest.mark.parametrize("entries", [0, 9])
def test_what_goes_down_is_for_everybody(entries: int, tmp_path: Path) -> None:
    """All nodes are sent the same model; what a round does not need is empty."""
    calm = {"fold_in": {"tune": False}, "evaluation": {"every": 5}}
    _, grid, _ = watched(tmp_path / "run", "fedials-order", order=ORDER | {"map": entries}, **calm)
    of_map = {"map-items", "map-values"} if entries else set()
    model = {"table", "rows", "weights", *of_map}
    sent: dict[int, set[str]] = {}
    for round_ in range(1, 7):
        messages = [c for c in grid.down if c.kind == "train" and c.round == str(round_)]
        for message in messages:
            assert set(message.arrays) == {"participants", "uploaders", *model}
            assert set(message.arrays["participants"].tolist()) <= set(hosted(message.node))
            for name in model:
                np.testing.assert_array_equal(message.arrays[name], messages[0].arrays[name])
        sent[round_] = {name for name in model if messages[0].arrays[name].size}
    table, encoder = {"table"}, {"rows", "weights"}
    assert sent[1] == sent[2] == table and sent[4] == sent[5] == encoder
    assert sent[3] == (table if entries else table | encoder), "the table of round 2 is evaluated"
    assert sent[6] == table | encoder | of_map, "and the model of round 5"
