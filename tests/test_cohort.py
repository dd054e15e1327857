"""Cohorts: any partition trains the same, sums are the sums of whole tables, and worlds with a known answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from factorised import cohort_of, learner, of_users, received
from torch import Tensor

from fedem_flwr.aggregation import average_rows
from fedem_flwr.contract import Method
from fedem_flwr.data.interactions import Interactions, first_appearance
from fedem_flwr.engine import cohort as cohort_module
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Downloads
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.merge import MergeMode, Schedule
from fedem_flwr.engine.samples import TrainingItems, draw_samples
from fedem_flwr.evaluation.cohort import Sums, add_sums, evaluate_cohort, means_of, nested, rho_statistics
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.models.mf import initial_table
from fedem_flwr.protocol.splits import Protocol, Split, make_split

pytestmark = pytest.mark.usefixtures("one_thread")


def interactions_of(rows: list[tuple[int, int]], name: str) -> Interactions:
    """Rows (user, item) in the order of time."""
    users, items = np.array(rows).T
    (user, user_ids), (item, item_ids) = first_appearance(users), first_appearance(items)
    time = np.arange(len(rows), dtype=np.float64)
    return Interactions(name, user, item, None, time, user_ids.astype(str), item_ids.astype(str))


def random_world(users: int, items: int, each: int) -> Interactions:
    """Items drawn at random: `each` for a user, or one or two more."""
    g = np.random.default_rng(0)
    return interactions_of([(u, int(i)) for u in range(users) for i in g.permutation(items)[: each + u % 3]], "random")


def checkerboard(users: int = 80, items: int = 240, missed: int = 8) -> Interactions:
    """Even users like even items and odd users odd ones; each misses a few of its own group's.

    With the held-out ones these stay below ten, so that knowing the groups is enough for HR@10 = 1.
    """
    g = np.random.default_rng(1)
    liked = [g.permutation(items // 2)[missed:] * 2 + u % 2 for u in range(users)]
    return interactions_of([(u, int(i)) for u in range(users) for i in liked[u]], "checkerboard")


def histories_of(split: Split, users: np.ndarray | None = None) -> TrainingItems:
    chosen = np.arange(split.users) if users is None else users

    def part(offsets: np.ndarray, items: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = [items[offsets[u] : offsets[u + 1]] for u in chosen]
        ends = np.cumsum([0, *map(len, rows)])
        return torch.from_numpy(ends), torch.from_numpy(np.concatenate(rows))

    positives, forbidden = part(split.train_offsets, split.train_items), part(*split.forbidden())
    return TrainingItems(torch.from_numpy(chosen), split.items, *positives, *forbidden)


def method(name: str, split: Split, mode: MergeMode, schedule: Schedule = "paper", **sections: Any) -> Method:
    """Of embeddings of 4 numbers unless something else is said."""
    return learner(name, split.items, mode, schedule, **({"model": {"dim": 4}} | sections))


def downloads(k: int, items: int, dim: int = 4, seed: int = 0) -> Downloads:
    """Tables for two users in three, the last ones first; the others get none."""
    slot = torch.full((k,), -1)
    got = torch.arange(k) % 3 != 1
    slot[got] = torch.arange(int(got.sum())).flip(0)
    return received(torch.randn(int(got.sum()), items, dim, generator=torch.Generator().manual_seed(seed)), slot)


@pytest.fixture(scope="module")
def small() -> Split:
    return make_split(random_world(12, 50, 14), "strict", seed=0)


@pytest.mark.parametrize("schedule", ["paper", "released"])
@pytest.mark.parametrize("mode", ["none", "replace", "static", "scalar", "elastic"])
def test_a_cohort_equals_cohorts_of_one(mode: MergeMode, schedule: Schedule, small: Split) -> None:
    settings: dict[str, Any] = {"local": {"epochs": 3, "batch_size": 20, "early_stop": 0.05}, "merge": {"rho": 0.4}}
    trained = method("fedem", small, mode, schedule, **settings)
    k, m = small.users, small.items
    together = cohort_of(histories_of(small), trained)
    alone = [cohort_of(histories_of(small, np.array([u])), trained) for u in range(k)]
    one = torch.tensor([0])
    for round_ in (1, 2, 3):
        tables = downloads(k, m, seed=round_) if round_ > 1 else {}
        loss = together.train(torch.arange(k), tables, round_).loss
        for u, single in enumerate(alone):
            result = single.train(one, of_users(tables, torch.tensor([u])), round_)
            assert float(result.loss) == pytest.approx(float(loss[u]), abs=1e-4)
    assert together.state.keys() == {"user", "items"} | ({"adapter"} if mode in ("scalar", "elastic") else set())
    for name, whole in together.state.items():
        torch.testing.assert_close(torch.cat([single.state[name] for single in alone]), whole, rtol=0, atol=1e-4)


def test_a_round_changes_participants_only(small: Split) -> None:
    trained, who = method("fedmf", small, "elastic"), torch.tensor([7, 2, 9])
    rest = torch.ones(small.users, dtype=torch.bool).index_fill_(0, who, False)
    cohort, everyone = (cohort_of(histories_of(small), trained) for _ in range(2))
    before = cohort_of(histories_of(small), trained).state
    tables = downloads(small.users, small.items)
    cohort.train(who, tables, 1)
    everyone.train(torch.arange(small.users), tables, 1)
    assert before.keys() == {"user", "items", "adapter"}
    for name, start in before.items():
        after, full = cohort.state[name], everyone.state[name]
        assert torch.equal(after[rest], start[rest])
        torch.testing.assert_close(after[who], full[who], rtol=0, atol=1e-5)
    empty = cohort.train(torch.arange(0), tables, 2, sums=True).sums["items"]
    assert empty.total.shape == (small.items, 4) and not empty.total.any() and not empty.weight.any()


@dataclass
class ByHand:
    """Sums of whole tables weighted by samples, and of the rows of the clients that touched them."""

    weighted: Tensor
    weight: Tensor
    touched: Tensor
    count: Tensor


def sums_by_hand(cohort: Cohort, who: Tensor, tables: Tensor, round_: int) -> ByHand:
    """From whole tables (k', m, d) after training, client by client."""
    m, d = tables.shape[1:]
    weighted, touched = torch.zeros(m, d, dtype=torch.float64), torch.zeros(m, d, dtype=torch.float64)
    count, weight = torch.zeros(m, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for u, table in zip(who, tables.double(), strict=True):
        samples = draw_samples(cohort.data, u[None], 4, Draws(0), round_)
        items = samples.touched[0, : int(samples.touched_count)]
        weighted += int(samples.size) * table
        weight += int(samples.size)
        touched[items] += table[items]
        count[items] += 1
    return ByHand(weighted, weight, touched, count)


@pytest.mark.parametrize("mode", ["static", "replace", "elastic"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("tiny_blocks", [True, False])
def test_row_sums_are_those_of_whole_tables(
    mode: MergeMode, first: bool, tiny_blocks: bool, small: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tiny_blocks:
        monkeypatch.setattr(cohort_module, "BLOCK_FLOATS", 1)
        monkeypatch.setattr(cohort_module, "MERGE_FLOATS", 5 * small.items * 4)
    who = torch.tensor([0, 5, 3, 8, 10, 11, 1])
    shared = mode == "replace"  # the one mode without own tables: its twin keeps own tables and is overwritten
    one_for_all = received(torch.randn(1, small.items, 4), torch.zeros(small.users, dtype=torch.int64))
    tables = {} if first else one_for_all if shared else downloads(small.users, small.items)
    with_tables = cohort_of(histories_of(small), method("fedem", small, mode))
    with_tables.train(who, tables, 2)
    expected = sums_by_hand(with_tables, who, with_tables.state["items"][who], 2)
    assert float(expected.count.max()) > float(expected.count.min())
    for weights, total, weight in (
        ("rows", expected.touched, expected.count),
        ("average", expected.weighted, expected.weight),
    ):
        cohort = cohort_of(histories_of(small), method("fedmf", small, mode, aggregate={"weights": weights}))
        assert ("items" in cohort.state) != shared
        sums = cohort.train(who, tables, 2, sums=True).sums["items"]
        torch.testing.assert_close(sums.total, total, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(sums.weight, weight, rtol=0, atol=0)
    torch.testing.assert_close(sums.total / sums.weight, expected.weighted / expected.weight, rtol=1e-5, atol=1e-5)


def test_every_user_merges_with_its_own_slot_and_none_without(small: Split) -> None:
    cohort = cohort_of(histories_of(small), method("fedem", small, "replace"))
    got, everyone = downloads(small.users, small.items), torch.arange(small.users)
    tables = got["items"]
    assert tables.received.tolist() == [u % 3 != 1 for u in range(small.users)]
    merged, start = cohort.seen(everyone, got)[0]["items"], initial_table(small.items, 4, 1.0, 0)
    items = torch.randint(small.items, (small.users, 6))
    for u in range(small.users):
        slot = int(tables.slot[u])
        expected = tables.values[slot] if slot >= 0 else start
        assert torch.equal(merged[u], expected)
        if slot >= 0:
            assert torch.equal(tables.of(torch.tensor([u]))[0], expected)
            assert torch.equal(tables.rows(torch.tensor([u]), items[u : u + 1])[0], expected[items[u]])
    modes: tuple[MergeMode, ...] = ("static", "scalar", "elastic")
    for mode in modes:
        found, rho = cohort_of(histories_of(small), method("fedem", small, mode)).seen(everyone, got)
        assert torch.equal(found["items"][~tables.received], start.expand(4, -1, -1))
        assert bool((found["items"][tables.received] != start).any(-1).any(-1).all())
        assert rho is not None and rho.shape == (8, small.items if mode == "elastic" else 1)
    one = received(tables.values[:1], torch.zeros(small.users, dtype=torch.int64))["items"]
    assert torch.equal(one.of(everyone), tables.values[:1].expand(small.users, -1, -1))
    only_third = received(tables.values[:1], torch.full((small.users,), -1).index_fill_(0, torch.tensor(3), 0))
    merged = cohort.seen(everyone, only_third)[0]["items"]
    assert torch.equal(merged[2:4], torch.stack([start, tables.values[0]]))


def test_evaluation_sums_do_not_depend_on_the_partition(small: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, tables = method("fedem", small, "elastic"), downloads(small.users, small.items)
    whole = evaluate_cohort(CohortScorer(cohort_of(histories_of(small), trained), tables), small, [12.5])
    parts: Sums = {}
    for users in (np.arange(5), np.arange(5, 12)):
        mine = of_users(tables, torch.from_numpy(users))
        scorer = CohortScorer(cohort_of(histories_of(small, users), trained), mine)
        add_sums(parts, evaluate_cohort(scorer, small, [12.5]))
    monkeypatch.setattr(cohort_module, "MERGE_FLOATS", 1)
    one_by_one = evaluate_cohort(CohortScorer(cohort_of(histories_of(small), trained), tables), small, [12.5])
    for other in (parts, one_by_one):
        assert other.keys() == whole.keys()
        assert [other[key] for key in whole] == pytest.approx(list(whole.values()), rel=1e-6)
    assert whole["users"] == 12 and whole["nonfinite"] == 0
    assert [whole[f"group-{g}/users"] for g in (0, 1)] == [4, 8]  # 12 training interactions, or 13 and 14
    assert [whole[f"group-{g}/interactions"] for g in (0, 1)] == [4 * 12, 4 * 13 + 4 * 14]
    assert whole["group-0/test/full/mrr"] + whole["group-1/test/full/mrr"] == whole["test/full/mrr"] > 0
    means, statistics = means_of(whole), rho_statistics(whole)
    assert nested(means, "strict")["test"]["hr@10"] == means["test/full/hr@10"] == whole["test/full/hr@10"] / 12
    assert statistics is not None and sum(statistics["histogram"]) == 8 * small.items
    _, rho = cohort_of(histories_of(small), trained).seen(torch.arange(small.users), tables)
    assert rho is not None
    assert statistics["mean"] == pytest.approx(float(rho.mean()), rel=1e-5)
    assert statistics["std"] == pytest.approx(float(rho.std(correction=0)), rel=1e-3)


def hit_rate(cohort: Cohort, split: Split, tables: Downloads, what: str = "test/sampled99/hr@10") -> float:
    return means_of(evaluate_cohort(CohortScorer(cohort, tables), split))[what]


def train_alone(split: Split, rounds: int) -> Cohort:
    cohort = cohort_of(histories_of(split), method("fedem", split, "none", model={"dim": 8}))
    for round_ in range(1, rounds + 1):
        cohort.train(torch.arange(split.users), {}, round_)
    return cohort


def train_shared(split: Split, rounds: int) -> tuple[Cohort, Downloads]:
    """One table for all, each row averaged over the clients that trained it."""
    settings: dict[str, Any] = {"model": {"dim": 8}, "local": {"epochs": 1, "batch_size": 64}}
    cohort = cohort_of(histories_of(split), method("fedmf", split, "replace", **settings))
    everyone = cohort.everyone
    table = initial_table(split.items, 8, 1.0, 0)
    slot = torch.zeros(split.users, dtype=torch.int64)
    for round_ in range(1, rounds + 1):
        sums = cohort.train(everyone, received(table[None], slot), round_, sums=True).sums["items"]
        table = average_rows(sums.total, sums.weight, table)
    return cohort, received(table[None], slot)


@pytest.mark.parametrize(("protocol", "low", "high"), [("strict", 0.0, 0.2), ("paper", 0.9, 1.0)])
def test_a_memoriser_is_at_chance_under_strict_and_perfect_under_paper(
    protocol: Protocol, low: float, high: float
) -> None:
    split = make_split(random_world(60, 300, 30), protocol, seed=0)
    assert low <= hit_rate(train_alone(split, 30), split, {}) <= high


def test_two_taste_groups_are_found_together_but_not_alone() -> None:
    split = make_split(checkerboard(), "strict", seed=0)
    cohort, tables = train_shared(split, 25)
    assert hit_rate(cohort, split, tables) >= 0.9
    assert hit_rate(cohort, split, tables, "test/full/hr@10") >= 0.8
    assert hit_rate(train_alone(split, 10), split, {}) <= 0.2
