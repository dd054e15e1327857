"""A server with genuine keys wants single users' data from a node that was started without the flag for it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from curious import ITEMS, OPEN, USERS, Node, arrays, counts, metrics, refusal, settings

from fedem_flwr.models.mf import initial_user
from fedem_flwr.nodes.answered import ANSWERED_FILE
from fedem_flwr.nodes.policy import NodePolicy

pytestmark = [pytest.mark.attacks, pytest.mark.usefixtures("hurry", "speaking")]
EVERYBODY = list(range(USERS))


def history(node: Node, user: int) -> set[int]:
    split = node.split
    return set(np.asarray(split.train_items[split.train_offsets[user] : split.train_offsets[user + 1]]).tolist())


def met(node: Node, method: str = "fedials", **sections: object) -> Node:
    reply = node.meet(settings(method, **sections))
    assert not reply.has_error(), reply.error.reason
    return node


# --- one user alone


@pytest.mark.parametrize("method", ["fedials", "fedmf"])
def test_one_participant_or_the_same_one_twice(method: str, shard: Path, tmp_path: Path) -> None:
    node = met(Node(shard, tmp_path), method)
    assert "more than once" in refusal(node.train([5, 5]))
    alone = node.train([5])
    assert not any(values.any() for values in arrays(alone).values())
    told = metrics(alone)
    assert told == {"withheld": 1.0, "num-examples": 0}, "no loss, no number of interactions"


def test_without_negatives_the_touched_rows_are_histories(shard: Path, tmp_path: Path) -> None:
    bare = settings("fedmf", local={"negatives": 0, "epochs": 1})
    node = Node(shard, tmp_path / "open", OPEN)
    node.meet(bare)
    touched = np.flatnonzero(arrays(node.train([3]))["items-weight"])
    assert set(touched.tolist()) == history(node, 3), "the attack works where everything goes"
    assert "local.negatives = 0, where this node takes 1 or more" in refusal(Node(shard, tmp_path / "node").meet(bare))


def test_tables_to_single_users_would_tell_their_metrics_apart(shard: Path, tmp_path: Path) -> None:
    """`local-only` uploads nothing, so nodes take part; its users' tables come from nobody."""
    node = met(Node(shard, tmp_path), "local-only")
    table = np.zeros((1, ITEMS, 8), np.float32)
    reply = node.train(EVERYBODY, receivers=np.array([4]), items=table, evaluate=1)
    assert "tables to single users" in refusal(reply)
    kept = node.train([], receivers=np.empty(0, np.int64), items=table[:0], evaluate=1)
    assert metrics(kept)["users"] == USERS
    assert metrics(node.train([7], receivers=np.empty(0, np.int64), items=table[:0])) == {
        "metrics-withheld": 1.0,
        "num-examples": 0,
    }, "nor the loss of one who trains"


# --- metrics


def ordered_table() -> np.ndarray:
    """(m, d) of which every user likes item 0 best, then item 1, and so on: embeddings are as they began."""
    direction = initial_user(8, 0.1, 0).numpy()
    return np.outer(np.linspace(1, 0.1, ITEMS), direction / np.dot(direction, direction))


def rank_of(node: Node, user: int) -> int:
    """Of a user's test item in that order, among what it has not met."""
    split = node.split
    target, out = int(split.test[user]), {*history(node, user), int(split.validation[user])}
    return 1 + len([item for item in range(target) if item not in out])


def isolated(node: Node) -> list[bool]:
    """Of each user whom edges of activity set apart, whether the rank of its held-out item was read."""
    activity, table, read = np.diff(node.split.train_offsets), ordered_table(), []
    for user in np.flatnonzero([(activity == each).sum() == 1 for each in activity]):
        edges = f"{activity[user] - 0.5},{activity[user] + 0.5}"
        told = metrics(node.evaluate(table, **{"group-edges": edges}))
        if told["group-1/users"] == 1:
            read.append(round(1 / told["group-1/test/full/mrr"]) == rank_of(node, int(user)))
    return read


