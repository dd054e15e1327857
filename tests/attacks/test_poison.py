"""A node that is registered sends sums that no users have: they cost its own part, and nothing of them stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crashes import Crash
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from tampering import BAD, EACH, spoiled
from worlds import (
    ITEMS,
    WatchedGrid,
    carry_out,
    carry_out_watched,
    config_of,
    done,
    figures,
    largest_difference,
    node_of,
    prepare,
)

from fedem_flwr.config import Config
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.epochs import LocalSettings
from fedem_flwr.engine.history import History
from fedem_flwr.engine.ials import Objective, most_of_users, table_sums
from fedem_flwr.engine.optimizer import CohortAdam, Update
from fedem_flwr.engine.reach import longest, reach
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.flow import reopen
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.methods.fedials import TableStep
from fedem_flwr.runtime.checkpoint import Checkpoints
from fedem_flwr.runtime.inprocess import task_identity

pytestmark = [pytest.mark.attacks, pytest.mark.usefixtures("hurry")]
DIM, ROUNDS = 8, 4
Named = dict[str, np.ndarray]


def settings_of(method: str, **run: Any) -> Config:
    some = {"users_per_node": EACH, "rounds": ROUNDS, "checkpoint_every": 1, **run}
    return config_of(method, model={"dim": DIM}, local={"epochs": 1}, run=some)


def poisoning(change: Any, silent: bool = False) -> Any:
    """What one node uploads in every round, or that it uploads nothing."""

    def tamper(reply: Message, message: Message) -> list[Message]:
        if message.metadata.message_type != "train" or node_of(reply) != BAD:
            return [reply]
        return [] if silent else spoiled(change)(reply, message)

    return tamper


def negative(arrays: Named) -> Named:
    """The attack that stopped all nodes by round 4."""
    rows = np.full_like(arrays["rows"], 1e6)
    return arrays | {"rows": rows, "gram": -1e6 * np.eye(DIM, dtype=np.float32)}


def indefinite(arrays: Named) -> Named:
    return arrays | {"gram": -1e3 * np.eye(DIM, dtype=np.float32)}


def largest(arrays: Named) -> Named:
    """The largest that is taken: all rows one way, and a matrix of one direction."""
    config, users = settings_of("fedials"), EACH
    counts = np.full(users, 12)  # no user of this world has fewer
    trace, one, together = most_of_users(counts, ITEMS, Objective(config.ials.weight, config.ials.ridge))
    way = np.zeros(DIM, np.float32)
    way[0] = 1
    length = np.minimum(arrays["counts"] * one, together)
    return arrays | {
        "rows": (length[:, None] * way).astype(np.float32),
        "gram": (trace * np.outer(way, way)).astype(np.float32),
    }


def far(arrays: Named) -> Named:
    """Row means that no training reaches, of a table whose norm is not large."""
    items = arrays["items"].copy()
    at = int(np.flatnonzero(arrays["items-weight"])[0])
    items[at] = 30.0 * arrays["items-weight"][at]
    return arrays | {"items": items}


def own_far(arrays: Named) -> Named:
    items = arrays["items"].copy()
    items[0, 0] = 100.0
    return arrays | {"items": items}


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        ("fedials", negative, "'rows' has an entry of 1e+06"),
        ("fedials", indefinite, "'gram' is no sum of p pᵀ"),
        ("fedmf", far, "training takes none so far"),
        ("fedem", own_far, "training takes none so far"),
    ],
)
def test_poison_costs_its_node_alone(method: str, change: Any, words: str, tmp_path: Path) -> None:
    config = settings_of(method, rounds=2)
    run, _ = carry_out_watched(tmp_path / "bad", config, poisoning(change))
    silent, _ = carry_out_watched(tmp_path / "silent", config, poisoning(None, silent=True))
    assert [failure["round"] for failure in run.outcome.failures] == [1, 2]
    assert all(words in f["reason"] and "20–29" in f["node"] for f in run.outcome.failures), run.outcome.failures
    assert largest_difference(run.server, silent.server) == 0
    assert [figures(line) for line in run.lines] == [figures(line) for line in silent.lines]


def test_the_largest_that_is_taken_ends_no_run(tmp_path: Path) -> None:
    """It does harm, as any wrong sum does; but nodes go on, and so does a resumed run without it."""
    config = settings_of("fedials")
    run, _ = carry_out_watched(tmp_path / "bad", config, poisoning(largest))
    assert run.outcome.failures == [] and [line["evaluated_users"] for line in run.lines] == [40] * ROUNDS
    assert np.isfinite(run.server["table"]).all() and np.abs(run.server["table"]).max() < 100


def test_a_resume_with_the_node_replaced_works(tmp_path: Path) -> None:
    config = settings_of("fedials")
    run = prepare(tmp_path / "run", config)

    def die(line: dict[str, Any]) -> None:
        if line["round"] == 3:
            raise Crash

    with task_identity(), pytest.raises(Crash):
        run.server(die)(WatchedGrid(run, poisoning(negative)))
    with task_identity():
        ended = done(run, run.server(lambda _: None, resume=True)(WatchedGrid(run)))
    assert {failure["round"] for failure in ended.outcome.failures} <= {1, 2, 3, 4}
    honest = carry_out(tmp_path / "honest", config)
    assert ended.lines[-1]["validation"]["ndcg@10"] == pytest.approx(honest.lines[-1]["validation"]["ndcg@10"], abs=0.1)


@pytest.mark.parametrize("made", [float("nan"), float("inf"), 1e6])
def test_what_is_not_sound_is_not_kept(made: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever passes the checks: a table that cannot be is not sent, and in no checkpoint."""
    fold = TableStep.fold

    def broken(task: TableStep, state: Any, gathered: Any) -> Any:
        new = fold(task, state, gathered)
        return new | {"table": torch.full_like(new["table"], made)} if gathered.round == 2 else new

    monkeypatch.setattr(TableStep, "fold", broken)
    run = carry_out(tmp_path / "run", settings_of("fedials"))
    (failure,) = run.outcome.failures
    assert (failure["round"], failure["node"]) == (2, "server") and "'table' would have an entry of" in failure[
        "reason"
    ]
    assert np.isfinite(run.server["table"]).all() and np.abs(run.server["table"]).max() < 10


