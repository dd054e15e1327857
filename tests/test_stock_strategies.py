"""Flower's own strategies with our client, and methods that cannot be made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from tampering import ABSENT, BAD, EACH, FAULTS, with_fault
from worlds import ITEMS, USERS, carry_out, carry_out_watched, config_of, largest_difference, node_of

from fedem_flwr.cli import main
from fedem_flwr.config import Config
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.methods.fedmf import FedMF
from fedem_flwr.runtime.inputs import build_strategy, check_method
from strategies.sums import SumsStrategy


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
    assert largest_difference(theirs.server, {"item_table": ours.server["items"]}) <= 1e-5
    assert largest_difference(theirs.nodes, ours.nodes) <= 1e-5
    for line, twin in zip(theirs.lines, ours.lines, strict=True):
        assert line["train_loss"] == pytest.approx(twin["train_loss"], rel=1e-6)
        for metric in ("hr@10", "ndcg@10", "mrr"):
            assert line["test"][metric] == pytest.approx(twin["test"][metric], abs=1e-12)


def test_a_node_that_fails_is_counted_for_flowers_strategies_too(tmp_path: Path) -> None:
    error = FAULTS["error"][0]
    run = with_fault(tmp_path / "run", "stock", error, BAD, method=stock("FedAvg"))
    assert [f["round"] for f in run.outcome.failures] == [2, 3]
    silent = with_fault(tmp_path / "silent", "stock", lambda r, m: [], BAD, method=stock("FedAvg"))
    assert [(f["round"], f["reason"]) for f in silent.outcome.failures] == [(2, ABSENT), (3, ABSENT)]
    assert largest_difference(run.server, silent.server) <= 1e-5  # Flower draws the order of the nodes
    with pytest.raises(FedemError, match=r"no usable reply in round 2: .*RuntimeError: out of memory"):
        with_fault(tmp_path / "all", "stock", error, 0, 1, 2, 3, method=stock("FedAvg"))


@pytest.mark.parametrize("fault", ["error", "silent"])
def test_lost_evaluations_are_counted_and_lines_say_how_many_users_are_left(fault: str, tmp_path: Path) -> None:
    def tamper(reply: Message, message: Message) -> Iterable[Message]:
        evaluation = message.metadata.message_type == "evaluate" and node_of(reply) == BAD
        meant = evaluation and message.content["config"]["server-round"] == 2
        return [reply] if not meant else [] if fault == "silent" else FAULTS["error"][0](reply, message)

    config = config_of("stock", method=stock("FedAvg"), run={"users_per_node": EACH})
    run, _ = carry_out_watched(tmp_path / "run", config, tamper)
    (failure,) = run.outcome.failures
    reason = ABSENT if fault == "silent" else "RuntimeError: out of memory"
    assert (failure["round"], failure["reason"]) == (2, reason)
    assert [line["evaluated_users"] for line in run.lines] == [USERS, USERS - EACH, USERS]


def test_nodes_without_users_are_left_out(tmp_path: Path) -> None:
    """ceil(40 / 27) = 2 users a node leave seven nodes empty; a median must not count their tables."""
    config = config_of("stock", method=stock("FedMedian"), run={"rounds": 1})
    many, _ = carry_out_watched(tmp_path / "many", config, nodes=27)
    assert len(many.outcome.failures) == 14 and all("hosts no users" in f["reason"] for f in many.outcome.failures)
    exact = carry_out(tmp_path / "exact", config.changed("run", users_per_node=2))
    assert largest_difference(many.server, exact.server) == 0
    assert many.lines[0]["evaluated_users"] == USERS


def test_a_stock_strategys_bytes_are_a_nodes(tmp_path: Path) -> None:
    """One table up; one down to train and one to evaluate: the same for one user a node as for ten."""
    size = len("item_table") + ITEMS * 16 * 4
    for each in (1, EACH):
        config = config_of("stock", method=stock("FedAvg"), run={"users_per_node": each, "rounds": 2})
        for line in carry_out(tmp_path / str(each), config).lines:
            assert (line["bytes_up"], line["bytes_down"]) == (size, 2 * size)
            nodes = USERS // each
            assert (line["node_bytes_up"], line["node_bytes_down"]) == (nodes * size, nodes * 2 * size)


PICKY = {"strategy": f"{__name__}:Picky", "client": "table"}


@pytest.mark.parametrize(
    ("method", "match"),
    [
        ({"strategy": "flwr.FedAvgg"}, "did you mean 'FedAvg'"),
        ({"strategy": "fedme"}, "unknown method or strategy 'fedme'; did you mean 'fed(em|mf)'"),
        ({"strategy": "fedmf", "client": "tabel"}, "unknown client 'tabel'; did you mean 'table'"),
        (stock("QFedAvg"), "does not fit the strategy 'flwr.QFedAvg'.*client_learning_rate"),
        (stock("FedAvg", fraction=1), "does not fit the strategy 'flwr.FedAvg'.*'fraction'"),
        (stock("FedTrimmedAvg", beta=2), r"'flwr.FedTrimmedAvg' refuses its \[method.options\]: .*beta.* range"),
        ({**PICKY, "options": {"radius": 0}}, "radius = 0"),
        ({"strategy": "fedmf", "options": {"x": 1}}, "unknown key 'method.options.x'"),
    ],
)
def test_a_method_that_cannot_be_made_is_bad_input(method: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        check_method(config_of("some", method=method))


class Picky(SumsStrategy):
    """A Flower strategy of somebody's own, with an option and mistakes."""

    def __init__(self, config: Config, items: int, radius: float = 1.0, *, mistake: str = "") -> None:
        if not radius:
            raise InputError("radius = 0 lets nothing move")
        if mistake == "value":
            raise ValueError("too many values to unpack")
        super().__init__(config, items, *([items] if mistake == "type" else []))


