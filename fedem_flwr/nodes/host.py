"""A Flower node's own side: its users' data, and their private state between rounds.

One node hosts a cohort: users `node · k … node · k + k − 1`. In one process the cohorts stay alive between rounds and
reach the disk at checkpoints. Anywhere else (Ray actors, networked processes) a message may meet a fresh process, so
the state is read from and written to disk in every round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from fedem_flwr.config import Config, load_resolved
from fedem_flwr.contract import Asked, Device, Method
from fedem_flwr.contract.asked import as_tensor
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.decoys import with_decoys
from fedem_flwr.engine.device import resolve_device
from fedem_flwr.engine.history import History
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.errors import FedemError
from fedem_flwr.nodes.answered import ANSWERED_FILE, Answered
from fedem_flwr.nodes.ledger import LEDGER_FILE, Ledger
from fedem_flwr.nodes.policy import NodePolicy, fixed_groups
from fedem_flwr.nodes.sampling import part_of_sample
from fedem_flwr.nodes.secret import SECRET_FILE, secret_of
from fedem_flwr.nodes.slices import slice_histories, slice_history
from fedem_flwr.nodes.state_store import DiskStateStore
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.protocol.shards import user_range
from fedem_flwr.protocol.splits import Split

SPLIT_FOLDER = "split"
STATE_FOLDER = "checkpoint/nodes"
CONFIG_FILE = "config.toml"
STATE_FORMAT = 2  # of what is stored of a cohort: tensors by part
RUN_RECORD = "run"  # of a message: `run-dir` is the run's directory, for nodes that see it and do not know of it


def node_count(users: int, users_per_node: int) -> int:
    """How many nodes host `users` users; 0 a node means all on one."""
    return math.ceil(users / users_per_node) if users_per_node else 1


Opened = tuple[Config, Split]


def _opened(run_dir: Path) -> Opened:
    """A run's immutable inputs: configuration and split."""
    stamps = tuple((run_dir / name).stat().st_mtime_ns for name in (CONFIG_FILE, f"{SPLIT_FOLDER}/split.json"))
    return _read_once(run_dir, stamps)


@lru_cache(maxsize=4)
def _read_once(run_dir: Path, stamps: tuple[int, ...]) -> Opened:
    """Read once a process and version of the files; the arrays of the split are mapped, not read."""
    return load_resolved(run_dir / CONFIG_FILE), Split.load(run_dir / SPLIT_FOLDER)


