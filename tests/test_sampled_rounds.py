"""Rounds of a run with many users are evaluated on a sample of them; what is reported is measured on everybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import USERS, Done, carry_out, carry_out_watched, config_of, figures, prepare

from fedem_flwr.config import Config
from fedem_flwr.evaluation.controls import measure_controls
from fedem_flwr.evaluation.sample import is_candidate, sample_size, sampled_users
from fedem_flwr.experiment.controls import local_only
from fedem_flwr.experiment.outcome import summarise
from fedem_flwr.experiment.remarks import notes_of, opening
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.nodes.sampling import METRICS, part_of_sample
from fedem_flwr.report.selection import best_line, compared, partial_text
from fedem_flwr.runtime.checkpoint import Checkpoints
from fedem_flwr.runtime.prepared import PreparedRun

SAMPLE, ROUNDS = 12, 6


def sampled(name: str, size: int = SAMPLE, **run: Any) -> Config:
    """Few users, of whom fewer are looked at; nothing is tuned, so that models do not depend on whom."""
    settings = {"rounds": ROUNDS, "checkpoint_every": 2} | run
    return config_of(name, run=settings, evaluation={"sample_users": size}, fold_in={"tune": False})


def summary(done: Done) -> dict[str, Any]:
    return summarise(done.run, done.lines, done.outcome, {}, None, [])


def test_the_sample_is_of_the_seed_and_only_of_many_users() -> None:
    config = sampled("fedials")
    chosen = sampled_users(config, 1000)
    assert chosen is not None and len(np.unique(chosen)) == SAMPLE and np.array_equal(chosen, np.sort(chosen))
    np.testing.assert_array_equal(chosen, sampled_users(sampled("fedmf"), 1000))
    assert not np.array_equal(chosen, sampled_users(sampled("fedials", seed=1), 1000))
    assert sample_size(config, 2 * SAMPLE) == SAMPLE and sample_size(config, 2 * SAMPLE - 1) == 0
    assert sample_size(sampled("fedials", 0), 10**6) == 0
    assert sample_size(config.changed("data", protocol="paper"), 10**6) == 0


@pytest.mark.parametrize(("rounds", "every", "expected"), [(30, 1, 5), (30, 5, 3), (3, 1, 3), (100, 3, 5)])
def test_few_rounds_are_candidates_and_each_is_evaluated(rounds: int, every: int, expected: int) -> None:
    chosen = [r for r in range(1, rounds + 1) if is_candidate(r, rounds, every)]
    assert expected <= len(chosen) <= expected + 1 and chosen[-1] == rounds
    assert all(r % every == 0 for r in chosen[:-1])


def test_a_stateless_method_measures_the_chosen_round_again_on_everybody(tmp_path: Path) -> None:
    whole = carry_out(tmp_path / "whole", sampled("fedials", 0))
    done, grid = carry_out_watched(tmp_path / "some", sampled("fedials"))
    chosen = done.outcome.served_round
    assert chosen < ROUNDS, "else nothing is measured again; the world must be another"
    for line, twin in zip(done.lines, whole.lines, strict=True):
        if line["round"] in (chosen, ROUNDS):
            assert line["evaluated_users"] == USERS and line["sample"]["evaluated_users"] == SAMPLE
            assert line["test"] == twin["test"] and line["validation"] == twin["validation"]
        else:
            assert line["evaluated_users"] == line["sampled_users"] == SAMPLE and "sample" not in line
    scores = [line.get("sample", line)["validation"]["ndcg@10"] for line in done.lines]
    assert chosen == 1 + int(np.argmax(scores)), "by the sample"
    shown = summary(done)
    assert shown["served_round"] == shown["metrics"]["best_validation"]["round"] == chosen
    assert shown["metrics"]["best_validation"]["ndcg@10"] == whole.lines[chosen - 1]["test"]["ndcg@10"]
    assert partial_text(done.lines, USERS) == ""
    assert {len(message.arrays["participants"]) for message in grid.down if message.kind == "train"} == {USERS}
    np.testing.assert_array_equal(done.server["table"], whole.server["table"])
    for message in grid.down:  # who is in the sample is in no message
        assert all(np.asarray(values).size != SAMPLE for values in message.arrays.values())


def test_a_method_with_private_state_has_candidates_that_everybody_evaluates(tmp_path: Path) -> None:
    whole = carry_out(tmp_path / "whole", sampled("fedmf", 0, rounds=10))
    done = carry_out(tmp_path / "some", sampled("fedmf", rounds=10))
    for line, twin in zip(done.lines, whole.lines, strict=True):
        if line["round"] % 2 == 0:
            assert line["test"] == twin["test"] and line["sample"]["evaluated_users"] == SAMPLE
        else:
            assert line["evaluated_users"] == SAMPLE and "sample" not in line
    best = best_line(done.lines, "best_validation")
    assert best["evaluated_users"] == USERS
    assert best["sample"]["validation"]["ndcg@10"] == max(
        line["sample"]["validation"]["ndcg@10"] for line in done.lines if "sample" in line
    )


@pytest.mark.parametrize(("name", "each"), [("fedials", 1), ("fedmf", 7)])
def test_the_spread_over_nodes_changes_nothing(name: str, each: int, tmp_path: Path) -> None:
    one = carry_out(tmp_path / "one", sampled(name, rounds=3))
    spread = carry_out(tmp_path / "spread", sampled(name, rounds=3, users_per_node=each))
    assert not spread.outcome.failures
    for line, twin in zip(map(compared, one.lines), map(compared, spread.lines), strict=True):
        assert line["evaluated_users"] == twin["evaluated_users"] == SAMPLE
        for part in ("validation", "test"):
            assert line[part]["full"]["mrr"] == pytest.approx(
                twin[part]["full"]["mrr"], abs=0.01
            )  # sums in another order


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    done = carry_out(tmp_path, sampled("fedials", checkpoints_kept=3))
    Checkpoints(done.run.directory.checkpoint_dir).go_back(4)
    again = carry_out_rounds(PreparedRun.open(done.run.directory), lambda _: None, resume=True)
    assert [figures(line) for line in done.run.directory.read_metrics()] == [figures(line) for line in done.lines]
    assert again.served_round == done.outcome.served_round


def test_a_stock_strategy_looks_at_the_sample_between_its_candidates(tmp_path: Path) -> None:
    method = {"strategy": "flwr.FedAvg", "client": "table"}
    run = {"rounds": 10, "users_per_node": 4}
    config = config_of("stock", method=method, run=run, evaluation={"sample_users": SAMPLE})
    done = carry_out(tmp_path, config)
    assert [line["evaluated_users"] for line in done.lines] == [SAMPLE, USERS] * 5 and not done.outcome.failures


def test_a_node_with_a_policy_sends_no_sums_that_differ_by_too_few() -> None:
    config, hosted = sampled("fedials"), np.arange(100, 200)
    part = part_of_sample(config, 400, hosted, None, lambda *_: False)
    assert part is not None and set(hosted[part]) == set(sampled_users(config, 400).tolist()) & set(hosted.tolist())  # type: ignore[union-attr]
    asked: list[tuple[int, list[int]]] = []

    def admits(kind: int, members: np.ndarray) -> bool:
        asked.append((kind, members.tolist()))
        return True

    has_data = np.ones(100, np.bool_)
    has_data[part[0]] = False
    np.testing.assert_array_equal(part_of_sample(config, 400, hosted, has_data, admits), part)
    assert asked == [(METRICS, np.flatnonzero(has_data).tolist()), (METRICS, part[1:].tolist())]
    assert part_of_sample(config, 400, hosted, has_data, lambda _, who: len(who) > 50) is None, "then everybody"


def test_a_policy_that_lets_no_part_go_up_gets_metrics_of_all_its_users(tmp_path: Path) -> None:
    done, grid = carry_out_watched(tmp_path, sampled("fedials", users_per_node=4), policy=NodePolicy.networked(4))
    told = [reply.metrics["users"] for reply in grid.up if "users" in reply.metrics]
    assert told and set(told) == {4}, "no node has four users in the sample and four that are not"
    chosen = sampled_users(done.run.config, USERS)
    assert chosen is not None
    assert done.lines[0]["evaluated_users"] == 4 * len(np.unique(chosen // 4)) < USERS, (
        "nodes without any are not asked"
    )
    assert done.lines[-1]["evaluated_users"] == USERS


def test_what_a_sample_means_is_said(tmp_path: Path) -> None:
    run = prepare(tmp_path, sampled("fedials"))
    assert f"on {SAMPLE} of {USERS} users" in opening(run)
    controls = {"item_knn": {"users": SAMPLE, "ndcg@10": 0.1}, "ease": {"skipped": "too large"}, "random": {}}
    notes = notes_of(run, controls)
    assert f"item-kNN on those {SAMPLE} users." in notes[-2] and notes[-1] == "Control ease was left out: too large."
    assert not any("drawn by the seed" in note for note in notes_of(prepare(tmp_path / "0", sampled("fedials", 0)), {}))


def test_controls_on_the_sample_say_so_and_are_those_users_figures(tmp_path: Path) -> None:
    split = prepare(tmp_path, sampled("fedmf", rounds=2)).split
    alone = local_only(split, sampled("fedmf", rounds=2), lambda _: None)
    assert alone["users"] == SAMPLE and "users" not in local_only(split, sampled("fedmf", 0, rounds=2), lambda _: None)
    chosen = sampled_users(sampled("fedmf"), split.users)
    assert chosen is not None
    some, everybody = measure_controls(split, 100.0, sample=chosen), measure_controls(split, 100.0)
    for name in ("item_knn", "ease"):
        assert some.results[name]["users"] == SAMPLE and "users" not in everybody.results[name]
        values = some.per_user[name]["full/ndcg@10"]
        assert np.flatnonzero(np.isfinite(values)).tolist() == chosen.tolist()
        assert some.results[name]["full"]["ndcg@10"] == pytest.approx(float(values[chosen].mean()))
    np.testing.assert_array_equal(
        some.per_user["ease"]["full/ndcg@10"][chosen], everybody.per_user["ease"]["full/ndcg@10"][chosen]
    )
    assert some.results["popularity"] == everybody.results["popularity"], "which takes no sample"
