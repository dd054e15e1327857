"""Differences of several methods: the bootstrap against scipy's, Holm by its steps, what is kept of users."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import ndcg_score

from fedem_flwr.errors import FedemError
from fedem_flwr.evaluation.significance import holm, paired_differences
from fedem_flwr.leaderboard.contrasts import contrasts_of
from fedem_flwr.leaderboard.gather import Record, tables_of
from fedem_flwr.report.per_user import PerUser
from fedem_flwr.report.run_directory import RunDirectory


def users(count: int, gain: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(gain, 1, count)


def test_intervals_are_those_of_scipy() -> None:
    rng = np.random.default_rng(3)
    differences = rng.exponential(1, (2, 150)) - [[0.7], [1.0]]
    for each, found in zip(differences, paired_differences(differences), strict=True):
        theirs = stats.bootstrap((each,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
        error = each.std() / math.sqrt(150)
        assert found.low == pytest.approx(theirs.low, abs=0.06 * error)
        assert found.high == pytest.approx(theirs.high, abs=0.06 * error)
        assert found.mean == pytest.approx(each.mean())
        assert found.effect == pytest.approx(each.mean() / each.std(ddof=1))
        assert (found.better, found.worse) == ((each > 0).mean(), (each < 0).mean())


def test_p_is_that_of_a_t_test_where_it_should_be() -> None:
    differences = np.stack([users(800, gain, 5) for gain in (0.0, 0.04, 0.08, 1.0)])
    found = paired_differences(differences)
    for each, difference in zip(differences[:3], found[:3], strict=True):
        assert difference.p == pytest.approx(stats.ttest_1samp(each, 0).pvalue, rel=0.25, abs=0.003)
    assert found[3].p == 2 / 10_001  # it never says that chance is out of the question
    assert paired_differences(np.zeros((1, 5)))[0].p == 1.0


def test_all_comparisons_see_the_same_draws() -> None:
    """So the parts of a difference add up, and a comparison with itself the other way round is its negative."""
    a, b = users(60, 0.1, 1), users(60, 0.3, 2)
    one, other, both = paired_differences([a, -a, a + b])
    assert (one.low, one.high, one.mean) == pytest.approx((-other.high, -other.low, -other.mean), abs=1e-12)
    assert one.p == other.p
    assert both.mean == pytest.approx(one.mean + b.mean())


@pytest.mark.parametrize("bad", [np.full((1, 3), np.nan), np.zeros((1, 0))])
def test_what_cannot_be_compared(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite"):
        paired_differences(bad)


def test_holm_by_hand() -> None:
    """Holm's own kind of example: .01 of 4, .02 of 3, .03 of 2, .04 of 1, never below one that came before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == [] and holm([0.7, 0.9]) == [1.0, 1.0]


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8), st.floats(0.01, 0.5))
def test_holm_rejects_as_its_steps_do(p: list[float], level: float) -> None:
    """Step down: while the smallest of what is left is below level / (number left), reject it."""
    left, rejected = sorted(range(len(p)), key=lambda at: p[at]), set()
    while left and p[left[0]] * len(left) < level:
        rejected.add(left.pop(0))
    assert {at for at, adjusted in enumerate(holm(p)) if adjusted < level} == rejected


def kept(path: Path, seed: int, ranks: np.ndarray, method: str, people: str = "p", split: str = "") -> Record:
    directory = RunDirectory(path / f"{method}-{seed}").create()
    directory.write_config("")
    best = {"full": {"ndcg@10": 0.5}, "ndcg@10": 0.5}
    controls = {"popularity": {"full": {"ndcg@10": 0.1}}, "ease": {"full": {"ndcg@10": 0.3}}}
    summary = {"dataset": "d", "protocol": "strict", "method": method, "seed": seed, "controls": controls}
    directory.write_summary({**summary, "metrics": {"best_validation": best}})
    of_controls = {name: {"full/ndcg@10": np.full(len(ranks), 0.3, np.float32)} for name in controls}
    sampled = ranks.astype(np.int32)
    PerUser(
        split or f"split {seed}", people, 1, {"full": ranks.astype(np.int32), "sampled99": sampled}, of_controls
    ).save(directory.path)
    return Record.of(directory)


