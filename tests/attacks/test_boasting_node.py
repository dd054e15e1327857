"""A node that is registered lies in its metrics: it may cost its own users' part, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import Done, WatchedGrid, carry_out_watched, config_of, figures, largest_difference, node_of, prepare

from fedem_flwr.evaluation.cohort import rho_statistics
from fedem_flwr.messages.admission import TooFewContributions
from fedem_flwr.messages.wire import plain_numbers
from fedem_flwr.runtime.inprocess import task_identity
from fedem_flwr.runtime.inputs import build_strategy
from fedem_flwr.runtime.lines import Meter, evaluated_line, trained_line
from strategies.declared import RHO, grid, ranking

pytestmark = [pytest.mark.attacks, pytest.mark.usefixtures("hurry")]
BAD = 2  # the third of four nodes
CONFIG = config_of("fedials", model={"dim": 8}, run={"users_per_node": 10, "rounds": 4}, evaluation={"every": 1})
ROWS = len(CONFIG.fold_in.grid())
BOAST = {"fold-in/users": 10.0, **{f"fold-in/{row:03d}": 10.0 * (row == 3) for row in range(ROWS)}}


def lying(told: dict[str, float], rounds: tuple[int, ...] = (1, 2, 3, 4), *, instead: bool = False) -> Any:
    """One node's metrics are these, or these beside its own."""

    def tamper(reply: Message, message: Message) -> list[Message]:
        kind, round_ = message.metadata.message_type, int(message.metadata.group_id or 0)
        if kind == "train" and node_of(reply) == BAD and round_ in rounds:
            own = {} if instead else dict(reply.content["metrics"])
            reply.content["metrics"] = MetricRecord({**own, **told})
        return [reply]

    return tamper


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return carry_out_watched(tmp_path_factory.mktemp("honest") / "run", CONFIG)[0]


def chosen(run: Done) -> Any:
    return run.outcome.diagnostics["tuning"]


def behind(run: Done) -> float:
    """Users behind the grid."""
    return float(chosen(run)["rows"][0]["users"])


@pytest.mark.parametrize("told", [{"rho/count": 1.0}, {"fold-in/users": 1.0}], ids=str)
def test_a_part_of_a_block_ends_no_run(told: dict[str, float], tmp_path: Path) -> None:
    """It is dropped where nobody asked for it; where somebody did, it costs the node that round."""
    run, _ = carry_out_watched(tmp_path / "run", CONFIG, lying(told, instead=True))
    assert [line["round"] for line in run.lines] == [1, 2, 3, 4]
    assert all("users 20–29" in failure["node"] for failure in run.outcome.failures)
    assert all(line["evaluated_users"] >= 30 for line in run.lines)
    assert behind(run) == 30, "the grid is of the others"


def test_a_grid_that_nobody_asked_for_has_no_voice(honest: Done, tmp_path: Path) -> None:
    run, _ = carry_out_watched(tmp_path / "run", CONFIG, lying(BOAST, (1, 2, 4)))
    assert chosen(run) == chosen(honest) and behind(run) == 40
    assert [figures(line) for line in run.lines] == [figures(line) for line in honest.lines]
    said = [line for line in run.outcome.caveats if "nobody had asked for" in line]
    assert len(said) == 1 and said[0].startswith(f"the node of users 20–29 sent {3 * len(BOAST)} metrics that nobody")


def test_a_grid_counts_for_the_nodes_own_users(honest: Done, tmp_path: Path) -> None:
    asked = 3  # the grid is due with the model of the second round
    run, _ = carry_out_watched(tmp_path / "run", CONFIG, lying({**BOAST, "fold-in/users": 40.0}, (asked,)))
    assert [failure["round"] for failure in run.outcome.failures] == [asked] and behind(run) == 30
    run, _ = carry_out_watched(tmp_path / "own", CONFIG, lying(BOAST, (asked,)))
    means = [row["ndcg@10"] for row in chosen(run)["rows"]]
    before = [row["ndcg@10"] for row in chosen(honest)["rows"]]
    assert all(abs(a - b) <= 10 / 40 for a, b in zip(means, before, strict=True)), "ten of forty users"


def test_hundreds_of_thousands_of_names_are_not_kept(honest: Done, tmp_path: Path) -> None:
    invented = {f"invented-{number}": 1.0 for number in range(20_000)}
    run, _ = carry_out_watched(tmp_path / "run", CONFIG, lying(invented, (2,)))
    assert run.outcome.failures == [] and largest_difference(run.server, honest.server) == 0
    assert [figures(line) for line in run.lines] == [figures(line) for line in honest.lines]
    assert any("sent 20,000 metrics" in line for line in run.outcome.caveats)
    kept = [run.outcome.final_sums, *run.lines, run.outcome.diagnostics]
    assert not any("invented" in str(one) for one in kept)


# --- anything


class Server:
    """A strategy in a round that is evaluated, with a grid that is due, and nodes' replies to it."""

    def __init__(self, path: Path) -> None:
        run = prepare(path, CONFIG)
        self.strategy: Any = build_strategy(CONFIG, run.facts.items)
        self.strategy.users = run.facts.users
        self.replies: list[Message] = []

        def note(reply: Message, message: Message) -> list[Message]:
            if message.metadata.message_type == "train" and message.metadata.group_id == "3":
                self.replies.append(copy.copy(reply))
            return [reply]

        nodes = WatchedGrid(run, note)
        run.server(lambda _: None)(nodes)
        self.strategy.meet(nodes, 10.0)
        self.strategy._begin(2)

    def round(self, told: dict[str, Any]) -> None:
        """The third round, with one node's metrics replaced."""
        strategy, meter = self.strategy, Meter()
        config = ConfigRecord({"persist": 0, "keep-from": "0"})
        list(strategy.configure_train(3, None, config, None))
        replies = []
        for reply in self.replies[BAD - 1 : BAD + 1]:
            mine = copy.copy(reply)
            mine.content = copy.copy(reply.content)
            if node_of(reply) == BAD:
                mine.content["metrics"] = MetricRecord(told)
            replies.append(mine)
        _, record = strategy.aggregate_train(3, meter.received(replies))
        strategy._begin(2)
        sums = plain_numbers(record)
        line = trained_line(3, sums, 40, 0.0)
        finished = evaluated_line(line, sums, "strict", meter.examples)
        assert finished["evaluated_users"] <= 40 and len(sums) < 200
        rho_statistics(sums)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, hurry: None) -> Iterator[Server]:
    with task_identity():
        yield Server(tmp_path_factory.mktemp("server") / "run")


BLOCKS = (RHO, grid("fold-in", range(ROWS)), ranking(), ranking("group-0/", grouped=True))
NAMES = [*(name for block in BLOCKS for name in block.names), "withheld", "num-examples", "loss-total"]
NUMBERS = st.floats() | st.integers() | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2)
SMALL = st.sampled_from([0, 1, 10, -1, 0.5, float("nan"), float("inf"), 1e300, 10**400])


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), NUMBERS | SMALL, max_size=30))
def test_nothing_that_a_node_measures_raises_in_the_server(server: Server, told: dict[str, Any]) -> None:
    server.round(told)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(BLOCKS[:3]), st.data())
def test_nor_do_whole_blocks_with_any_numbers(server: Server, block: Any, data: st.DataObject) -> None:
    told = {name: data.draw(SMALL) for name in block.names}
    with suppress(TooFewContributions):
        server.round({**told, "num-examples": data.draw(SMALL)})
