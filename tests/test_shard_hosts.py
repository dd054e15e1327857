"""A node that hosts a shard: which runs it takes part in, and what it forgets when one is resumed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from introduced import KEY, NOBODY, RUN, greet, introduction, make_shards, message_with
from worlds import config_of

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.messages.wire import unpack_arrays
from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.introduction import Introduction
from fedem_flwr.network.key_folder import make_certificates
from fedem_flwr.network.trust import ServerTrust, load_server_key
from fedem_flwr.nodes.answering import build_client_app
from fedem_flwr.nodes.state_store import DiskStateStore
from fedem_flwr.protocol.shards import Federation
from fedem_flwr.runtime.inprocess import answer, task_identity


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    make_shards(out)
    return out


@pytest.fixture(scope="module")
def told(shards: Path) -> Introduction:
    return introduction(Federation.load(shards / "federation"))


# --- what a node takes in


def test_a_node_answers_after_it_was_introduced(told: Introduction, shards: Path, tmp_path: Path) -> None:
    trust = tmp_path / "certs"
    make_certificates(trust, 1)
    signing, known = ServerTrust.load(trust).signing_key, load_server_key(trust / "server.pub")
    app = build_client_app(ShardHosts(shards / "shards" / "node-1", tmp_path, known))

    def reply(record: ConfigRecord | None, kind: str = "query") -> Message:
        with task_identity():
            return answer(app, message_with(record, kind=kind), NOBODY, {})

    assert "has not been introduced" in reply(None, "train").error.reason
    assert "does not introduce its run" in reply(None).error.reason
    assert "has not signed" in reply(told.record(None)).error.reason
    assert not (tmp_path / "runs").exists(), "nothing is kept of what is refused"
    arrays = unpack_arrays(reply(told.record(signing)).content.array_records["arrays"])
    assert arrays["users"].tolist() == list(range(14, 28)) and arrays["stored"].tolist() == [0]
    assert arrays["samples"].min() > 0 and set(arrays) == {"users", "samples", "stored"}
    assert "has not been introduced" not in reply(None, "train").error.reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": "rounds ="}, "is no TOML"),
        ({"config": "[run]\nround = 3\n"}, "the server's configuration: unknown key 'run.round'"),
        ({"facts": {"dataset": "ml-1m"}}, "dataset = 'ml-1m', this node's shard has dataset = 'synthetic'"),
        ({"facts": {"protocol": "paper"}}, "protocol = 'paper'"),
        ({"facts": {"users": 41}}, "users = 41"),
        ({"facts": {"items": None}}, "items = None"),
    ],
)
def test_a_node_refuses_another_run(
    changes: dict[str, Any], words: str, told: Introduction, shards: Path, tmp_path: Path
) -> None:
    facts = {**told.facts, **changes.get("facts", {})}
    with pytest.raises(FedemError, match=words) as raised:
        greet(ShardHosts(shards / "shards" / "node-0", tmp_path), replace(told, **{**changes, "facts": facts}))
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_only_the_run_that_was_introduced_last(told: Introduction, shards: Path, tmp_path: Path) -> None:
    def started() -> ShardHosts:
        return ShardHosts(shards / "shards" / "node-0", tmp_path, device="cpu")

    def of(hosts: ShardHosts, run_id: int) -> Any:
        return hosts.of(message_with(None, run_id), NOBODY)

    hosts = started()
    greet(hosts, told)
    for alive in (hosts, started()):  # a node that was started anew finds the run on its disk
        host = of(alive, RUN)
        assert host.settings == config_of("fedmf").changed("run", device="cpu")
        assert host.users(0).tolist() == list(range(14)) and host.run_dir == tmp_path / "runs" / KEY
        with pytest.raises(FedemError, match="has not been introduced"):
            of(alive, 12)
    again = replace(told, run_id=12, resumes=(2, 5, 7))
    greet(hosts, again)
    for alive in (hosts, started()):
        with pytest.raises(FedemError, match="has not been introduced"):
            of(alive, RUN)
        assert of(alive, 12).run_dir == host.run_dir
    with pytest.raises(FedemError, match="from before the run was last resumed: refused"):
        greet(hosts, told)  # recorded, and sent once more
    greet(hosts, replace(told, key="a" * 32, run_id=13))
    assert of(hosts, 12).run_dir == host.run_dir != of(hosts, 13).run_dir, "two runs take turns"


def test_the_state_of_the_newest_runs_is_kept(told: Introduction, shards: Path, tmp_path: Path) -> None:
    hosts = ShardHosts(shards / "shards" / "node-0", tmp_path, keep_runs=2)
    for when, number in enumerate((1, 2, 1, 3)):
        greet(hosts, replace(told, key=f"{number:032x}", run_id=number))
        states(tmp_path, f"{number:032x}", 1)
        os.utime(tmp_path / "runs" / f"{number:032x}" / "run.json", (when, when))  # clocks of files are coarse
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [f"{number:032x}" for number in (1, 3)]


# --- what it forgets


def states(state_dir: Path, key: str, *rounds: int) -> set[int]:
    """Store states of some rounds; returns of which rounds there are any."""
    folder = state_dir / "runs" / key / "nodes"
    for round_ in rounds:
        DiskStateStore(folder).save("node-000000", round_, {"users": np.arange(14)})
    return {int(path.name[6:14]) for path in folder.glob("node-000000/round-*.safetensors")}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=5), st.data())
def test_a_resumption_drops_what_came_after_its_checkpoint(
    told: Introduction, shards: Path, resumes: list[int], data: st.DataObject
) -> None:
    """Also where the node was away during some of them: the earliest checkpoint of those counts."""
    seen = data.draw(st.integers(0, len(resumes)))
    rounds = data.draw(st.sets(st.integers(1, 9), max_size=4))
    with TemporaryDirectory() as name:
        hosts = ShardHosts(shards / "shards" / "node-0", Path(name))
        greet(hosts, replace(told, resumes=tuple(resumes[:seen])))
        assert states(Path(name), KEY, *rounds) == rounds
        stored = greet(hosts, replace(told, resumes=tuple(resumes), run_id=3))
        left = {round_ for round_ in rounds if all(round_ <= after for after in resumes[seen:])}
        assert states(Path(name), KEY) == left and stored == max(left, default=0)
        later = states(Path(name), KEY, 12) and greet(hosts, replace(told, resumes=tuple(resumes), run_id=3))
        assert later == 12, "what has been dropped for is not dropped for again"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"3", b'{"run": 3}', b'{"run": "x", "resumes": 1}', b"\xff",
                                    b'{"run": 1e999, "resumes": 1}'])  # fmt: skip
def test_a_damaged_note_of_a_run(damage: bytes, told: Introduction, shards: Path, tmp_path: Path) -> None:
    """The node waits for another introduction; as it does not know what it has missed, it keeps no doubtful state."""
    greet(ShardHosts(shards / "shards" / "node-0", tmp_path), told)
    states(tmp_path, KEY, 1, 2, 3, 6)
    (tmp_path / "runs" / KEY / "run.json").write_bytes(damage)
    hosts = ShardHosts(shards / "shards" / "node-0", tmp_path)
    with pytest.raises(FedemError, match="has not been introduced"):
        hosts.of(message_with(None), NOBODY)
    assert greet(hosts, told) == 2 and states(tmp_path, KEY) == {1, 2}
    assert hosts.of(message_with(None), NOBODY).config.method.name == "fedmf"


@pytest.mark.parametrize("damage", [b"[run", b"\xff\xfe", b"[run]\nround = 3\n", b"[run]\nrounds = 'x'\n", None])
def test_a_damaged_configuration_of_a_run(
    damage: bytes | None, told: Introduction, shards: Path, tmp_path: Path
) -> None:
    greet(ShardHosts(shards / "shards" / "node-0", tmp_path), told)
    path = tmp_path / "runs" / KEY / "config.toml"
    path.write_bytes(damage) if damage else path.unlink()
    hosts = ShardHosts(shards / "shards" / "node-0", tmp_path)
    with pytest.raises(FedemError, match=r"config\.toml") as raised:
        hosts.of(message_with(None), NOBODY)
    assert "\n" not in str(raised.value)
    greet(hosts, told)
    assert hosts.of(message_with(None), NOBODY).config.method.name == "fedmf"


def test_a_lost_disk_and_a_lost_shard(told: Introduction, shards: Path, tmp_path: Path) -> None:
    hosts = ShardHosts(shards / "shards" / "node-0", tmp_path / "state")
    assert greet(hosts, told) == 0 and states(tmp_path / "state", KEY, 4, 6) and greet(hosts, told) == 6
    assert greet(ShardHosts(shards / "shards" / "node-0", tmp_path / "new"), told) == 0
    with pytest.raises(InputError, match="damaged split"):
        greet(ShardHosts(tmp_path / "nothing", tmp_path / "state"), told)
