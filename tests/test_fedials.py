"""The strategy and client of fedials: partitions, partial participation, refusals, choices and resuming."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crashes import resumed_after
from tampering import EACH, Fault, assert_refused_and_as_if_silent, put
from worlds import TINY_OPTIONS, USERS, Crossing, carry_out, carry_out_watched, config_of, figures, largest_difference

from fedem_flwr.aggregation.newton import Newton, newton_step
from fedem_flwr.cli import main
from fedem_flwr.config import Config
from fedem_flwr.engine.history import History
from fedem_flwr.engine.ials import FoldIn, Objective, Recency
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.ranking import evaluate_scores
from fedem_flwr.models.mf import initial_table
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.protocol.split import Split
from fedem_flwr.runtime.inputs import adapted, build_strategy, load_interactions, split_of

DIM = 8


def settings(**sections: Any) -> Config:
    base: dict[str, Any] = {"model": {"dim": DIM}, "evaluation": {"every": 1}}
    return config_of("fedials", **(base | sections))


def train(crossings: list[Crossing]) -> list[Crossing]:
    return [c for c in crossings if c.kind == "train"]


# ---- who is where, and who takes part


@pytest.mark.parametrize(("each", "count"), [(0, 0), (1, 1), (2, 0)])
def test_a_reader_is_warned_of_one_user_a_node(each: int, count: int) -> None:
    """A simulation lets every node send; networked nodes have a word in it."""
    strategy: Any = build_strategy(settings(run={"users_per_node": each}), 60)
    warnings = strategy.caveats()
    assert len(warnings) == count
    assert all("users_per_node = 1" in line and "--allow-individual-uploads" in line for line in warnings)


def test_uploads_are_sums_of_all_participants() -> None:
    with pytest.raises(InputError, match=r"aggregate.fraction .*run.participants"):
        build_strategy(settings(aggregate={"fraction": 0.5}), 60)


@pytest.mark.parametrize(
    ("share", "each", "rate"), [(1.0, 0, None), (1.0, 3, None), (0.3, 0, None), (0.3, 7, None), (0.3, 2, 0.2)]
)
def test_the_server_steps_as_written(share: float, each: int, rate: float | None, tmp_path: Path) -> None:
    """With 3 users a node the last hosts one alone; with 2, many are drawn alone: nothing of those goes up.

    With 7, some are drawn who are all but one of those of an earlier round.
    """
    some = {"participants": share, "users_per_node": each, "rounds": 4}
    config = settings(run=some, ials={"rate": rate} if rate else {})
    run, grid = carry_out_watched(tmp_path / "run", config, policy=NodePolicy.networked())
    config, split = run.run.config, run.run.split
    table = initial_table(split.items, DIM, config.model.init_std, config.run.seed).double().numpy()
    counts, gram, lone = np.zeros(split.items), np.zeros((DIM, DIM)), 0
    for step in range(1, 5):
        asked = {c.node: c.arrays["participants"] for c in train(grid.down) if c.round == str(step)}
        assert sum(map(len, asked.values())) == round(share * USERS)
        trained, sums = 0, (np.zeros_like(table), np.zeros_like(counts), np.zeros_like(gram))
        for reply in (c for c in train(grid.up) if c.round == str(step)):
            arrays, users = reply.arrays, asked[reply.node]
            if not len(users):
                assert not any(array.size for array in arrays.values()), "whoever only evaluates sends nothing"
                continue
            if held := reply.metrics.get("withheld", 0):
                lone += held
                assert not len(arrays["items"]) and not np.any(arrays["gram"]) and len(arrays["rows"]) == 0
                assert "loss-total" not in reply.metrics and reply.metrics["num-examples"] == 0
                continue
            trained += len(users)
            np.add.at(sums[0], arrays["items"], arrays["rows"].astype(np.float64))
            np.add.at(sums[1], arrays["items"], arrays["counts"])
            sums[2][:] += arrays["gram"]
        g, c, p = (total * USERS / trained for total in sums)
        eta = rate or max(1 / step, share**0.9)
        counts = c if trained == USERS else counts + (c - counts) / step
        gram = p if trained == USERS else gram + max(1 / step, eta) * (p - gram)
        ials = config.ials
        tensors = (torch.from_numpy(x) for x in (table, g, counts, gram))
        table = newton_step(*tensors, USERS, Newton(ials.weight, ials.ridge, ials.kappa, eta)).numpy()
        alone = int(each == 3)
        assert run.lines[step - 1]["evaluated_users"] == USERS - alone, "whoever is withheld is evaluated all the same"
        assert run.lines[step - 1].get("metrics_withheld", 0) == alone, "but for a node's only user"
    assert sum(line.get("withheld", 0) for line in run.lines) == lone, "what is withheld is counted"
    assert lone == {3: 4, 0: 0, 7: 11}.get(each, lone) and (each != 2 or lone > 4)
    np.testing.assert_allclose(run.server["table"], table, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(run.server["counts"], counts, rtol=1e-12, atol=1e-12)


def test_a_round_of_which_nothing_goes_up_changes_nothing(tmp_path: Path) -> None:
    config = settings(run={"participants": 0.03, "users_per_node": 5, "rounds": 2})  # one user
    run, _ = carry_out_watched(tmp_path / "run", config, policy=NodePolicy.networked())
    start = initial_table(run.run.split.items, DIM, config.model.init_std, 0).numpy()
    np.testing.assert_array_equal(run.server["table"], start.astype(np.float64))
    assert [line["evaluated_users"] for line in run.lines] == [USERS] * 2 and run.outcome.failures == []


# ---- uploads that are refused

FAULTS: list[Fault] = [
    (put("rows", 3, float("nan")), "'rows' is not finite"),
    (put("gram", 0, float("inf")), "'gram' is not finite"),
    (put("items", -1, 60), "'items' are not ascending item codes below 60"),
    (put("items", 0, -1), "'items' are not ascending"),
    (lambda a: a | {"items": a["items"][::-1].copy()}, "'items' are not ascending"),
    (lambda a: a | {"items": np.repeat(a["items"][::2], 2)[: len(a["items"])]}, "'items' are not ascending"),
    (put("counts", 0, EACH + 1), f"'counts' are not whole numbers between 1 and {EACH}"),
    (put("counts", 0, 0), "'counts' are not whole numbers between 1"),
    (lambda a: a | {"counts": a["counts"][1:]}, r"'counts' has \d+ rows for \d+ items"),
    (lambda a: a | {"rows": a["rows"][1:]}, r"'rows' has \d+ rows for \d+ items"),
    (lambda a: a | {"items": np.array(3, np.int32)}, r"'items' has shape \(\)"),
    (lambda a: a | {"rows": a["rows"][:, 1:]}, "'rows' has shape"),
    (lambda a: a | {"gram": a["gram"][1:]}, "'gram' has shape"),
    (lambda a: a | {"items": a["items"].astype(np.int64)}, "'items' has type int64, not int32"),
    (put("rows", 0, 1.1e7), r"'rows' has an entry of 1.1e.07, more than 6.57e.03"),
    (put("rows", 0, 20), r"'rows' has a row of norm [\d.]+, more than [\d.]+: these users have none such"),
    (put("gram", 1, 1e-2), "'gram' is no sum of p pᵀ"),
    (lambda a: a | {"gram": -a["gram"]}, "'gram' is no sum of p pᵀ"),
    (lambda a: a | {"gram": 50 * a["gram"]}, r"'gram' has trace [\d.]+, more than [\d.]+: these users have none such"),
    (put("gram", 0, -1e20), "'gram' is no sum of p pᵀ"),
    (lambda a: {name: x for name, x in a.items() if name != "gram"}, "the upload lacks 'gram'"),
]


def test_bad_uploads_are_named_and_left_out(tmp_path: Path) -> None:
    config = settings(run={"rounds": len(FAULTS) + 1, "users_per_node": EACH})
    assert_refused_and_as_if_silent(tmp_path, config, FAULTS, 2)


# ---- data that do not fit


def test_a_table_wider_than_the_catalogue_is_refused() -> None:
    config = settings(model={"dim": 61})
    with pytest.raises(InputError, match=r"model.dim = 61 is more than the 60 items of synthetic.*--set model.dim=15"):
        adapted(config, split_of(config, load_interactions(config)))
    assert adapted(settings(model={"dim": 60}), split_of(config, load_interactions(config))).model.dim == 60


def test_without_times_there_is_no_recency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor a method that learns from order; the run's directory says so."""
    path = tmp_path / "mine.csv"
    path.write_text("who,what\n" + "".join(f"u{u},i{(u * 7 + j * 3) % 50}\n" for u in range(12) for j in range(11)))

    def fedem(method: str, rounds: int) -> int:
        options = [f"--method={method}", f"--rounds={rounds}", f"--out={tmp_path / method}", "--set=model.dim=8", "-q"]
        with pytest.raises(SystemExit) as stopped:
            main(["run", f"--dataset={path}", *options, *TINY_OPTIONS])
        return int(stopped.value.code or 0)

    assert fedem("fedials", 2) == 0
    written = tomllib.loads((tmp_path / "fedials" / "config.toml").read_text())["fold_in"]
    assert (written["half_life"], written["half_lives"]) == (0.0, [0.0]) and written["ridges"] == [0.5, 1.0, 2.0]
    capsys.readouterr()
    assert fedem("fedials-order", 1600) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert "has no times: use a method without order" in line and not (tmp_path / "fedials-order").exists()
    plain = settings()
    assert adapted(plain, split_of(plain, load_interactions(plain))) == plain, "with times all is as it was"


