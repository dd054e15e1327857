"""Shards: each holds its own users' part of the split, and nothing else; the server's description holds nobody's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import config_of

from fedem_flwr.data import Interactions
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.ranking import evaluate_scores, held_out_ranks
from fedem_flwr.network.host import ShardHost
from fedem_flwr.nodes.host import NodeHost
from fedem_flwr.nodes.slices import slice_histories
from fedem_flwr.protocol.shards import Federation, user_range, write_shards
from fedem_flwr.protocol.split import ACCOUNT, SPLIT_SETTINGS, Protocol, Split
from fedem_flwr.protocol.splits import make_split

ARRAYS = ("train_offsets", "train_items", "validation", "test", "negatives", "user_ids", "item_ids")
CPU = torch.device("cpu")
Fedem = Callable[..., tuple[int, str, str]]


def split_from(seed: int, users: int, protocol: Protocol, items: int = 30) -> Split:
    """A split of made-up rows in which pairs may repeat, and users differ in size."""
    rng = np.random.default_rng(seed)
    first = np.concatenate([rng.choice(items, 4, replace=False) for _ in range(users)])
    user = np.concatenate([np.repeat(np.arange(users), 4), rng.integers(0, users, 5 * users)])
    item = np.concatenate([first, rng.integers(0, items, 5 * users)])
    order = rng.permutation(len(user))
    return make_split(
        Interactions(
            name="made-up",
            user=user[order],
            item=item[order],
            rating=None,
            time=rng.integers(0, 50, len(user)).astype(np.float64),
            user_ids=np.array([f"person {number:05d}" for number in range(users)]),
            item_ids=np.array([f"thing {number}" for number in range(items)]),
        ),
        protocol,
        seed=seed,
        min_interactions=3,
    )


splits = st.builds(split_from, st.integers(0, 10**6), st.integers(1, 23), st.sampled_from(["paper", "strict"]))


@pytest.fixture(scope="module")
def small() -> Split:
    return split_from(7, 23, "paper")


def row_of(split: Split, user: int) -> list[Any]:
    """All that a split says of one user."""
    at = user - split.first
    items = split.train_items[split.train_offsets[at] : split.train_offsets[at + 1]]
    held = [int(split.validation[at]), int(split.test[at])]
    return [str(split.user_ids[at]), items.tolist(), *held, split.negatives[at].tolist()]


def shards_of(split: Split, nodes: int) -> list[Split]:
    return [split.part(*user_range(split.users, nodes, node)) for node in range(nodes)]


# --- parts of a split


@settings(deadline=None)
@given(splits, st.integers(1, 30))
def test_users_are_spread_in_order_and_all_are(split: Split, nodes: int) -> None:
    shards = shards_of(split, nodes)
    assert np.concatenate([shard.codes for shard in shards]).tolist() == list(range(split.users))
    sizes = [len(shard.codes) for shard in shards]
    assert sizes == sorted(sizes, reverse=True) and len({size for size in sizes if size}) <= 2
    assert [shard.users for shard in shards] == [split.users] * nodes, "a shard knows how many there are"


@settings(deadline=None)
@given(splits, st.integers(1, 30), st.data())
def test_a_part_has_the_rows_of_its_users(split: Split, nodes: int, data: st.DataObject) -> None:
    for shard in shards_of(split, nodes):
        assert [row_of(shard, user) for user in shard.codes] == [row_of(split, user) for user in shard.codes]
        assert np.array_equal(split.rows(shard.codes), shard.codes)
        assert np.array_equal(shard.rows(shard.codes), np.arange(len(shard.codes)))
        assert np.array_equal(shard.item_ids, split.item_ids)
        assert shard.train_offsets[0] == 0 and shard.train_offsets[-1] == len(shard.train_items)
    first = data.draw(st.integers(0, split.users))
    end = data.draw(st.integers(first, split.users))
    inner = data.draw(st.integers(first, end))
    again, once = split.part(first, end).part(inner, end), split.part(inner, end)
    assert all(np.array_equal(getattr(again, name), getattr(once, name)) for name in (*ARRAYS, "first"))


@settings(max_examples=30, deadline=None)
@given(splits, st.integers(1, 5), st.integers(0, 99))
def test_a_part_answers_as_the_whole_for_its_users(split: Split, nodes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for shard in shards_of(split, nodes):
        some = rng.choice(shard.codes, rng.integers(0, len(shard.codes) + 1), replace=False).astype(np.int64)
        for users in (shard.codes, some):
            scores = torch.from_numpy(rng.choice([0.0, 0.5, 1.0, 2.0, np.nan], (len(users), split.items)))
            for which in ("validation", "test"):
                mine, whole = (held_out_ranks(x, users, scores, which=which) for x in (shard, split))
                assert all(torch.equal(mine[way], whole[way]) for way in ("full", "sampled99"))
                sums = [evaluate_scores(x, users, scores, which=which) for x in (shard, split)]
                assert sums[0] == sums[1]
            for mine, whole in zip(shard.forbidden(users), split.forbidden(users), strict=True):
                assert np.array_equal(mine, whole)
            mine, whole = (vars(slice_histories(x, users, CPU)) for x in (shard, split))
            assert (
                mine.pop("decoys") is whole.pop("decoys") is None and mine.pop("secret") == whole.pop("secret") == b""
            )
            assert all(torch.equal(torch.as_tensor(mine[name]), torch.as_tensor(whole[name])) for name in whole)
        for mine, whole in zip(shard.forbidden(), split.forbidden(shard.codes), strict=True):
            assert np.array_equal(mine, whole), "all users are those that are here"
        held = np.zeros(split.users, bool)
        held[shard.codes] = True
        expected = split.train_csr().toarray() * held[:, None]
        assert np.array_equal(shard.train_csr().toarray(), expected), "rows of users, not of places"


class Whole(NodeHost):
    """The host of all nodes, over a split in memory."""

    held: Split

    @property
    def split(self) -> Split:
        return self.held


@settings(deadline=None)
@given(splits, st.integers(1, 5))
def test_a_node_with_a_shard_hosts_what_it_would_of_the_whole(split: Split, nodes: int) -> None:
    whole = Whole(Path(), nodes)
    whole.held = split
    for node, shard in enumerate(shards_of(split, nodes)):
        if not len(shard.codes):
            continue
        host = ShardHost(Path(), 1, shard=shard, settings=config_of("fedials"))
        assert np.array_equal(host.users(0), whole.users(node))
        mine, theirs = host.history(0), whole.history(node)
        assert mine.items == theirs.items
        for name in ("users", "offsets", "values"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name


# --- folders


@settings(max_examples=20, deadline=None)
@given(splits, st.integers(1, 8))
def test_a_shard_folder_holds_its_users_and_nobody_else(split: Split, nodes: int) -> None:
    with TemporaryDirectory() as name:
        out, each = Path(name) / "out", -(-split.users // nodes)
        if each * (nodes - 1) >= split.users:  # the last would have nobody
            with pytest.raises(InputError, match=r"cannot be spread|make \d+ equal shards"):
                write_shards(split, nodes, out)
            assert not out.exists()
            return
        federation = write_shards(split, nodes, out)
        known = Federation.load(out / "federation")
        assert known.shards == federation.shards == tuple(user_range(split.users, nodes, at) for at in range(nodes))
        assert {name: getattr(known.facts, name) for name in SPLIT_SETTINGS} == {
            name: getattr(split, name) for name in SPLIT_SETTINGS
        }
        for at, folder in enumerate(sorted((out / "shards").iterdir(), key=lambda path: int(path.name[5:]))):
            assert folder.name == f"node-{at}"
            assert {path.name for path in folder.iterdir()} == {f"{name}.npy" for name in ARRAYS} | {"split.json"}
            shard, part = Split.load(folder, mmap=False), split.part(*known.shards[at])
            assert shard.first == part.first and shard.users == split.users
            assert all(np.array_equal(getattr(shard, name), getattr(part, name)) for name in ARRAYS)
            rows = len(part.codes)
            assert {name: len(np.load(folder / f"{name}.npy")) for name in ARRAYS[2:6]} == dict.fromkeys(
                ARRAYS[2:6], rows
            )
            assert len(np.load(folder / "train_items.npy")) == sum(len(row_of(split, u)[1]) for u in part.codes)
            found = labels_in(folder, split)
            assert found == set(part.user_ids.tolist())
        assert labels_in(out / "federation", split) == set()
        assert {path.name for path in (out / "federation").iterdir()} == {"federation.json", "item_ids.npy"}


def labels_in(folder: Path, split: Split) -> set[str]:
    """Which users' labels stand in a folder's bytes, one way or another."""
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    labels = set(split.user_ids.tolist())
    return {label for label in labels if any(label.encode(coding) in content for coding in ("utf-8", "utf-32-le"))}


def test_a_folder_from_before_there_were_shards(small: Split, tmp_path: Path) -> None:
    """A whole split's folder says nothing of a first user, then and now."""
    small.save(tmp_path / "whole")
    told = json.loads((tmp_path / "whole" / "split.json").read_text())
    assert set(told) == {*SPLIT_SETTINGS, ACCOUNT}
    (tmp_path / "whole" / "split.json").write_text(json.dumps({name: told[name] for name in SPLIT_SETTINGS}))
    assert Split.load(tmp_path / "whole").first == 0
    (tmp_path / "whole" / "split.json").write_text(json.dumps(told | {"first": 0}))
    assert Split.load(tmp_path / "whole").first == 0
    small.part(5, 9).save(tmp_path / "part")
    of_part = json.loads((tmp_path / "part" / "split.json").read_text())
    assert of_part["first"] == 5 and ACCOUNT not in of_part, "a node does not learn what became of the others' rows"


