"""Shards: each holds its own users and nothing else, and gives the whole's results for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import TINY_OPTIONS, config_of

from fedem_flwr.cli import main
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.ranking import evaluate_scores
from fedem_flwr.protocol.shards import Federation, user_range, write_shards
from fedem_flwr.protocol.split import Split
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.node import NodeHost, slice_histories

SPLITS = {protocol: split_of(config, load_interactions(config)) for protocol, config in
          {p: config_of("fedmf", data={"protocol": p}) for p in ("strict", "paper")}.items()}  # fmt: skip


@given(users=st.integers(1, 300), nodes=st.integers(1, 40))
def test_ranges_hold_each_user_once(users: int, nodes: int) -> None:
    ranges = [user_range(users, nodes, node) for node in range(nodes)]
    assert [user for first, end in ranges for user in range(first, end)] == list(range(users))
    sizes = [end - first for first, end in ranges if end > first]
    assert len(set(sizes[:-1])) <= 1 and sizes[-1] <= sizes[0]


@settings(deadline=None, max_examples=25)
@given(protocol=st.sampled_from(["strict", "paper"]), data=st.data())
def test_a_part_is_the_whole_for_its_users(protocol: str, data: Any) -> None:
    whole = SPLITS[protocol]
    first = data.draw(st.integers(0, whole.users - 1))
    end = data.draw(st.integers(first + 1, whole.users))
    part, users = whole.part(first, end), np.arange(first, end)
    assert np.array_equal(part.codes, users) and part.users == whole.users
    scores = torch.randn(len(users), whole.items)
    for which in ("validation", "test"):
        ours = evaluate_scores(part, users, scores, which=which)  # type: ignore[arg-type]
        theirs = evaluate_scores(whole, users, scores, which=which)  # type: ignore[arg-type]
        assert {way: sums.sums for way, sums in ours.items()} == {way: sums.sums for way, sums in theirs.items()}
    assert all(np.array_equal(a, b) for a, b in zip(part.forbidden(users), whole.forbidden(users), strict=True))
    cpu = torch.device("cpu")
    ours_, theirs_ = (vars(slice_histories(split, users, cpu)) for split in (part, whole))
    for name, value in ours_.items():
        assert torch.equal(value, theirs_[name]) if isinstance(value, torch.Tensor) else value == theirs_[name], name
    assert np.array_equal(part.part(first, end).test, part.test), "a part of a part"


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_a_shard_holds_nothing_of_others(protocol: str, tmp_path: Path) -> None:
    whole = SPLITS[protocol]
    federation = write_shards(whole, 4, tmp_path)
    for node, (first, end) in enumerate(federation.shards):
        folder = tmp_path / "shards" / f"node-{node}"
        shard = Split.load(folder)
        assert shard.first == first and len(shard.test) == end - first
        assert shard.user_ids.tolist() == whole.user_ids[first:end].tolist()
        rows = slice(whole.train_offsets[first], whole.train_offsets[end])
        assert np.array_equal(shard.train_items, whole.train_items[rows])
        assert (folder / "user_ids.npy").stat().st_size == 128 + shard.user_ids.nbytes, "no room for others"
    again = Federation.load(tmp_path / "federation")
    assert again.shards == federation.shards and vars(again.facts) == vars(federation.facts)
    assert again.item_ids.tolist() == whole.item_ids.tolist()


def test_a_nodes_history_is_the_same_from_its_shard(tmp_path: Path) -> None:
    from fedem_flwr.runtime.network.host import ShardHost

    whole = SPLITS["strict"]
    write_shards(whole, 3, tmp_path)
    config = config_of("fedials")
    whole.save(tmp_path / "run" / "split")
    (tmp_path / "run" / "config.toml").write_text(config.to_toml())
    for node in range(3):
        host = NodeHost(tmp_path / "run", 3)
        shard = Split.load(tmp_path / "shards" / f"node-{node}")
        own = ShardHost(tmp_path / "state", 1, shard=shard, settings=config)
        ours, theirs = own.history(0), host.history(node)
        assert np.array_equal(ours.users, theirs.users) and np.array_equal(ours.offsets, theirs.offsets)
        assert np.array_equal(ours.values, theirs.values)


@pytest.mark.parametrize("nodes", [0, 41, 30])
def test_impossible_numbers_of_nodes(nodes: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"spread over|equal shards"):
        write_shards(SPLITS["strict"], nodes, tmp_path)


def test_damage_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="describes no federation"):
        Federation.load(tmp_path)
    write_shards(SPLITS["strict"], 2, tmp_path)
    record = tmp_path / "federation" / "federation.json"
    record.write_text(record.read_text()[:40])
    with pytest.raises(InputError, match="make it with `fedem data shard`"):
        Federation.load(tmp_path / "federation")
    told = json.loads((tmp_path / "shards" / "node-1" / "split.json").read_text())
    (tmp_path / "shards" / "node-1" / "split.json").write_text(json.dumps({**told, "first": 39}))
    with pytest.raises(InputError, match="sizes disagree"):
        Split.load(tmp_path / "shards" / "node-1")


def test_the_command_writes_the_layout_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fedem(*words: str) -> int:
        with pytest.raises(SystemExit) as stopped:
            main([*words])
        return int(stopped.value.code or 0)

    data = [option for option in TINY_OPTIONS if option.startswith("--set=data")]
    out = tmp_path / "out"
    assert fedem("data", "shard", *data, "--nodes", "3", "--out", str(out)) == 0
    assert "40 users of synthetic in 3 shards of up to 14" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["federation", "shards"]
    assert sorted(path.name for path in (out / "shards").iterdir()) == ["node-0", "node-1", "node-2"]
    assert fedem("data", "shard", *data, "--out", str(out)) == 2
    assert "holds shards already" in capsys.readouterr().err
    bad = tmp_path / "bad"
    assert fedem("data", "shard", "--dataset", str(tmp_path / "nothing.csv"), "--out", str(bad)) == 2
    assert fedem("data", "shard", *data, "--nodes", "99", "--out", str(bad)) == 2
    assert not bad.exists() or list(bad.iterdir()) == []
