"""A node's policy: sums of too few users and uploads of single users stay on networked nodes, whatever is asked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federated import ANYTHING, FederatedGrid, carry_out_over
from flwr.app import ConfigRecord, Context, Message, RecordDict
from introduced import KEY, NOBODY, RUN, greet, message_with
from worlds import carry_out, carry_out_watched, config_of, largest_difference

from clients.method import MethodClient
from fedem_flwr.client_app import _shards_from
from fedem_flwr.config import Config
from fedem_flwr.contract import Asked
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.messages.wire import pack_arrays, unpack_arrays
from fedem_flwr.models.mf import initial_user
from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.introduction import Introduction
from fedem_flwr.nodes.bounds import DEFAULT, Bound
from fedem_flwr.nodes.host import NodeHost
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.protocol.shards import Federation, write_shards
from fedem_flwr.randomness import keyed_uniform
from fedem_flwr.runtime.inprocess import FIRST_NODE_ID, answer
from fedem_flwr.runtime.inputs import load_interactions, split_of

pytestmark = pytest.mark.usefixtures("hurry")

NODES, EACH, LAST = 4, 4, 3  # the last of four nodes hosts the last of 13 users, and nobody else
WORLD: dict[str, Any] = {
    "data": {"synthetic": {"users": 13}},
    "model": {"dim": 8},
    "local": {"epochs": 1},
    "evaluation": {"every": 100},
    "order": {"rounds": 2, "participants": 1.0, "layers": 1, "heads": 2, "window": 6, "negatives": 5, "map": 4},
    "elastic": {"merge": "item", "groups": 2, "clustering": 2, "rounds": 1, "steps": 1},
}
_ELASTIC = {"table", "cluster", "groups", "curve", "theta", "groups-again"}
PHASES = {
    "fedmf": {"train"},
    "fedmf-sr": {"train"},
    "fedials": {"table"},
    "fedials-order": {"table", "map", "encoder"},
    "fedials-elastic": _ELASTIC,
    "fedmf-elastic": _ELASTIC,
}
STRICT = NodePolicy.networked()


def settings(method: str, **run: Any) -> Config:
    rounds = {"fedials-order": 3, "fedials-elastic": 7, "fedmf-elastic": 7}.get(method, 2)
    return config_of(method, **WORLD, run={"rounds": rounds, "users_per_node": EACH, "patience": 0.0, **run})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, config = tmp_path_factory.mktemp("shards"), settings("fedmf")
    write_shards(split_of(config, load_interactions(config)), NODES, out)
    return out


class CuriousGrid(FederatedGrid):
    """A server that asks the first node, before every message to it, for one user alone and for one user twice.

    Attributes:
        one, twice: its answers by kind of upload, and the last node's to what is asked of everybody in `last`.
        lot: its answers to a draw of some of its users that the server has made such that it hits one.
    """

    def __init__(self, *given: Any, **rest: Any) -> None:
        self.one: dict[str, Message] = {}
        self.twice: dict[str, Message] = {}
        self.last: dict[str, Message] = {}
        self.lot: list[Message] = []
        super().__init__(*given, **rest)

    def _reply(self, message: Message, context: Context) -> Message:
        node, training = message.metadata.dst_node_id - FIRST_NODE_ID, message.metadata.message_type == "train"
        kind = str(message.content["config"]["upload"]) if training else ""
        if training and node == 0:
            self.one[kind] = answer(self._apps[0], asking(message, [1]), context, {})
            self.twice[kind] = answer(self._apps[0], asking(message, [1, 1]), context, {})
        if node == 0 and kind == "cluster" and not self.lot:  # before there are centres
            first, second = np.sort(keyed_uniform(0, "elastic/seeds", torch.arange(EACH)).numpy())[:2]
            lot = asking(message, list(range(EACH)), seeds=float(first + second) / 2)
            self.lot.append(answer(self._apps[0], lot, context, {}))
        reply = super()._reply(message, context)
        if training and node == LAST:
            self.last[kind] = reply
        return reply


def asking(message: Message, users: list[int], **settings: Any) -> Message:
    """The same message about other users, with other settings."""
    asked = copy.copy(message)
    arrays = unpack_arrays(message.content.array_records["arrays"])
    changed = {**arrays, "participants": np.array(users), "uploaders": np.array(users)}
    config = ConfigRecord({**message.content["config"], **settings})
    asked.content = RecordDict({"arrays": pack_arrays(changed), "config": config})
    return asked


def sent(reply: Message) -> bool:
    """Whether any number went up."""
    assert not reply.has_error(), reply.error.reason
    return any(bool(np.any(values)) for values in unpack_arrays(reply.content.array_records["arrays"]).values())


def withheld(reply: Message) -> float:
    """How many participations; then nothing else is said of them either."""
    metrics = dict(reply.content.metric_records["metrics"])
    count = float(metrics.get("withheld", 0.0))  # type: ignore[arg-type]
    assert not count or (metrics["num-examples"] == 0 and metrics.get("loss-total", 0.0) == 0.0)
    return count


# --- sums


@pytest.mark.parametrize("method", PHASES)
def test_a_sum_of_one_user_stays_on_a_networked_node(method: str, shards: Path, tmp_path: Path) -> None:
    grid = CuriousGrid(shards, tmp_path, NODES, policy=STRICT)
    run = carry_out_over(grid, settings(method))
    assert grid.one.keys() == grid.last.keys() == PHASES[method]
    for kind in PHASES[method]:
        assert not sent(grid.one[kind]) and withheld(grid.one[kind]) == 1, kind
    for kind, reply in grid.last.items():
        assert not sent(reply) and withheld(reply) == 1, kind
    assert not any(map(sent, grid.lot)) and len(grid.lot) == ("cluster" in PHASES[method])
    assert all("more than once" in reply.error.reason for reply in grid.twice.values())
    assert run.losses() == [] and [line["withheld"] for line in run.lines] == [1] * len(run.lines)
    alone = run.nodes[f"node-{LAST}"].get("user")  # of methods that keep something
    assert alone is None or np.array_equal(alone[0], initial_user(8, 0.1 if method != "fedmf-sr" else 1.0, 0))
    assert (alone is None) == method.startswith("fedials")


@pytest.mark.parametrize("method", PHASES)
def test_it_goes_where_the_node_was_started_so(method: str, shards: Path, tmp_path: Path) -> None:
    grid = CuriousGrid(shards, tmp_path, NODES, policy=ANYTHING)
    run = carry_out_over(grid, settings(method))
    for reply in (*grid.one.values(), *grid.last.values(), *grid.lot):
        assert sent(reply) and withheld(reply) == 0
    assert all("more than once" in reply.error.reason for reply in grid.twice.values())
    assert run.losses() == [] and not any("withheld" in line for line in run.lines)


@pytest.mark.parametrize("method", ["fedmf", "fedmf-sr", "fedials", "fedials-order"])
def test_a_simulation_of_devices_trains(method: str, tmp_path: Path) -> None:
    whole, parts = (carry_out(tmp_path / str(each), settings(method, users_per_node=each)) for each in (0, 1))
    assert parts.run.nodes == 13 and not any("withheld" in line for line in parts.lines)
    assert largest_difference(whole.server, parts.server) < 1e-3 and parts.outcome.failures == []


def test_a_floor_holds_from_the_start_that_sets_it(shards: Path, tmp_path: Path) -> None:
    """The server does not meet it again, so nothing but the answers themselves can tell."""

    def restart(grid: FederatedGrid, look: int) -> None:
        if look == 2:
            grid.policy, session = NodePolicy.networked(5, single_users=True), grid.there[1]
            grid.start(1)
            grid.there[1] = session

    grid = FederatedGrid(shards, tmp_path, NODES, before=restart, policy=ANYTHING)
    run = carry_out_over(grid, settings("fedmf", rounds=3))
    assert [line.get("withheld", 0) for line in run.lines] == [0, EACH, EACH] and run.losses() == []


def test_who_adds_nothing_to_a_sum_hides_nobody(tmp_path: Path) -> None:
    """Two users, of whom one has a single training item: nothing follows anything there."""
    rows = [f"a,i{item},{item}" for item in range(9)] + [f"b,i{item},{item}" for item in range(3)]
    (tmp_path / "two.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
    data = {"dataset": str(tmp_path / "two.csv"), "min_interactions": 3}
    config = settings("fedials-order").changed("data", **data)
    federation = write_shards(split_of(config, load_interactions(config)), 1, tmp_path)
    facts = {name: getattr(federation.facts, name) for name in ("dataset", "protocol", "users", "items")}
    hosts = ShardHosts(tmp_path / "shards" / "node-0", tmp_path / "state")
    greet(hosts, Introduction(KEY, RUN, (), config.to_toml(), facts, 0))
    client, both = MethodClient(hosts.of(message_with(None), NOBODY), 0), np.arange(2)
    side = client.host.side(0, 0)
    held_back = {}
    for phase in client.method.phases():
        asked = Asked(1, phase.name, side.positions(both), both, {}, {}, side.place, has_times=True)
        held_back[phase.name] = client.permitted(phase, asked)[1]
    assert held_back == {"table": 0, "map": 1, "encoder": 1}, "of so many who add something, nothing goes up"
    with pytest.raises(ValueError, match="more than once"):
        side.positions(np.array([1, 1]))


# --- uploads of single users


def test_a_node_refuses_a_run_that_uploads_single_users_tables(shards: Path, tmp_path: Path) -> None:
    grid = FederatedGrid(shards, tmp_path, NODES, policy=STRICT)
    with pytest.raises(FedemError, match=r"no node answered.*'fedem'.*--allow-individual-uploads") as raised:
        carry_out_over(grid, settings("fedem"))
    assert "\n" not in str(raised.value)


def test_and_one_whose_weights_are_those_of_sums(shards: Path, tmp_path: Path) -> None:
    """Means over all users would be sums; with a table a client they are made of single uploads."""
    config = settings("fedsim").changed("aggregate", weights="average").changed("merge", mode="static")
    with pytest.raises(FedemError, match=r"no node answered.*'fedsim'.*--allow-individual-uploads"):
        carry_out_over(FederatedGrid(shards, tmp_path / "strict", NODES, policy=STRICT), config)
    assert carry_out_over(FederatedGrid(shards, tmp_path / "any", NODES), config).losses() == []


def test_a_node_that_is_started_anew_without_the_flag_refuses_from_then_on(shards: Path, tmp_path: Path) -> None:
    def restart(grid: FederatedGrid, look: int) -> None:
        if look == 2:
            grid.policy, session = STRICT, grid.there[1]
            grid.start(1)
            grid.there[1] = session

    grid = FederatedGrid(shards, tmp_path, NODES, before=restart, policy=ANYTHING)
    run = carry_out_over(grid, settings("fedem", rounds=3))
    last = (3, "4–7")
    assert [(round_, node) for round_, node, _ in run.losses()] == [(2, "4–7"), last, last], "no evaluation either"
    assert all("asks for single users' uploads" in reason for *_, reason in run.losses())


def test_without_federation_nothing_is_refused(shards: Path, tmp_path: Path) -> None:
    run = carry_out_over(FederatedGrid(shards, tmp_path, NODES, policy=STRICT), settings("local-only"))
    assert run.losses() == [] and run.lines[-1]["evaluated_users"] == 12 and run.lines[-1]["metrics_withheld"] == 1


def test_a_stock_strategy_gets_no_table_of_one_user(tmp_path: Path) -> None:
    config = settings("fedmf").changed("method", strategy="flwr.FedAvg", client="table")
    strict, plain = (
        carry_out_watched(tmp_path / name, config, policy=policy)[0].outcome.failures
        for name, policy in {"strict": STRICT, "any": ANYTHING}.items()
    )
    assert plain == [] and [failure["round"] for failure in strict] == [1, 2, 2], "two of training, one of evaluation"
    assert all("hosts too few users" in failure["reason"] for failure in strict)


# --- who has which policy


def test_a_policy_counts_different_users() -> None:
    two, one = NodePolicy.networked(), NodePolicy.simulation()
    assert (two, one) == (NodePolicy(2, False, bounds=DEFAULT), NodePolicy(1, True))
    assert [two.sends(np.array(users)) for users in ([], [5], [5, 5], [5, 6])] == [False, False, False, True]
    assert [one.sends(np.array(users)) for users in ([], [5], [5, 6])] == [False, True, True]
    assert NodePolicy.networked(single_users=True) == NodePolicy(1, True)
    assert NodePolicy.networked(7, single_users=True) == NodePolicy(7, True)
    for wrong in ({"smallest_sum": 0}, {"smallest_sum": 1}):
        with pytest.raises(InputError, match=r"--smallest-sum \d"):
            NodePolicy.networked(**wrong)


def test_what_is_not_said_is_refused_on_a_network(shards: Path, tmp_path: Path) -> None:
    assert NodeHost(tmp_path, 1).policy == NodePolicy.simulation()
    assert ShardHosts(shards / "shards" / "node-0", tmp_path).policy == STRICT
    told = {"shard": "here", "state": "there"}
    for more, policy in (
        ({}, STRICT),
        ({"smallest-sum": 3}, NodePolicy(3, False, bounds=DEFAULT)),
        (
            {"methods": "fedials fedmf", "bounds": "local.epochs=..5 local.negatives=0..", "fixed-groups": True},
            NodePolicy(
                2,
                False,
                ("fedials", "fedmf"),
                (Bound("local.epochs", most=5), Bound("local.negatives", least=0)),
                fixed_groups=True,
            ),
        ),
        ({"allow-individual-uploads": True}, ANYTHING),
        ({"allow-individual-uploads": "no"}, STRICT),
    ):
        hosts: Any = _shards_from(Context(1, 2, {**told, **more}, RecordDict(), {}))
        assert hosts.policy == policy, "of Flower's own SuperNode"


def test_the_server_has_no_say(shards: Path, tmp_path: Path) -> None:
    """The section of the run's configuration is not the node's."""
    federation = Federation.load(shards / "federation")
    facts = {name: getattr(federation.facts, name) for name in ("dataset", "protocol", "users", "items")}
    config = settings("fedials").changed("privacy", individual_uploads=True)
    hosts = ShardHosts(shards / "shards" / "node-0", tmp_path)
    greet(hosts, Introduction(KEY, RUN, (), config.to_toml(), facts, 0))
    assert hosts.of(message_with(None), NOBODY).policy == STRICT