# --- what is damaged


def one_line(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(InputError) as raised:
        call()
    assert "\n" not in str(raised.value) and all(word in str(raised.value) for word in words), raised.value


@pytest.fixture(scope="module")
def written(small: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written")
    write_shards(small, 4, out)
    return out


@pytest.mark.parametrize("first", [20, -1, 10**9, 1.5, "6", None, [6], float("nan"), float("inf")])
def test_a_shard_of_impossible_users(first: Any, written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "shards" / "node-1", tmp_path / "shard")
    told = json.loads((tmp_path / "shard" / "split.json").read_text())
    (tmp_path / "shard" / "split.json").write_text(json.dumps(told | {"first": first}))
    one_line(lambda: Split.load(tmp_path / "shard"), "damaged split", "make it again")


@pytest.mark.parametrize("name", [f"{name}.npy" for name in ARRAYS] + ["split.json"])
def test_a_shard_that_is_cut_short_or_lacks_a_file(name: str, written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "shards" / "node-1", tmp_path / "shard")
    file, whole = tmp_path / "shard" / name, (written / "shards" / "node-1" / name).read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        file.write_bytes(whole[:length])
        one_line(lambda: Split.load(tmp_path / "shard"), "damaged split", str(tmp_path))
    np.save(tmp_path / "scalar.npy", np.array(3))
    file.write_bytes((tmp_path / "scalar.npy").read_bytes())
    one_line(lambda: Split.load(tmp_path / "shard"), "damaged split")
    file.unlink()
    one_line(lambda: Split.load(tmp_path / "shard"), "damaged split", name)


def test_a_federation_that_is_cut_short_or_lacks_a_file(written: Path, tmp_path: Path) -> None:
    for name in ("federation.json", "item_ids.npy"):
        shutil.copytree(written / "federation", tmp_path / name)
        file, whole = tmp_path / name / name, (written / "federation" / name).read_bytes()
        for length in range(len(whole.rstrip()) - 1):
            file.write_bytes(whole[:length])
            one_line(lambda folder=file.parent: Federation.load(folder), "no federation", "`fedem data shard`")  # type: ignore[misc]
        file.unlink()
        one_line(lambda folder=file.parent: Federation.load(folder), "no federation")  # type: ignore[misc]
    one_line(lambda: Federation.load(tmp_path / "nowhere"), "no federation", "nowhere")


@pytest.mark.parametrize(
    "change",
    [
        {"shards": 3},
        {"shards": [3]},
        {"shards": [[0, 6, 12]]},
        {"shards": [["a", "b"]]},
        {"shards": [[0, float("inf")]]},
        {"shards": []},
        {"shards": [[0, 6], [6, 12], [12, 18]]},
        {"shards": [[0, 6], [5, 12], [12, 23]]},
        {"shards": [[0, 6], [7, 12], [12, 23]]},
        {"shards": [[0, 23], [23, 20], [20, 23]]},
        {"items": 4},
        {"items": "30"},
        {"users": 24},
        {"users": None},
    ],
    ids=str,
)
def test_a_federation_that_contradicts_itself(change: dict[str, Any], written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "federation", tmp_path / "federation")
    told = json.loads((tmp_path / "federation" / "federation.json").read_text())
    (tmp_path / "federation" / "federation.json").write_text(json.dumps(told | change))
    one_line(lambda: Federation.load(tmp_path / "federation"), "federation", "make it")


@pytest.mark.parametrize(
    ("nodes", "words"), [(0, "1 to 23"), (24, "1 to 23"), (22, "12 equal shards"), (9, "--nodes 8")]
)
def test_numbers_of_nodes_that_leave_some_without_users(nodes: int, words: str, small: Split, tmp_path: Path) -> None:
    one_line(lambda: write_shards(small, nodes, tmp_path / "out"), words)
    assert not (tmp_path / "out").exists()