@dataclass
class NodeHost:
    """Makes the cohort of a node from the run's directory.

    Attributes:
        run_dir: the run's directory; a message carries no data, so every process that hosts nodes sees it.
        nodes: how many nodes the users are spread over.
        threads: torch threads for the process; 0 leaves them.
        resident: keep cohorts in memory between rounds (one process hosts them all) instead of on disk.
        policy: what may go up; a simulation's unless it is said.
        trains: whether users train here; who only scores needs no secret of theirs.
        observe: told by clients what they have received after a round; for diagnostics in one process.
        lasting: whether what is kept between checkpoints survives a crash of the machine; a run may not need that.
    """

    run_dir: Path
    nodes: int
    threads: int = 0
    resident: bool = False
    policy: NodePolicy = field(default_factory=NodePolicy.simulation)
    trains: bool = True
    observe: Callable[[Method, Device, Asked, int], None] | None = None
    lasting: bool = True
    _cohorts: dict[int, tuple[int, Cohort]] = field(default_factory=dict, repr=False)
    _data: dict[int, TrainingItems] = field(default_factory=dict, repr=False)
    _method: tuple[Config, Method] | None = field(default=None, repr=False)
    _answered: dict[int, Answered] = field(default_factory=dict, repr=False)
    _met: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    _sampled: dict[int, np.ndarray | None] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> Config:
        """The run's resolved configuration."""
        return self._inputs[0]

    @property
    def split(self) -> Split:
        """The run's split; a client uses its own users' part only."""
        return self._inputs[1]

    @cached_property  # a host is of one run
    def _inputs(self) -> Opened:
        return _opened(self.run_dir)

    def device(self) -> torch.device:
        """Where this process computes."""
        if self.threads and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        return resolve_device(self.config.run.device)

    def users(self, node: int) -> np.ndarray:
        """(k,) the users that a node hosts."""
        first, end = user_range(self.split.users, self.nodes, node)
        return np.arange(first, end, dtype=np.int64)

    @property
    def method(self) -> Method:
        """The run's method; made once for a configuration."""
        config = self.config
        if self._method is None or self._method[0] is not config:
            self._method = config, method_of(config, self.split.items)
        return self._method[1]

    def side(self, node: int, round_: int) -> Device:
        """The node's side of a run, as a method sees it, with its state as it was after `round_`."""
        split, users = self.split, self.users(node)
        apart = split.histories is not None
        later = self.config.evaluation.test_history == "all" and not apart
        return Device(
            users,
            split.items,
            self.device(),
            split.has_times,
            lambda: self.history(node),
            lambda: self.cohort(node, round_),
            np.asarray(split.validation[split.rows(users)]) if later else None,
            self.policy.smallest_sum,
            self.secret(node),
            partial(self.admits, node),
            (lambda: self.scored(node)) if apart else None,
        )

    def data(self, node: int) -> TrainingItems:
        """What the node's users interacted with; sliced once."""
        if node not in self._data:
            found, secret = slice_histories(self.split, self.users(node), self.device()), self.secret(node)
            self._data[node] = with_decoys(found, secret, self.config.privacy.decoys) if secret else found
        return self._data[node]

    def secret(self, node: int) -> bytes:
        """What keys the draws of the node's users in the seed's place; empty unless `privacy.secret_draws`."""
        return secret_of(self.secret_file(node)) if self.trains and self.config.privacy.secret_draws else b""

    def secret_file(self, node: int) -> Path:
        """Beside the node's state, so that a run that is resumed draws as before."""
        return self.state_dir / node_name(node) / SECRET_FILE

    def ledger(self, node: int) -> Ledger:
        """What the node's users have sent; beside the secret, so that it counts on where a run is resumed."""
        return Ledger(self.secret_file(node).with_name(LEDGER_FILE), len(self.users(node)), self.config.ldp)

    def interactions(self, node: int) -> np.ndarray:
        """(k,) how many training interactions each of the node's users has."""
        offsets, rows = self.split.train_offsets, self.split.rows(self.users(node))
        return np.asarray(offsets[rows + 1]) - np.asarray(offsets[rows])

    def whole_groups(self, node: int) -> np.ndarray | None:
        """(k,) the smallest groups of users that sums may be told apart by; None where any may."""
        least = self.policy.smallest_sum
        return fixed_groups(self.interactions(node), least) if least > 1 else None

    def items_met(self, node: int) -> np.ndarray:
        """(k,) how many training items each of the node's users has met; counted once."""
        if node not in self._met:
            self._met[node] = np.asarray(self.history(node).counts())
        return self._met[node]

    def whole(self, node: int, kind: int, members: np.ndarray) -> np.ndarray:
        """Those of some users, by position, whose fixed group is there as a whole; all, where the policy has no groups.

        Args:
            kind: items that a user must have met to add to the sum; whoever has fewer need not be there.
        """
        if not self.policy.fixed_groups:
            return members
        least, adds = self.policy.smallest_sum, self.items_met(node) >= kind
        group, there = fixed_groups(self.interactions(node), least), np.zeros(len(adds), np.bool_)
        there[members] = True
        complete = (np.bincount(group, adds & ~there) == 0) & (np.bincount(group, adds) >= least)
        return np.asarray(members[complete[group[members]]])

    def admits(self, node: int, kind: int, members: np.ndarray) -> bool:
        """Whether a sum over some of the node's users goes up: enough, in whole groups, and no near twin went before.

        Args:
            kind: see `whole`; sums of different kinds are not compared. members: (k',) positions, each once.
        """
        if self.policy.smallest_sum == 1:
            return True
        if not self.policy.sends(members) or len(self.whole(node, kind, members)) < len(members):
            return False
        if node not in self._answered:
            users, path = self.users(node), self.secret_file(node).with_name(ANSWERED_FILE)
            self._answered[node] = Answered(path, int(users[0]), len(users), self.policy.smallest_sum)
        return self._answered[node].admits(kind, members)

    def sampled(self, node: int) -> np.ndarray | None:
        """(k',) positions of the node's users that rounds are evaluated on; None: all. See `nodes.sampling`."""
        if node not in self._sampled:
            has_data = self.interactions(node) > 0 if self.policy.smallest_sum > 1 else None
            admits = partial(self.admits, node)
            self._sampled[node] = part_of_sample(self.config, self.split.users, self.users(node), has_data, admits)
        return self._sampled[node]

    def history(self, node: int) -> History:
        """The same for clients that keep nothing: a view of the split, of which blocks are read when needed."""
        split = self.split
        history = slice_history(split, self.users(node), split.train_offsets, split.train_items)
        return history if rules_of(split.protocol).distinct else history.distinct()  # which keeps repeated pairs

    def scored(self, node: int) -> History:
        """What the node's users are scored from."""
        return slice_history(self.split, self.users(node), *self.split.known())

    def cohort(self, node: int, round_: int) -> Cohort:
        """The cohort as it was after `round_`; users that never trained start from the common initial values.

        Raises:
            FedemError: the stored state is of other users.
        """
        if node in self._cohorts and self._cohorts[node][0] <= round_:
            return self._cohorts[node][1]
        place, data, method = self.device(), self.data(node), self.method
        stored = self._store().load(node_name(node), round_)
        start = None if stored is None else self._checked(node, stored)
        if start is None:
            return method.cohort(data, method.initial_state(len(data.users), place))
        return method.cohort(data, {name: as_tensor(values, place) for name, values in start.items()})

    def keep(self, node: int, round_: int, cohort: Cohort, *, durable: bool, keep_from: Sequence[int]) -> None:
        """Store the cohort's state after `round_`; `durable` states survive the process.

        What remains is this state, the one before, from which the round can be repeated, and those of `keep_from`, from
        which the run can be resumed.
        """
        if self.resident:
            self._cohorts[node] = (round_, cohort)
        if durable or not self.resident:
            arrays = {name: x.cpu().numpy() for name, x in cohort.state.items()}
            arrays |= {"users": self.users(node), "format": np.array([STATE_FORMAT])}
            self._store().save(node_name(node), round_, arrays, flush=durable or self.lasting)
            self._store().prune(node_name(node), *keep_from, max(*keep_from, round_ - 1))

    def forget(self, node: int) -> None:
        """Drop a resident cohort that may be half trained, as training changes it in place.

        The node then goes on from its newest stored state: that of the last checkpoint, where cohorts are resident.
        """
        self._cohorts.pop(node, None)

    def _checked(self, node: int, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A stored state, which must be of the node's users and of the method's parts."""
        users, here, name = stored.get("users"), self.users(node), node_name(node)
        if users is None or not np.array_equal(users, here):
            raise FedemError(
                f"the stored state of {name} is not of the users that it hosts now ({_range(here)}, stored: "
                f"{_range(users)}): resume with as many nodes as the run was started with"
            )
        found = {part: values for part, values in stored.items() if part not in ("users", "format")}
        wanted = self.method.initial_state(1, torch.device("cpu"))
        fits = found.keys() == wanted.keys() and all(found[n].shape[1:] == wanted[n].shape[1:] for n in wanted)
        if not fits or int(stored.get("format", [1])[0]) != STATE_FORMAT:
            raise FedemError(
                f"the stored state of {name} holds {', '.join(sorted(found)) or 'nothing'}, and the method keeps "
                f"{', '.join(sorted(wanted)) or 'nothing'}: it is of another method or version; start the run again"
            )
        return found

    @property
    def state_dir(self) -> Path:
        """Where private state is kept."""
        return self.run_dir / STATE_FOLDER

    def _store(self) -> DiskStateStore:
        return DiskStateStore(self.state_dir)


def node_name(node: int) -> str:
    """The folder of a node's state."""
    return f"node-{node:06d}"


def _range(users: np.ndarray | None) -> str:
    return "nobody" if users is None or not len(users) else f"{users[0]}–{users[-1]}"
