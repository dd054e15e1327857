"""The rounds loop: one path for every strategy, which is built once a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from federated import FederatedGrid, carry_out_over, config_for
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg
from introduced import KEY
from worlds import USERS, carry_out, config_of, figures, largest_difference

from fedem_flwr.config import Config
from fedem_flwr.experiment.outcome import summarise
from fedem_flwr.network.introduction import NetworkWelcome
from fedem_flwr.network.server import outcome_path, read_outcome
from fedem_flwr.protocol.shards import Federation, write_shards
from fedem_flwr.report.run_directory import RunDirectory, plain
from fedem_flwr.runtime.inprocess import FIRST_NODE_ID, RUN_ID, InProcessGrid, task_identity
from fedem_flwr.runtime.inputs import build_strategy, load_interactions, split_of
from fedem_flwr.runtime.loop import Outcome, group_edges
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.runtime.resumable import Resumable
from fedem_flwr.runtime.stock import StockStrategy

STOCK = {"strategy": "flwr.FedAvg", "client": "table"}
PLAIN = {"strategy": f"{__name__}:Plain", "client": "table"}
built: list[int] = []


class Plain(FedAvg):
    """A strategy of somebody's own that knows Flower's interface alone, but for a word to the reader."""

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        built.append(items)

    def caveats(self) -> list[str]:
        """One."""
        return ["plain as it is"]


class StockGrid(FederatedGrid):
    """Nodes with shards, over which Flower's strategies find their way: nothing is lost."""

    def get_node_ids(self) -> list[int]:
        return [node + FIRST_NODE_ID for node in self.there]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        sent = list(messages)
        queries = [message for message in sent if message.metadata.message_type == "query"]
        self.greeted += [message.metadata.dst_node_id - FIRST_NODE_ID for message in queries]
        return InProcessGrid.send_and_receive(self, sent, timeout=timeout)


@pytest.fixture(autouse=True)
def nothing_built() -> None:
    built.clear()


@pytest.mark.parametrize("name", ["fedem", "fedmf", "fedials", "fedmf-elastic"])
def test_our_strategies_need_no_adapter(name: str) -> None:
    strategy = build_strategy(config_for(name), 60)
    assert isinstance(strategy, Resumable) and not isinstance(strategy, StockStrategy) and strategy.on_receipt


def test_a_plain_subclass_is_built_once_and_gives_what_flowers_own_gives(tmp_path: Path) -> None:
    mine = carry_out(tmp_path / "mine", config_of("mine", method=PLAIN))
    theirs = carry_out(tmp_path / "theirs", config_of("stock", method=STOCK))
    assert largest_difference(mine.server, theirs.server) == largest_difference(mine.nodes, theirs.nodes) == 0
    assert [figures(line) for line in mine.lines] == [figures(line) for line in theirs.lines]
    summary = summarise(mine.run, mine.lines, mine.outcome, {}, None, [])
    assert summary["warnings"] == ["plain as it is"]
    assert len(built) == 1, "by the server, and not again to ask what to warn of"


def test_an_outcome_crosses_processes_with_its_caveats(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path).create()
    outcome = Outcome({"users": 3.0}, [{"round": 1, "node": "a", "reason": "b"}], {"weights": [1.0]}, 5, 2, ["beware"])
    outcome_path(directory).parent.mkdir(parents=True, exist_ok=True)
    outcome_path(directory).write_text(json.dumps(plain(asdict(outcome))))
    assert read_outcome(directory) == outcome


def test_a_stock_run_that_is_resumed_after_its_last_round_meets_its_nodes(tmp_path: Path) -> None:
    """They are new processes, and know of no run; only the last evaluation is missing."""
    config = config_for("fedmf-sr", rounds=2).changed("method", **STOCK)
    write_shards(split_of(config, load_interactions(config)), 4, tmp_path / "shards")
    first = carry_out_over(StockGrid(tmp_path / "shards", tmp_path, 4), config)
    assert first.grid.greeted == [0, 1, 2, 3] and first.outcome.failures == []
    run = PreparedRun.open(RunDirectory(tmp_path / "run"))
    federation = Federation.load(tmp_path / "shards" / "federation")
    again = StockGrid(tmp_path / "shards", tmp_path, 4)
    with task_identity():
        welcome = NetworkWelcome(RUN_ID, KEY, (2,), config.to_toml(), federation)
        outcome = run.server(lambda _: None, resume=True, welcome=welcome)(again)
    assert again.greeted == [0, 1, 2, 3] and outcome.failures == []
    assert outcome.final_sums.keys() == first.outcome.final_sums.keys()
    assert all(value == pytest.approx(first.outcome.final_sums[name]) for name, value in outcome.final_sums.items())


def test_groups_of_users_need_to_know_their_activity() -> None:
    assert group_edges(np.empty(0, np.int64)) == group_edges(np.zeros(USERS, np.int64)) == []
    assert group_edges(np.array([0, 1, 2, 3, 4, 5, 6])) == [2.0, 3.0, 4.0, 5.0]