def test_a_run_can_go_back_to_the_checkpoint_before(tmp_path: Path) -> None:
    """Both sides keep it: the embeddings of fedmf are on the nodes."""
    config = settings_of("fedmf", rounds=6, checkpoint_every=2)
    run = carry_out(tmp_path / "run", config)
    points = Checkpoints(run.run.directory.checkpoint_dir)
    assert points.rounds() == [6, 4]
    with pytest.raises(InputError, match=r"no checkpoint of round 2; rounds that are there: 6, 4"):
        reopen(tmp_path / "run", 2)
    again = reopen(tmp_path / "run", 4).main
    assert points.rounds() == [4]
    resumed = done(again, carry_out_rounds(again, lambda _: None, resume=True))
    assert [figures(line) for line in resumed.lines] == [figures(line) for line in run.lines]
    assert largest_difference(run.server, resumed.server) == largest_difference(run.nodes, resumed.nodes) == 0
    assert points.rounds() == [6, 4]


# --- what the bounds rest on


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(-3, 3), st.floats(0.01, 2), st.floats(0.001, 2))
def test_no_table_makes_users_send_more(seed: int, size: float, weight: float, ridge: float) -> None:
    draw, items = np.random.default_rng(seed), 12
    sizes = draw.integers(0, items, 5)
    lists = [np.sort(draw.permutation(items)[:count]) for count in sizes]
    history = History(np.arange(5), items, np.append(0, np.cumsum(sizes)), np.concatenate(lists).astype(np.int64))
    table = torch.from_numpy(draw.normal(size=(items, 3)) * 10.0**size)
    sums = table_sums(table, history, np.arange(5), Objective(weight, ridge))
    trace, one, together = most_of_users(sizes, items, Objective(weight, ridge))
    assert float(sums.gram.trace()) <= trace * 1.0001
    most = np.minimum(sums.counts.numpy() * one, together)
    assert (sums.gradient.norm(dim=1).numpy() <= most * 1.0001 + 1e-9).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["random", "growing", "late"]))
def test_no_gradients_take_a_row_further(seed: int, kind: str) -> None:
    draw, steps, rate, width = np.random.default_rng(seed), 40, 0.1, 4
    row = torch.zeros(1, 1, width)
    adam = CohortAdam([row], [rate])
    for step in range(steps):
        size = {"random": draw.normal(), "growing": 1.3**step, "late": float(step > 30) * 9.0**step}[kind]
        adam.step([row], [torch.full((1, 1, width), float(np.float32(min(size, 1e15))))])
    local = LocalSettings(epochs=4, batch_size=10, negatives=3)
    furthest = reach([Update({"items": rate})], "items", width, local, items=25)  # 100 samples, 10 batches, 4 times
    assert longest(row.numpy()) <= furthest < 8 * steps * rate * width**0.5
    assert reach([Update({"items": rate}, "sgd")], "items", width, local, items=25) == float("inf")
    assert reach([Update({"user": rate})], "items", width, local, items=25) == 0


def test_the_norm_that_is_taken_by_default_is_a_tables() -> None:
    for method, std in (("fedmf", 0.1), ("fedmf-sr", 1.0)):
        found = method_of(config_of(method, model={"dim": 16, "init_std": std}), 100)
        assert found.max_norm == 30 * max(1.0, std) * 40
    assert method_of(config_of("fedmf", aggregate={"max_norm": 7.0}), 100).max_norm == 7