@pytest.mark.parametrize(("mistake", "kind"), [("type", TypeError), ("value", ValueError)])
def test_a_mistake_in_a_strategy_is_not_bad_options(
    mistake: str, kind: type[Exception], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line and exit code 1; FEDEM_LOG=DEBUG shows where, FEDEM_TRACEBACK lets it through."""
    options = [
        "--method=fedmf",
        f"--set=method.strategy={PICKY['strategy']}",
        "--set=method.client=table",
        f"--set=method.options.mistake={mistake}",
    ]
    with pytest.raises(kind):
        check_method(config_of("some", method={**PICKY, "options": {"mistake": mistake}}))
    shown = []
    for level in ("INFO", "debug"):
        monkeypatch.setenv("FEDEM_LOG", level)
        with pytest.raises(SystemExit) as stopped:
            main(["run", *options])
        assert stopped.value.code == 1
        shown.append(capsys.readouterr().err)
    assert shown[0].startswith(f"fedem: unexpected {kind.__name__}: ") and shown[0].count("\n") == 1
    assert shown[1].endswith(shown[0]) and shown[1].startswith("Traceback") and "in __init__" in shown[1]
    monkeypatch.setenv("FEDEM_TRACEBACK", "1")
    with pytest.raises(kind):
        main(["run", *options])


def test_a_fraction_of_sums_is_refused() -> None:
    with pytest.raises(InputError, match=r"aggregate.fraction.*run.participants"):
        build_strategy(config_of("fedmf", aggregate={"fraction": 0.5}), ITEMS)
    strategy = build_strategy(config_of("fedmf"), ITEMS)
    assert isinstance(strategy, SumsStrategy) and isinstance(strategy.method, FedMF)


def test_a_client_that_does_not_fit_the_strategy_says_so(tmp_path: Path) -> None:
    with pytest.raises(FedemError, match="do not fit together") as raised:
        carry_out(tmp_path / "run", config_of("mixed", method={"strategy": "fedmf", "client": "table"}))
    assert "\n" not in str(raised.value)