def test_groups_of_activity_set_nobody_apart(shard: Path, tmp_path: Path) -> None:
    everything = met(Node(shard, tmp_path / "open", OPEN), "fedmf")
    assert len(isolated(everything)) >= 2 and all(isolated(everything)), "the attack works where everything goes"
    for policy in (NodePolicy.networked(), NodePolicy.networked(4)):
        node = met(Node(shard, tmp_path / str(policy.smallest_sum), policy), "fedmf")
        assert isolated(node) == []
        sizes = {0, USERS}
        for edge in np.unique(np.diff(node.split.train_offsets))[:-1] + 0.5:
            told = metrics(node.evaluate(ordered_table(), **{"group-edges": str(edge)}))
            low, high = told["group-0/users"], told["group-1/users"]
            sizes |= {int(low), USERS - int(high)}
            assert (
                told["users"] == USERS and min(x for x in (low, high, USERS - low - high) if x) >= policy.smallest_sum
            )
        assert all(b - a >= policy.smallest_sum for a, b in pairwise(sorted(sizes))), "nor do differences of answers"


def test_a_node_of_too_few_users_sends_no_metrics(shard: Path, tmp_path: Path) -> None:
    node = met(Node(shard, tmp_path, NodePolicy.networked(USERS + 1)), "fedials")
    assert metrics(node.evaluate(np.zeros((0, 8)))) == {"metrics-withheld": USERS, "num-examples": USERS}
    told = metrics(node.train(EVERYBODY, evaluate=1, **{"tune-fold-in": "0,1"}))
    assert told == {"metrics-withheld": USERS, "withheld": USERS, "num-examples": 0}


# --- differences


def test_two_sums_that_differ_by_one_user(shard: Path, tmp_path: Path) -> None:
    everything = met(Node(shard, tmp_path / "open", OPEN))
    apart = counts(everything.train(EVERYBODY)) - counts(everything.train(EVERYBODY[1:]))
    assert set(np.flatnonzero(apart).tolist()) == history(everything, 0), "the attack works where everything goes"
    node = met(Node(shard, tmp_path / "node"))
    first = node.train(EVERYBODY)
    held = node.train(EVERYBODY[1:])
    assert metrics(held) == {"withheld": USERS - 1.0, "num-examples": 0} and not arrays(held)["gram"].any()
    for differently in ({"table": 0.2}, {"round_": 2}):
        assert metrics(node.train(EVERYBODY[1:], **differently))["withheld"] == USERS - 1  # type: ignore[arg-type]
    again = node.train(EVERYBODY)
    for name, values in arrays(first).items():
        np.testing.assert_array_equal(arrays(again)[name], values), "a repeated round is answered alike"


def test_the_memory_outlives_the_process_and_the_run(shard: Path, tmp_path: Path) -> None:
    met(Node(shard, tmp_path)).train(EVERYBODY)
    node = met(Node(shard, tmp_path))
    assert metrics(node.train(EVERYBODY[1:]))["withheld"] == USERS - 1
    node.meet(settings("fedmf"), run=2)
    assert metrics(node.train(EVERYBODY[1:]))["withheld"] == USERS - 1
    assert "withheld" not in metrics(node.train(EVERYBODY[2:]))
    (tmp_path / ANSWERED_FILE).write_text("[]")
    assert "answered.json is damaged" in refusal(node.train(EVERYBODY))
    (tmp_path / ANSWERED_FILE).unlink()
    assert "withheld" not in metrics(node.train(EVERYBODY[1:]))


