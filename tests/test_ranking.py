"""Ranks against a slow twin, metrics against scikit-learn and a table worked out by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from fedem_flwr.engine.history import History
from fedem_flwr.evaluation.ranking import (
    CUTOFFS,
    METRICS,
    MetricSums,
    evaluate_scores,
    full_ranks,
    sampled_ranks,
)
from fedem_flwr.evaluation.scorers import HistoryScorer, SameForAll
from fedem_flwr.evaluation.settings_grid import mixture_sums
from fedem_flwr.protocol.splits import EVALUATION_NEGATIVES, Protocol, Split

NAN, INF = math.nan, math.inf
values = st.sampled_from([-INF, -1.0, 0.0, 0.5, 2.0, INF, NAN])  # few, so that ties are common


def slow_rank(scores: list[float], target: int, candidates: set[int]) -> int:
    if not math.isfinite(scores[target]):
        return 0
    return 1 + sum(1 for item in candidates - {target} if not scores[item] < scores[target])


def make(
    train: list[list[int]],
    validation: list[int],
    test: list[int],
    items: int,
    negatives: list[list[int]] | None = None,
    protocol: Protocol = "strict",
) -> Split:
    users = len(train)
    padded = np.full((users, EVALUATION_NEGATIVES), -1, np.int64)
    for user, row in enumerate(negatives or []):
        padded[user, : len(row)] = row
    return Split(
        dataset="by hand",
        protocol=protocol,
        seed=0,
        has_times=True,
        users=users,
        items=items,
        interactions=sum(map(len, train)) + 2 * users,
        train_offsets=np.cumsum([0, *map(len, train)]).astype(np.int64),
        train_items=np.array([item for row in train for item in row], np.int64),
        validation=np.array(validation, np.int64),
        test=np.array(test, np.int64),
        negatives=padded,
        user_ids=np.array([f"u{user}" for user in range(users)]),
        item_ids=np.array([f"i{item}" for item in range(items)]),
    )


@given(st.integers(1, 4), st.integers(2, 7), st.data())
def test_full_ranks_equal_the_slow_twin(k: int, m: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(values, min_size=m, max_size=m), min_size=k, max_size=k))
    item = st.integers(0, m - 1)
    targets = data.draw(st.lists(item, min_size=k, max_size=k))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, k - 1), item), max_size=12))
    excluded = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    scores = torch.tensor(rows)
    before = scores.clone()
    ranks = full_ranks(scores, torch.tensor(targets), excluded[0], excluded[1])
    assert ranks.tolist() == [
        slow_rank(rows[u], targets[u], set(range(m)) - {i for r, i in pairs if r == u}) for u in range(k)
    ]
    assert ranks.dtype == torch.int64
    assert torch.equal(scores.nan_to_num(7), before.nan_to_num(7)), "the scores are left as they were"


@given(st.integers(1, 4), st.integers(2, 7), st.data())
def test_sampled_ranks_equal_the_slow_twin(k: int, m: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(values, min_size=m, max_size=m), min_size=k, max_size=k))
    targets = data.draw(st.lists(st.integers(0, m - 1), min_size=k, max_size=k))
    others = [[i for i in data.draw(st.permutations(range(m))) if i != t][: m // 2] for t in targets]
    negatives = torch.full((k, 5), -1)
    for u, row in enumerate(others):
        negatives[u, : len(row)] = torch.tensor(row, dtype=torch.int64)
    ranks = sampled_ranks(torch.tensor(rows), torch.tensor(targets), negatives)
    assert ranks.tolist() == [slow_rank(rows[u], targets[u], set(others[u])) for u in range(k)]


@pytest.mark.parametrize(
    ("scores", "rank"),
    [
        ([3.0, 2.0, 1.0, 0.0], 1),
        ([1.0, 2.0, 1.0, 0.0], 3),  # one above, one tie
        ([1.0, 1.0, 1.0, 1.0], 4),  # a constant model is last, not first
        ([1.0, NAN, 0.0, 0.0], 2),  # a NaN competitor is ahead
        ([1.0, INF, -INF, 0.0], 2),
        ([NAN, 0.0, 0.0, 0.0], 0),  # a target that is not finite is a miss, whatever else
        ([INF, 0.0, 0.0, 0.0], 0),
        ([NAN, NAN, NAN, NAN], 0),
    ],
)
def test_doubt_counts_against_the_recommender(scores: list[float], rank: int) -> None:
    table, target = torch.tensor([scores]), torch.tensor([0])
    nothing = torch.empty(0, dtype=torch.int64)
    assert full_ranks(table, target, nothing, nothing).item() == rank
    assert sampled_ranks(table, target, torch.tensor([[1, 2, 3, -1]])).item() == rank


def test_metrics_of_a_table_worked_out_by_hand() -> None:
    sums = MetricSums.from_ranks(torch.tensor([1, 3, 5, 7, 15, 100, 0]))
    assert (sums.count, sums.nonfinite) == (7, 1)
    expected = {
        "hr@5": 3,
        "hr@10": 4,
        "hr@20": 5,
        "ndcg@5": 1 + 1 / 2 + 1 / math.log2(6),
        "ndcg@10": 1 + 1 / 2 + 1 / math.log2(6) + 1 / 3,
        "ndcg@20": 1 + 1 / 2 + 1 / math.log2(6) + 1 / 3 + 1 / 4,
        "mrr": 1 + 1 / 3 + 1 / 5 + 1 / 7 + 1 / 15 + 1 / 100,
    }
    assert tuple(sums.sums) == METRICS and sums.sums == pytest.approx(expected, abs=1e-8)
    assert sums.means() == pytest.approx({name: value / 7 for name, value in expected.items()}, abs=1e-8)


@given(st.integers(0, 2**32 - 1))
def test_ndcg_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(40.0), (6, 1)), axis=1)
    targets = rng.integers(0, 40, 6)
    nothing = torch.empty(0, dtype=torch.int64)
    means = MetricSums.from_ranks(full_ranks(torch.tensor(scores), torch.tensor(targets), nothing, nothing)).means()
    for cutoff in CUTOFFS:
        assert means[f"ndcg@{cutoff}"] == pytest.approx(ndcg_score(np.eye(40)[targets], scores, k=cutoff), abs=1e-8)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=300), st.integers(1, 9), st.randoms())
def test_sums_merge_exactly_in_any_partition(ranks: list[int], parts: int, shuffle: random.Random) -> None:
    whole = MetricSums.from_ranks(torch.tensor(ranks))
    shuffle.shuffle(ranks)
    merged = MetricSums.empty()
    for part in range(parts):
        merged += MetricSums.from_ranks(torch.tensor(ranks[part::parts], dtype=torch.int64))
    assert merged == whole


def test_means_over_nobody_are_not_a_number() -> None:
    assert all(math.isnan(value) for value in MetricSums.empty().means().values())


def rank_of(sums: MetricSums) -> float:
    return 1 / sums.means()["mrr"]


def test_evaluation_excludes_training_and_for_test_the_validation_item() -> None:
    split = make([[0, 1]], validation=[2], test=[3], items=8, negatives=[[4, 5]])
    scores = torch.tensor([[9.0, 8.0, 7.0, 5.0, 6.0, 1.0, 2.0, 3.0]])
    users = np.array([0])
    validation = evaluate_scores(split, users, scores, which="validation")
    test = evaluate_scores(split, users, scores, which="test")
    assert rank_of(validation["full"]) == pytest.approx(1)  # the test item competes, the training items do not
    assert rank_of(test["full"]) == pytest.approx(2)  # behind item 4; without the exclusions it were fifth
    assert rank_of(test["sampled99"]) == pytest.approx(2)
    future = scores.clone()
    future[0, 3] = 7.5
    assert rank_of(evaluate_scores(split, users, future, which="validation")["full"]) == pytest.approx(2)


def test_a_target_that_also_stands_in_training_is_ranked() -> None:
    split = make([[0, 3]], validation=[3], test=[3], items=5, negatives=[[1, 2, 4]], protocol="paper")
    scores = torch.tensor([[9.0, 4.0, 3.0, 2.0, 1.0]])
    for result in evaluate_scores(split, np.array([0]), scores, which="test").values():
        assert rank_of(result) == pytest.approx(3, rel=1e-6)


def test_rows_of_scores_follow_the_users_given() -> None:
    split = make([[0], [1], [2]], [3, 4, 5], [4, 5, 3], items=6, negatives=[[5], [3], [4]])
    scores = torch.tensor(np.random.default_rng(0).random((3, 6)))
    order = np.array([2, 0, 1])
    one_by_one = MetricSums.empty()
    for user in range(3):
        part = evaluate_scores(split, np.array([user]), scores[user : user + 1], which="test")
        one_by_one += part["full"]
    assert evaluate_scores(split, order, scores[order], which="test")["full"] == one_by_one


@pytest.mark.parametrize(("protocol", "way"), [("paper", "sampled99"), ("strict", "full")])
def test_a_grid_is_measured_by_the_list_of_its_protocol(protocol: Protocol, way: str) -> None:
    rows = [[0], [1], [2]]
    split = make(rows, [3, 4, 5], [4, 5, 3], items=6, negatives=[[5], [3], [4]], protocol=protocol)
    users, rng = np.arange(3), np.random.default_rng(3)
    parts = [SameForAll(torch.tensor(rng.random(6))) for _ in range(2)]
    history = History(users, 6, np.arange(4), np.array([0, 1, 2]))
    scorer = HistoryScorer(history, torch.device("cpu"), [(1.0, part) for part in parts])
    weights = {0: [1.0, 0.0], 2: [0.5, 2.0], 7: [0.0, 0.0]}
    sums = mixture_sums(scorer, weights, split, "grid")
    found = scorer.standardised(torch.arange(3), "validation")
    for row, (one, other) in weights.items():
        expected = evaluate_scores(split, users, one * found[0] + other * found[1], which="validation")[way]
        assert sums[f"grid/{row:03d}"] == expected.sums["ndcg@10"]
    assert sums["grid/users"] == 3 and mixture_sums(scorer, {}, split, "grid") == {"grid/users": 3.0}
    torch.testing.assert_close(found[0].std(dim=1), torch.ones(3, dtype=torch.float64))
    flat = HistoryScorer(history, scorer.device, [(1.0, SameForAll(torch.ones(6)))])
    assert not flat.standardised(torch.arange(3), "validation")[0].any(), "the same everywhere: nothing to add"
