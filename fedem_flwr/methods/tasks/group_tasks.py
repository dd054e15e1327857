"""The phases of merging by groups that do not depend on how a table is trained: centres, the curve of ρ, and Θ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.aggregation.adam import ServerAdam
from fedem_flwr.aggregation.groups import moved_centres
from fedem_flwr.contract import Asked, Device, Field, Gathered, State, Task, Upload
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.group_tables import Evidence, centre_sums, curves
from fedem_flwr.engine.history import IntArray
from fedem_flwr.methods.tasks.groups import GroupMerging
from fedem_flwr.models.adapter import Adapter
from fedem_flwr.randomness import keyed_integers, keyed_uniform


class Merged(Protocol):
    """What these phases ask of a method."""

    merging: GroupMerging
    max_norm: float

    def sends(self) -> Sequence[str]:
        """Names of the state that goes down."""

    def embeddings(self, device: Device, asked: Asked) -> tuple[Tensor, int, float]:
        """(k', d) of the participants, of what they train on; with the number of samples, and a loss."""

    def evidence(self, device: Device, asked: Asked) -> Evidence:
        """Held-out items and groups of the participants."""

    def remember_curve(self, device: Device, asked: Asked, curve: Tensor) -> None:
        """Keep the participants' curves (k', R) where clients keep anything."""


_ROUNDING = 1e-5  # of sums of floats


class GroupTask(Task):
    """A phase of a method with merging."""

    def __init__(self, method: Merged) -> None:
        self.method, self.merging = method, method.merging

    def needs(self) -> Sequence[str]:
        """Everything: users choose their group in every phase."""
        return self.method.sends()


class Cluster(GroupTask):
    """A step of spherical k-means: sums of embeddings by group."""

    def fields(self) -> dict[str, Field]:
        """Sums of unit vectors, and how many."""
        groups, dim = self.merging.config.group_tables.groups, self.merging.config.model.dim
        return {"centres": Field((groups, dim)), "members": Field((groups,), "int32", count=True)}

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """By keyed lot among a few of the users where there are no centres yet."""
        config = self.merging.config
        groups, seed = config.group_tables.groups, Draws(config.run.seed, device.secret).own_seed
        users, samples, loss = self.method.embeddings(device, asked)
        if asked.has("centres"):
            group = (users @ asked.tensor("centres").T).argmax(1)
        else:
            codes = torch.from_numpy(np.asarray(device.users[asked.who])).to(users.device)
            drawn = keyed_uniform(seed, "elastic/seeds", codes) < asked.number("seeds")
            chosen = np.asarray(asked.who)[drawn.cpu().numpy()]
            # How many are drawn is the server's word: whom it leaves out is held against what went up before.
            if not device.admits(self.least_items, chosen):
                drawn = torch.zeros_like(drawn)
            users, group = users[drawn], keyed_integers(groups, seed, "elastic/groups", codes)[drawn]
        sums, members = centre_sums(users, self.merging.summed_under(group, device), groups)
        arrays = {"centres": sums.float().cpu().numpy(), "members": members.int().cpu().numpy()}
        return Upload(arrays, samples, loss)

    def problem(self, arrays: dict[str, np.ndarray], users: int, samples: int) -> str:
        """Sums that are longer than so many unit vectors."""
        members, size = arrays["members"], np.linalg.norm(arrays["centres"], axis=1)
        wrong = members.sum() > users or bool((size > members * (1 + 1e-5)).any())
        return "'centres' are not sums of this node's users" if wrong else ""

    def fold(self, state: State, gathered: Gathered) -> State:
        """Centres move; with the first ones there are groups, whose tables start from the global one."""
        members, groups = gathered.sums["members"].float(), self.merging.config.group_tables.groups
        if not float(members.sum()):
            return state
        table, new = state[self.merging.table], dict(state)
        if not len(state["centres"]):
            new |= {"centres": torch.zeros((groups, table.shape[1])), "groups": table.repeat(groups, 1, 1)}
        centres = moved_centres(new["centres"], gathered.sums["centres"], members)
        return {**new, "centres": centres, "members": members}


class FitTask(GroupTask):
    """A phase that fits something on the participants' held-out items."""

    behind = Field((1,), "int64", least=0)
    least_items = 2  # of fewer, nothing is held out

    def most_behind(self, users: int) -> int:
        """Held-out items that so many users can have."""
        return self.merging.config.group_tables.hold_out * users

    def misfit(self, name: str, arrays: dict[str, np.ndarray], users: int, least: float, most: float) -> str:
        """What is wrong with sums over held-out items, each of which adds from `least` to `most` to an entry."""
        items, values, limit = int(arrays["behind"][0]), arrays[name], self.most_behind(users)
        if items > limit:
            return f"'behind' is {items}, not between 0 and {limit}"
        wrong = (values < least * items - _ROUNDING).any() or (values > most * items * (1 + _ROUNDING)).any()
        return f"'{name}' cannot be of {items} held-out items" if bool(wrong) else ""

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """See the subclasses."""
        self.merging.tables_there(asked)
        evidence = self.method.evidence(device, asked)
        items = int(evidence.held.counts().sum())
        arrays, loss = self.fitted(device, asked, evidence)
        return Upload({**arrays, "behind": np.array([items])}, items, loss)

    def problem(self, arrays: dict[str, np.ndarray], users: int, samples: int) -> str:
        """More held-out items than these users can have."""
        behind, most = int(arrays["behind"][0]), users * self.merging.config.group_tables.hold_out
        return "" if behind <= most else f"'behind' is {behind}, not between 0 and {most}"

    @abstractmethod
    def fitted(self, device: Device, asked: Asked, evidence: Evidence) -> tuple[dict[str, np.ndarray], float]:
        """Sums over the users' held-out items, and their loss."""


class Curve(FitTask):
    """The users' curves: a loss under each ρ."""

    def fields(self) -> dict[str, Field]:
        """A sum for each ρ, and the number of held-out items behind it."""
        return {"curve": Field((len(self.merging.config.group_tables.rhos),)), "behind": self.behind}

    def problem(self, arrays: dict[str, np.ndarray], users: int, samples: int) -> str:
        """Losses that these users' held-out items cannot have: log2(1 + rank) of the catalogue's last is the most."""
        return self.misfit("curve", arrays, users, 0.0, float(np.log2(1 + self.merging.items)))

    def fitted(self, device: Device, asked: Asked, evidence: Evidence) -> tuple[dict[str, np.ndarray], float]:
        """The loss is that under the last ρ."""
        found = curves(evidence, self.merging.tables_there(asked), self.merging.config.group_tables.rhos)
        self.method.remember_curve(device, asked, found)
        total = found.sum(0)
        return {"curve": total.float().cpu().numpy()}, float(total[-1])

    def fold(self, state: State, gathered: Gathered) -> State:
        """The mean curve, the tables it is of, and, where ρ is one an item, an adapter that starts from the best ρ."""
        behind, config = float(gathered.sums["behind"]), self.merging.config
        if not behind:
            return state
        first = torch.cat([state[self.merging.table][None], state["groups"]]).float()
        new = {**state, "mean": (gathered.sums["curve"] / behind).float(), "first": first}
        if config.group_tables.merge == "item":
            rho = min(max(self.merging.rho_of(new), 0.05), 0.95)
            adapter = Adapter(config.model.dim, config.group_tables.hidden, float(np.log(rho / (1 - rho))))
            new |= ServerAdam.start(adapter.initial(config.run.seed)).state("theta")
        return new


class Theta(FitTask):
    """Steps of the shared adapter."""

    def fields(self) -> dict[str, Field]:
        """Θ's gradient, and the number of held-out items behind it."""
        config = self.merging.config
        size = Adapter(config.model.dim, config.group_tables.hidden).parameters
        return {"theta": Field((size,)), "behind": self.behind}

    def problem(self, arrays: dict[str, np.ndarray], users: int, samples: int) -> str:
        """A gradient that is not sane."""
        limit = self.method.max_norm
        return self.misfit("theta", arrays, users, -limit, limit)

    def fitted(self, device: Device, asked: Asked, evidence: Evidence) -> tuple[dict[str, np.ndarray], float]:
        """See `engine.group_tables.ItemWeights`."""
        gradient, loss = self.merging.weights(asked).gradient(evidence, self.merging.tables_there(asked))
        return {"theta": gradient.float().cpu().numpy()}, loss

    def fold(self, state: State, gathered: Gathered) -> State:
        """A step of Adam."""
        behind = float(gathered.sums["behind"])
        if not behind or not len(state["theta"]):
            return state
        mean = (gathered.sums["theta"] / behind).float()
        return {**state, **ServerAdam.of("theta", state).step(mean, self.merging.config.group_tables.lr).state("theta")}


def embedded(users: Tensor, who: IntArray) -> Tensor:
    """(k', d) the kept embeddings of users at some positions."""
    return users[torch.from_numpy(np.asarray(who)).to(users.device)]
