"""Runs with fewer bits in messages, and with a sample of the devices evaluated between rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federated import FederatedGrid, carry_out_over
from worlds import USERS, Done, WatchedGrid, carry_out, carry_out_watched, config_of, largest_difference

from fedem_flwr.config import Config
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.sample import sampled_users
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.messages.narrow import widened
from fedem_flwr.protocol.shards import write_shards
from fedem_flwr.runtime.checkpoint import Checkpoints
from fedem_flwr.runtime.inputs import build_strategy
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.served import ServedModel

ROUNDS, SAMPLE = 5, 8
ORDER = {"rounds": 3, "map": 8, "participants": 0.3, "layers": 1, "window": 8, "negatives": 8, "tune": False}


def of(name: str, bits: int = 8, each: int = 20, **sections: dict[str, Any]) -> Config:
    """A few rounds; fedials-order has two of the table, one of the map, two of the encoder."""
    run = {"rounds": ROUNDS, "users_per_node": each, "engine": "torch", "checkpoint_every": 1, "checkpoints_kept": 4}
    known: dict[str, dict[str, Any]] = {"order": ORDER} if name == "fedials-order" else {}
    shared: dict[str, dict[str, Any]] = {"model": {"dim": 16}, "fold_in": {"tune": False}}
    return config_of(name, run=run, messages={"bits_down": bits, "bits_up": bits}, **shared, **known, **sections)


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, WatchedGrid]:
    """A run of fedials-order with 8 bits each way."""
    return carry_out_watched(tmp_path_factory.mktemp("order") / "run", of("fedials-order"))


def test_what_crosses_is_narrow_and_what_is_counted_is_what_crosses(order: tuple[Done, WatchedGrid]) -> None:
    done, grid = order
    assert not done.outcome.failures
    kinds = {name: values.dtype.name for message in grid.down for name, values in message.arrays.items()}
    assert {kinds[name] for name in ("table", "rows", "weights", "map-values")} == {"int8"}
    assert kinds["map-items"] == "uint8"
    for line in done.lines[:-1]:
        crossed = [one for one in grid.down if one.kind == "train" and one.round == str(line["round"])]
        size = sum(len(name) + values.nbytes for one in crossed for name, values in one.arrays.items())
        assert line["node_bytes_down"] == size


@pytest.mark.parametrize("name", ["fedials-order", "fedem"])
def test_nodes_with_shards_give_what_one_process_gives(
    name: str, order: tuple[Done, WatchedGrid], tmp_path: Path
) -> None:
    """To the last digit, with the same users on each node: numbers are rounded by keyed draws."""
    here = order[0] if name == "fedials-order" else carry_out(tmp_path / "here", of(name))
    write_shards(here.run.split, here.run.nodes, tmp_path)
    there = carry_out_over(FederatedGrid(tmp_path, tmp_path, here.run.nodes), here.run.config)
    assert not there.outcome.failures and largest_difference(here.server, there.server) == 0
    for line, twin in zip(here.lines, there.lines, strict=True):
        assert line["test"] == twin["test"] and line["node_bytes_up"] == twin["node_bytes_up"]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    done = carry_out(tmp_path, of("fedials-order"))
    Checkpoints(done.run.directory.checkpoint_dir).go_back(3)
    carry_out_rounds(PreparedRun.open(done.run.directory), lambda _: None, resume=True)
    point = Checkpoints(done.run.directory.checkpoint_dir).load()
    assert point is not None and largest_difference(done.server, dict(point.arrays)) == 0


def test_what_is_served_is_what_crossed(order: tuple[Done, WatchedGrid]) -> None:
    """The last evaluation's message, and what a finished run scores with, are the same numbers."""
    done, grid = order
    sent = next(one for one in grid.down if one.kind == "evaluate")
    served = ServedModel.open(done.run)
    served.strategy.restore(done.server)
    arrays, _ = served.message(np.arange(USERS))
    for name, values in widened(sent.arrays).items():
        if name not in ("participants", "uploaders"):
            assert np.array_equal(arrays[name], values), name
    assert not np.array_equal(arrays["rows"], done.server["rows"])


@pytest.mark.parametrize("name", ["fedials", "fedmf", "fedem", "fedncf", "pfedrec"])
def test_narrow_messages_change_little(name: str, tmp_path: Path) -> None:
    """Of methods that send tables, networks or each user's own: nothing is refused, and half of it crosses."""
    wide, half = (carry_out(tmp_path / str(bits), of(name, bits)) for bits in (32, 16))
    assert not half.outcome.failures
    assert half.lines[-1]["node_bytes_down"] < 0.56 * wide.lines[-1]["node_bytes_down"]
    both = [line["validation"]["full"]["mrr"] for line in (wide.lines[-1], half.lines[-1])]
    assert both[0] == pytest.approx(both[1], abs=0.03)


def test_devices_outside_the_sample_are_sent_what_they_train_with(tmp_path: Path) -> None:
    """Every user a node: the sample alone is sent what it scores with, until everybody evaluates the last model."""
    config = of("fedials-order", 8, 1, evaluation={"sample_users": SAMPLE, "every": 1})
    done, grid = carry_out_watched(tmp_path, config)
    chosen = sampled_users(config, USERS)
    assert chosen is not None and not done.outcome.failures
    last = [one for one in grid.down if one.kind == "train" and one.round == str(ROUNDS)]
    trains = {one.node for one in last if len(one.arrays["participants"])}
    assert {one.node for one in last} == trains | {*chosen.tolist()} and trains - {*chosen.tolist()}
    for one in last:
        looks = one.node in chosen
        assert bool(one.config["evaluate"]) == looks == bool(one.arrays["map-items"].size)
        assert one.arrays["rows"].size
    for line in done.lines:
        down = [one for one in grid.down if one.kind == "train" and one.round == str(line["round"])]
        size = sum(len(name) + values.nbytes for one in down for name, values in one.arrays.items())
        assert line["bytes_down"] * USERS == pytest.approx(size)
    assert done.lines[-2]["evaluated_users"] == SAMPLE and done.lines[-1]["evaluated_users"] == USERS


def test_stock_strategies_are_refused() -> None:
    with pytest.raises(InputError, match="messages"):
        build_strategy(of("fedials", 8).changed("method", name="fedavg", strategy="flwr.FedAvg"), 9)
