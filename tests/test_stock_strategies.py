"""Flower's own strategies with our client, and methods that cannot be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_strategies import BAD, EACH, FAULTS, with_fault
from worlds import ITEMS, USERS, carry_out, config_of, largest_difference

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.runtime.run import build_strategy, check_method
from strategies.fedmf import FedMF


def stock(name: str, **options: Any) -> dict[str, Any]:
    return {"strategy": f"flwr.{name}", "client": "table", "options": options}


@pytest.mark.parametrize("name", ["FedAvg", "FedMedian", "FedAdam", "FedTrimmedAvg"])
def test_flowers_strategies_run_and_learn(name: str, tmp_path: Path) -> None:
    ours = carry_out(tmp_path / "ours", config_of("fedmf-sr", run={"users_per_node": EACH, "rounds": 5}))
    run = {"users_per_node": EACH, "rounds": 5}
    theirs = carry_out(tmp_path / "theirs", config_of("stock", method=stock(name), run=run))
    losses = [line["train_loss"] for line in theirs.lines]
    assert theirs.outcome.failures == [] and losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]
    for line, twin in zip(theirs.lines, ours.lines, strict=True):
        assert line.keys() == twin.keys()
        assert {k: v.keys() for k, v in line["test"].items() if isinstance(v, dict)} == {
            k: v.keys() for k, v in twin["test"].items() if isinstance(v, dict)
        }
        assert all(0 <= line[part]["hr@10"] <= 1 for part in ("validation", "test")) and line["participants"] == USERS


@pytest.mark.parametrize("each", [0, EACH])
def test_fedavg_is_static_replacement_by_the_average(each: int, tmp_path: Path) -> None:
    run = {"users_per_node": each}
    theirs = carry_out(tmp_path / "theirs", config_of("stock", method=stock("FedAvg"), run=run))
    ours = carry_out(tmp_path / "ours", config_of("fedmf-sr", run=run))
    assert largest_difference(theirs.server, {"item_table": ours.server["table"]}) <= 1e-5
    assert largest_difference(theirs.nodes, ours.nodes) <= 1e-5
    for line, twin in zip(theirs.lines, ours.lines, strict=True):
        assert line["train_loss"] == pytest.approx(twin["train_loss"], rel=1e-6)
        for metric in ("hr@10", "ndcg@10", "mrr"):
            assert line["test"][metric] == pytest.approx(twin["test"][metric], abs=1e-12)


def test_a_node_that_fails_is_counted_for_flowers_strategies_too(tmp_path: Path) -> None:
    error = FAULTS["error"][0]
    run = with_fault(tmp_path / "run", "stock", error, BAD, method=stock("FedAvg"))
    assert [f["round"] for f in run.outcome.failures] == [2, 3]
    with pytest.raises(FedemError, match=r"no usable reply in round 2: .*RuntimeError: out of memory"):
        with_fault(tmp_path / "all", "stock", error, 0, 1, 2, 3, method=stock("FedAvg"))


@pytest.mark.parametrize(
    ("method", "match"),
    [
        ({"strategy": "flwr.FedAvgg"}, "did you mean 'FedAvg'"),
        ({"strategy": "fedme"}, "unknown strategy 'fedme'; did you mean 'fed(em|mf)'"),
        ({"strategy": "fedmf", "client": "cohrot"}, "unknown client 'cohrot'; did you mean 'cohort'"),
        (stock("QFedAvg"), "does not fit the strategy 'flwr.QFedAvg'.*client_learning_rate"),
        (stock("FedAvg", fraction=1), "does not fit the strategy 'flwr.FedAvg'.*'fraction'"),
        ({"strategy": "fedmf", "options": {"x": 1}}, "does not fit the strategy 'fedmf'.*'x'"),
    ],
)
def test_a_method_that_cannot_be_made_is_bad_input(method: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        check_method(config_of("some", method=method))


def test_a_fraction_of_sums_is_refused() -> None:
    with pytest.raises(InputError, match=r"aggregate.fraction.*run.participants"):
        build_strategy(config_of("fedmf", aggregate={"fraction": 0.5}), ITEMS)
    assert isinstance(build_strategy(config_of("fedmf"), ITEMS), FedMF)


def test_a_client_that_does_not_fit_the_strategy_says_so(tmp_path: Path) -> None:
    with pytest.raises(FedemError, match="do not fit together") as raised:
        carry_out(tmp_path / "run", config_of("mixed", method={"strategy": "fedmf", "client": "table"}))
    assert "\n" not in str(raised.value)
