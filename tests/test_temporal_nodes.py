"""Under `temporal`, nodes with shards of their own: they say what one process says, and no more than they are asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from federated import FederatedGrid, carry_out_over
from test_temporal_runs import settings, world

from fedem_flwr.config import Config
from fedem_flwr.contract import Method
from fedem_flwr.contract.finding import method_of
from fedem_flwr.contract.serving import Frozen, adapts, way_of
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.protocol.shards import write_shards
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inputs import check_shards, stages_with
from fedem_flwr.runtime.prepared import PreparedRun

NODES = 3


@pytest.mark.parametrize("method", ["fedials", "fedmf"])
@pytest.mark.parametrize("part", ["validation", "test"])
def test_nodes_with_shards_equal_one_process(method: str, part: str, tmp_path: Path) -> None:
    config = settings(method, run={"rounds": 2, "patience": 60.0})
    stages = stages_with(config, world())
    split = stages.choose if part == "validation" else stages.test
    config = config if part == "validation" else config.changed("temporal", rounds=2)
    shards = tmp_path / "shards"
    write_shards(split, NODES, shards)
    there = carry_out_over(FederatedGrid(shards, tmp_path / "there", NODES, policy=NodePolicy.networked()), config)
    here = PreparedRun.create(RunDirectory(tmp_path / "here").create(), config, split)
    carry_out_rounds(here, lambda _: None)
    assert there.losses() == [] and there.grid.policy.smallest_sum > 1
    for one, other in zip(here.directory.read_metrics(), there.lines, strict=True):
        assert one.keys() >= {part} and part in other and len({"validation", "test"} & other.keys()) == 1
        assert one["evaluated_users"] == other["evaluated_users"] == len(split.everybody)
        assert one[part]["full"] == pytest.approx(other[part]["full"], abs=0.02)


@pytest.mark.parametrize(
    ("name", "device", "way"),
    [
        ("fedials", "adapted", "solve"),
        ("fedials-order", "stale", "solve"),
        ("fedmf", "adapted", "adapted"),
        ("fedmf", "stale", "stale"),
        ("fedem", "adapted", "adapted"),
        ("pfedrec", "adapted", "adapted"),
        ("fedcia", "adapted", "stale"),
        ("fedmf-elastic", "adapted", "stale"),
        ("fedfast", "adapted", "stale"),
        ("mf-central", "adapted", "stale"),
    ],
)
def test_what_devices_of_a_method_do(name: str, device: str, way: str) -> None:
    sections = {"group_tables": {"clustering": 1, "rounds": 1, "groups": 2}} if name == "fedmf-elastic" else {}
    rounds = {"run": {"rounds": 6}, "order": {"rounds": 2}}
    method = made(settings(name, temporal={"device": device}, **rounds, **sections))
    assert way_of(method) == way
    assert adapts(method) == (way == "adapted" or (name, device) == ("fedmf", "stale"))


@pytest.mark.parametrize("name", ["fedmf", "fedem", "pfedrec", "fedrap", "fedncf"])
def test_only_private_parts_are_trained(name: str) -> None:
    method = made(settings(name))
    parts, moved = method.parts(), {n for update in Frozen(method).updates(1) for n in update.rates}
    assert moved and all(parts[n].private for n in moved)
    assert all(not part.private or part.up == "none" for part in Frozen(method).parts().values())


def made(config: Config) -> Method:
    return method_of(config, 24)


def test_shards_for_nodes_that_outlive_a_run_are_refused() -> None:
    with pytest.raises(InputError, match=r"protocol 'temporal' trains twice, .*: use --protocol strict here"):
        check_shards(settings("fedials"))
