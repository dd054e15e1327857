"""Cohorts: any partition trains the same, sums are the sums of whole tables, and worlds with a known answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedem_flwr.aggregation import average_rows
from fedem_flwr.data.interactions import Interactions, first_appearance
from fedem_flwr.engine import cohort as cohort_module
from fedem_flwr.engine.cohort import Cohort, CohortSettings, CohortState, RowSums, Schedule
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.local import LocalSettings
from fedem_flwr.engine.merge import GlobalTables, Merge, MergeMode
from fedem_flwr.engine.samples import TrainingItems, draw_samples
from fedem_flwr.evaluation.cohort import Sums, add_sums, evaluate_cohort, means_of, nested, rho_statistics
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.models.adapter import Adapter
from fedem_flwr.models.mf import initial_table
from fedem_flwr.protocol.splits import Protocol, Split, make_split

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def method(mode: MergeMode, schedule: Schedule = "paper", *, own_tables: bool = True, dim: int = 8) -> CohortSettings:
    local = LocalSettings(10, 256, 4, lr_user=0.1, lr_item=0.1, lr_adapter=0.1, early_stop=0.0)
    return CohortSettings(dim, 1.0, 0, Merge(mode, 0.4, Adapter(dim)), schedule, local, own_tables, adapter_epochs=1)


def cohort_of(histories: TrainingItems, settings: CohortSettings) -> Cohort:
    return Cohort(histories, CohortState.initial(len(histories.users), histories.items, settings, CPU), settings)


def downloads(k: int, items: int, dim: int, seed: int = 0) -> GlobalTables:
    """Tables for two users in three, the last ones first; the others get none."""
    slot = torch.full((k,), -1)
    got = torch.arange(k) % 3 != 1
    slot[got] = torch.arange(int(got.sum())).flip(0)
    return GlobalTables(torch.randn(int(got.sum()), items, dim, generator=torch.Generator().manual_seed(seed)), slot)


@pytest.fixture(scope="module")
def small() -> Split:
    return make_split(random_world(12, 50, 14), "strict", seed=0)


@pytest.mark.parametrize("schedule", ["paper", "released"])
@pytest.mark.parametrize("mode", ["none", "replace", "static", "scalar", "elastic"])
def test_a_cohort_equals_cohorts_of_one(mode: MergeMode, schedule: Schedule, small: Split) -> None:
    settings = method(mode, schedule, dim=4)
    settings = replace(settings, local=replace(settings.local, epochs=3, batch_size=20, early_stop=0.05))
    k, m = small.users, small.items
    together = cohort_of(histories_of(small), settings)
    alone = [cohort_of(histories_of(small, np.array([u])), settings) for u in range(k)]
    one = torch.tensor([0])
    for round_ in (1, 2, 3):
        tables = downloads(k, m, 4, round_) if round_ > 1 else None
        loss = together.train(torch.arange(k), tables, round_).loss
        for u, single in enumerate(alone):
            mine = None if tables is None else GlobalTables(tables.tables, tables.slot[u : u + 1])
            result = single.train(one, mine, round_)
            assert float(result.loss) == pytest.approx(float(loss[u]), abs=1e-4)
    for name in ("user", "table", "adapter"):
        whole = getattr(together.state, name)
        if whole is not None:
            parts = torch.cat([getattr(single.state, name) for single in alone])
            torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def test_a_round_changes_participants_only(small: Split) -> None:
    settings, who = method("elastic", dim=4), torch.tensor([7, 2, 9])
    rest = torch.ones(small.users, dtype=torch.bool).index_fill_(0, who, False)
    cohort, everyone = (cohort_of(histories_of(small), settings) for _ in range(2))
    before = cohort_of(histories_of(small), settings).state
    tables = downloads(small.users, small.items, 4)
    cohort.train(who, tables, 1)
    everyone.train(torch.arange(small.users), tables, 1)
    for name in ("user", "table", "adapter"):
        after, start, full = (getattr(x, name) for x in (cohort.state, before, everyone.state))
        assert torch.equal(after[rest], start[rest])
        torch.testing.assert_close(after[who], full[who], rtol=0, atol=1e-5)
    empty = cohort.train(torch.arange(0), tables, 2, sums=True)
    assert empty.sums is not None and not empty.sums.weighted.any() and not empty.sums.weight.any()


def sums_by_hand(cohort: Cohort, who: Tensor, tables: Tensor, round_: int) -> RowSums:
    """From whole tables (k', m, d) after training, client by client."""
    m, d = tables.shape[1:]
    weighted, touched = torch.zeros(m, d, dtype=torch.float64), torch.zeros(m, d, dtype=torch.float64)
    count, weight = torch.zeros(m, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for u, table in zip(who, tables.double(), strict=True):
        samples = draw_samples(cohort.histories, u[None], 4, Draws(0), round_)
        items = samples.touched[0, : int(samples.touched_count)]
        weighted += int(samples.size) * table
        weight += int(samples.size)
        touched[items] += table[items]
        count[items] += 1
    return RowSums(weighted, weight, touched, count)


@pytest.mark.parametrize("mode", ["none", "replace", "elastic"])
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
    with_tables = cohort_of(histories_of(small), method(mode, dim=4))
    cohort = cohort_of(histories_of(small), method(mode, dim=4, own_tables=not shared))
    one_for_all = GlobalTables(torch.randn(1, small.items, 4), torch.zeros(small.users, dtype=torch.int64))
    tables = None if first else one_for_all if shared else downloads(small.users, small.items, 4)
    sums = cohort.train(who, tables, 2, sums=True).sums
    with_tables.train(who, tables, 2)
    assert with_tables.state.table is not None and (cohort.state.table is None) == shared
    expected = sums_by_hand(cohort, who, with_tables.state.table[who], 2)
    assert sums is not None and float(sums.count.max()) > float(sums.count.min())
    for name in ("weighted", "weight", "touched", "count"):
        torch.testing.assert_close(getattr(sums, name), getattr(expected, name), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sums.mean_table(), expected.weighted / expected.weight, rtol=1e-5, atol=1e-5)


def test_every_user_merges_with_its_own_slot_and_none_without(small: Split) -> None:
    cohort = cohort_of(histories_of(small), method("replace", dim=4))
    tables, everyone = downloads(small.users, small.items, 4), torch.arange(small.users)
    assert tables.received.tolist() == [u % 3 != 1 for u in range(small.users)]
    (merged, _), start = cohort.merged(everyone, tables), initial_table(small.items, 4, 1.0, 0)
    items = torch.randint(small.items, (small.users, 6))
    for u in range(small.users):
        slot = int(tables.slot[u])
        expected = tables.tables[slot] if slot >= 0 else start
        assert torch.equal(merged[u], expected)
        if slot >= 0:
            assert torch.equal(tables.of(torch.tensor([u]))[0], expected)
            assert torch.equal(tables.rows(torch.tensor([u]), items[u : u + 1])[0], expected[items[u]])
    for mode in ("static", "scalar", "elastic"):
        merged, rho = cohort_of(histories_of(small), method(mode, dim=4)).merged(everyone, tables)
        assert torch.equal(merged[~tables.received], start.expand(4, -1, -1))
        assert bool((merged[tables.received] != start).any(-1).any(-1).all())
        assert rho is not None and rho.shape == (8, small.items if mode == "elastic" else 1)
    one = GlobalTables(tables.tables[:1], torch.zeros(small.users, dtype=torch.int64))
    assert torch.equal(one.of(everyone), tables.tables[:1].expand(small.users, -1, -1))
    only_third = GlobalTables(tables.tables[:1], torch.full((small.users,), -1).index_fill_(0, torch.tensor(3), 0))
    assert torch.equal(cohort.merged(everyone, only_third)[0][2:4], torch.stack([start, tables.tables[0]]))


def test_evaluation_sums_do_not_depend_on_the_partition(small: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, tables = method("elastic", dim=4), downloads(small.users, small.items, 4)
    whole = evaluate_cohort(CohortScorer(cohort_of(histories_of(small), settings), tables), small, [12.5])
    parts: Sums = {}
    for users in (np.arange(5), np.arange(5, 12)):
        mine = GlobalTables(tables.tables, tables.slot[torch.from_numpy(users)])
        scorer = CohortScorer(cohort_of(histories_of(small, users), settings), mine)
        add_sums(parts, evaluate_cohort(scorer, small, [12.5]))
    monkeypatch.setattr(cohort_module, "MERGE_FLOATS", 1)
    one_by_one = evaluate_cohort(CohortScorer(cohort_of(histories_of(small), settings), tables), small, [12.5])
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
    _, rho = cohort_of(histories_of(small), settings).merged(torch.arange(small.users), tables)
    assert rho is not None
    assert statistics["mean"] == pytest.approx(float(rho.mean()), rel=1e-5)
    assert statistics["std"] == pytest.approx(float(rho.std(correction=0)), rel=1e-3)


def hit_rate(cohort: Cohort, split: Split, tables: GlobalTables | None, what: str = "test/sampled99/hr@10") -> float:
    return means_of(evaluate_cohort(CohortScorer(cohort, tables), split))[what]


def train_alone(split: Split, rounds: int) -> Cohort:
    cohort = cohort_of(histories_of(split), method("none"))
    for round_ in range(1, rounds + 1):
        cohort.train(torch.arange(split.users), None, round_)
    return cohort


def train_shared(split: Split, rounds: int) -> tuple[Cohort, GlobalTables]:
    """One table for all, each row averaged over the clients that trained it."""
    settings = method("replace", own_tables=False)
    settings = replace(settings, local=replace(settings.local, epochs=1, batch_size=64))
    cohort, everyone = cohort_of(histories_of(split), settings), torch.arange(split.users)
    table = initial_table(split.items, settings.dim, settings.init_std, settings.seed)
    slot = torch.zeros(split.users, dtype=torch.int64)
    for round_ in range(1, rounds + 1):
        sums = cohort.train(everyone, GlobalTables(table[None], slot), round_, sums=True).sums
        assert sums is not None
        table = average_rows(sums.touched, sums.count, table)
    return cohort, GlobalTables(table[None], slot)


@pytest.mark.parametrize(("protocol", "low", "high"), [("strict", 0.0, 0.2), ("paper", 0.9, 1.0)])
def test_a_memoriser_is_at_chance_under_strict_and_perfect_under_paper(
    protocol: Protocol, low: float, high: float
) -> None:
    split = make_split(random_world(60, 300, 30), protocol, seed=0)
    assert low <= hit_rate(train_alone(split, 30), split, None) <= high


def test_two_taste_groups_are_found_together_but_not_alone() -> None:
    split = make_split(checkerboard(), "strict", seed=0)
    cohort, tables = train_shared(split, 25)
    assert hit_rate(cohort, split, tables) >= 0.9
    assert hit_rate(cohort, split, tables, "test/full/hr@10") >= 0.8
    assert hit_rate(train_alone(split, 10), split, None) <= 0.2