def read_histories(node: Node) -> int:
    """How many histories follow from sums over sets that differ by many: a system of linear equations."""
    draw, asked, seen = np.random.default_rng(0), [], []
    for _ in range(3 * USERS // 2):
        who = np.sort(draw.permutation(USERS)[: int(draw.integers(8, 13))])
        reply = node.train(who.tolist())
        if "withheld" not in metrics(reply):
            asked.append(np.isin(EVERYBODY, who).astype(float))
            seen.append(counts(reply))
    if np.linalg.matrix_rank(np.array(asked).reshape(-1, USERS)) < USERS:
        return 0
    solved = np.linalg.lstsq(np.array(asked), np.array(seen), rcond=None)[0]
    return sum(set(np.flatnonzero(solved[user] > 0.5).tolist()) == history(node, user) for user in EVERYBODY)


def test_many_sums_are_solved_for_single_users_unless_groups_are_fixed(shard: Path, tmp_path: Path) -> None:
    """What the memory of pairs does not stop, as docs/deployment.md says; fixed groups do."""
    assert read_histories(met(Node(shard, tmp_path / "pairs"))) == USERS
    fixed = NodePolicy.networked(4, fixed_groups=True)
    node = met(Node(shard, tmp_path / "fixed", fixed))
    assert read_histories(node) == 0
    groups = node.hosts._hosts[node.run].whole_groups(0)
    assert groups is not None
    whole = [user for user in EVERYBODY if groups[user] in (0, 1)]
    some = node.train([*whole, next(user for user in EVERYBODY if groups[user] == 2)])
    assert metrics(some)["withheld"] == 1 and counts(some).max() <= len(whole)
    assert metrics(some)["num-examples"] == sum(len(history(node, user)) for user in whole)


# --- what a node insists on


@pytest.mark.parametrize(
    ("policy", "sections", "words"),
    [
        ({"methods": ["fedmf"]}, {}, "carries out 'fedials': this node carries out fedmf"),
        ({"bounds": ["model.dim=..4"]}, {}, "model.dim = 8, where this node takes 4 or less"),
        ({"secret_draws": True}, {}, "--require-secret-draws"),
        ({"methods": ["fedials"], "bounds": ["model.dim=4..8"], "secret_draws": True}, {"secret_draws": True}, ""),
    ],
)
def test_a_node_takes_part_in_what_it_was_told_only(
    policy: dict[str, object], sections: dict[str, object], words: str, shard: Path, tmp_path: Path
) -> None:
    """At the introduction, and at every start."""
    config = settings("fedials", privacy=sections).changed("method", name="fedmf")  # which is but a label
    told = Node(shard, tmp_path / "told", NodePolicy.networked(**policy)).meet(config)  # type: ignore[arg-type]
    later = met(Node(shard, tmp_path / "later"), privacy=sections)
    later.hosts.policy, later.hosts._hosts = NodePolicy.networked(**policy), {}  # type: ignore[arg-type]
    for reply in (told, later.train(EVERYBODY)):
        assert words in refusal(reply) if words else not reply.has_error()


def test_numbers_of_interactions_can_be_coarse(shard: Path, tmp_path: Path) -> None:
    exact, coarse = (
        arrays(Node(shard, tmp_path / name, policy).meet(settings("fedials")))["samples"]
        for name, policy in {"exact": None, "coarse": NodePolicy.networked(4, coarse_counts=True)}.items()
    )
    assert (coarse >= exact).all() and len(np.unique(coarse)) <= USERS // 4 < len(np.unique(exact))
    assert np.unique(coarse, return_counts=True)[1].min() >= 4


# --- honest servers


def test_honest_participation_goes_on(shard: Path, tmp_path: Path) -> None:
    """Everybody, round after round; or a few of them, drawn anew, where sets rarely are nearly the same."""
    node = met(Node(shard, tmp_path))
    for round_ in range(1, 4):
        assert "withheld" not in metrics(node.train(EVERYBODY, round_=round_))
    draw, held = np.random.default_rng(1), 0
    for round_ in range(4, 34):
        some = np.sort(draw.permutation(USERS)[: int(draw.integers(5, 8))]).tolist()
        held += "withheld" in metrics(node.train(some, round_=round_))
    assert held == 0