# ---- settings chosen on validation


def brute_force(split: Split, table: np.ndarray, config: Config) -> list[float]:
    """Mean validation NDCG@10 over the grid, from the whole split at once."""
    history = History(np.arange(split.users), split.items, split.train_offsets, split.train_items)
    fold_in, found = FoldIn(torch.from_numpy(table), Objective(config.ials.weight, config.ials.ridge)), []
    for half_life in config.fold_in.half_lives:
        for ridge in config.fold_in.ridges:
            users = fold_in.of(history, np.arange(split.users), Recency.of(half_life, ridge))
            scores = users @ torch.from_numpy(table).T
            sums = evaluate_scores(split, history.users, scores, which="validation")["full"]
            found.append(sums.means()["ndcg@10"])
    return found


@pytest.mark.parametrize("each", [0, 7])
def test_the_fold_in_is_the_best_of_the_grid_on_validation(each: int, tmp_path: Path) -> None:
    config = settings(run={"rounds": 4, "users_per_node": each}, evaluation={"every": 3})
    run, grid = carry_out_watched(tmp_path / "run", config)
    down = {int(c.round): c for c in train(grid.down)}
    assert [r for r, c in down.items() if c.config["tune-fold-in"]] == [3], "with the table of round 2"
    means = brute_force(run.run.split, down[3].arrays["table"], config)
    tuning: Any = run.outcome.diagnostics["tuning"]
    assert [row["ndcg@10"] for row in tuning["rows"]] == pytest.approx(means, abs=1e-9)
    assert len(means) == 18 and len(set(means)) > 3 and tuning["round"] == 2
    places = [(h, r) for h in config.fold_in.half_lives for r in config.fold_in.ridges]
    best = places[int(np.argmax(means))]
    assert (tuning["chosen"]["half_life"], tuning["chosen"]["ridge"]) == best != (8.0, 1.0)
    used = {r: (c.config["half_life"], c.config["ridge"]) for r, c in down.items()}
    assert used == {1: (8.0, 1.0), 2: (8.0, 1.0), 3: (8.0, 1.0), 4: best}
    assert [("test" in line and line["test"] is not None) for line in run.lines] == [False, True, True, True]


# ---- resuming


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_killed_and_resumed_is_as_if_it_had_not_been(share: float, tmp_path: Path) -> None:
    few = {"half_lives": [0.0, 5.0], "ridges": [1.0]}
    run = {"rounds": 6, "checkpoint_every": 2, "participants": share, "users_per_node": 14}
    config = settings(run=run, fold_in=few)
    whole = carry_out(tmp_path / "whole", config)
    assert whole.outcome.diagnostics["tuning"] is not None
    for last in (1, 4):
        resumed = resumed_after(tmp_path / str(last), config, last)
        assert largest_difference(whole.server, resumed.server) == 0
        assert [figures(line) for line in resumed.lines] == [figures(line) for line in whole.lines]
        assert resumed.outcome.diagnostics == whole.outcome.diagnostics, "what was chosen survives"
        assert resumed.outcome.served_round == whole.outcome.served_round