def test_users_are_averaged_over_seeds_before_they_are_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ranks = {(m, s): rng.integers(1, 30, 80) for m in ("one", "other") for s in range(3)}
    records = [kept(tmp_path, seed, each, method) for (method, seed), each in ranks.items()]
    (table,) = tables_of(records)
    found = {(c.method, c.against): c for c in contrasts_of(table).found}
    gains = {key: np.where(each <= 10, 1 / np.log2(each + 1.0), 0) for key, each in ranks.items()}
    assert set(found) == {("one", "EASE"), ("other", "EASE"), ("one", "other")}
    means = np.mean([gains["one", seed] - gains["other", seed] for seed in range(3)], axis=0)
    contrast = found["one", "other"]
    assert contrast.difference.mean == pytest.approx(means.mean(), abs=1e-6)
    assert (contrast.difference.users, contrast.seeds, contrast.is_control) == (80, 3, False)
    ends = stats.bootstrap((means,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert contrast.difference.low == pytest.approx(ends.low, abs=0.004)
    assert contrast.adjusted >= contrast.difference.p
    against = found["one", "EASE"].difference
    assert against.mean == pytest.approx(np.mean([gains["one", s] for s in range(3)]) - 0.3, abs=1e-6)


def test_what_is_on_another_split_or_was_not_kept_is_not_compared(tmp_path: Path) -> None:
    ranks = np.arange(1, 21)
    one, other = kept(tmp_path, 0, ranks, "one"), kept(tmp_path, 0, ranks, "other", split="another of that seed")
    (table,) = tables_of([one, other])
    assert {(c.method, c.against) for c in contrasts_of(table).found} == {("one", "EASE"), ("other", "EASE")}
    (one.directory.path / "users.npz").unlink()
    (other.directory.path / "users.npz").write_bytes(b"PK")
    found = contrasts_of(table)
    assert found.found == () and "the run is older" in found.notes[0] and "is damaged" in found.notes[1]


def test_runs_of_other_people_are_not_paired(tmp_path: Path) -> None:
    ranks = np.arange(1, 21)
    records = [kept(tmp_path, 0, ranks, "one"), kept(tmp_path, 0, ranks, "other", people="q")]
    found = contrasts_of(tables_of(records)[0])
    assert found.found == () and "different users" in found.notes[0]


def test_a_control_on_a_sample_takes_no_users_from_the_comparison_of_methods(tmp_path: Path) -> None:
    records = [kept(tmp_path, 0, np.arange(1, 21) + shift, name) for shift, name in enumerate(("one", "other"))]
    for record in records:
        record.summary["controls"]["ease"]["users"] = 7
    found = contrasts_of(tables_of(records)[0])
    assert {(c.method, c.against) for c in found.found} == {("one", "other")}
    assert "EASE was measured on a sample" in found.notes[0] and found.found[0].difference.users == 20


def test_a_table_without_controls_says_so(tmp_path: Path) -> None:
    record = kept(tmp_path, 0, np.arange(1, 21), "one")
    assert contrasts_of(tables_of([record])[0]).notes == ()
    record.summary["controls"] = {}
    found = contrasts_of(tables_of([record])[0])
    assert found.found == () and [note.split(" (")[0] for note in found.notes] == ["no control was measured"]


def test_figures_of_users_survive_the_file_and_are_what_sklearn_says(tmp_path: Path) -> None:
    ranks = np.array([1, 2, 10, 11, 0, -1], np.int32)
    made = PerUser("s", "p", 4, {"full": ranks, "sampled99": ranks}, {"ease": {"full/hr@10": np.ones(6, np.float32)}})
    made.save(tmp_path)
    read = PerUser.load(tmp_path)
    assert read is not None and (read.split, read.people, read.round) == ("s", "p", 4)
    assert (tmp_path / "users.npz").stat().st_mode & 0o077 == 0
    assert read.controls["ease"]["full/hr@10"].tolist() == [1.0] * 6
    gains = read.metric("full", "ndcg@10")
    assert read.metric("full", "hr@10")[:5].tolist() == [1, 1, 1, 0, 0] and np.isnan(gains[5])
    for rank, gain in zip(ranks[:4], gains[:4], strict=True):
        relevance, score = np.zeros((1, 40)), np.arange(40, 0, -1.0)[None]
        relevance[0, rank - 1] = 1
        assert gain == pytest.approx(ndcg_score(relevance, score, k=10), abs=1e-6)
    assert PerUser.load(tmp_path / "nowhere") is None
    (tmp_path / "users.npz").write_bytes(b"nothing")
    with pytest.raises(FedemError, match="is damaged"):
        PerUser.load(tmp_path)
