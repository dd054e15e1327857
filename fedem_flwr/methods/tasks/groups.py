"""Elastic merging with a second table that comes from the client's group: one for each group of similar users.

A run goes through phases: the method's own rounds; k-means of the embeddings; rounds that train the groups' tables too;
a fit of ρ on held-out items, that have trained nothing so far; and the tables' rounds once more, with all items.

Private: what the method's own client keeps, and a client's group, ρ and held-out items. Up: sums over the cohort, of
the method's own kind for each group, of embeddings of norm 1 for each group, and of held-out losses for each ρ (or Θ's
gradient). Down: tables, centres, and ρ or what it is found with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedem_flwr.aggregation.adam import ServerAdam
from fedem_flwr.config import Config
from fedem_flwr.contract import Asked, Device, Phase, State, Task
from fedem_flwr.engine.group_scores import item_rho
from fedem_flwr.engine.group_tables import ItemWeights, Tables, crowded
from fedem_flwr.engine.held_out import HeldOut, hold_out
from fedem_flwr.errors import InputError
from fedem_flwr.models.adapter import Adapter

SENT = ("groups", "centres", "theta", "mean", "first")
_SEEDS = 20  # users that a group's first centre is the mean of


@dataclass(frozen=True)
class GroupMerging:
    """What methods share that merge their groups' tables with the global one.

    Attributes:
        config: of the run. items: m. table: name of the method's global table in its state.
        stateless: whether clients keep no embedding, so that they find their own ρ anew.
    """

    config: Config
    items: int
    table: str
    stateless: bool

    def __post_init__(self) -> None:
        if self.config.merge.mode != "replace":
            raise InputError(
                f"merge.mode = '{self.config.merge.mode}': '{self.config.method.name}' merges the tables of groups, as "
                '[group_tables] says, and not of clients; set merge.mode = "replace"'
            )

    # The run.

    def phases(self, plain: Task, cluster: Task, groups: Task, curve: Task, theta: Task) -> list[Phase]:
        """The method's own rounds, and those of the groups; held-out items train nothing until ρ is fitted.

        Raises:
            InputError: too few rounds are left for the method's own table.
        """
        settings, rounds = self.config.group_tables, self.config.run.rounds
        if settings.merge == "none":
            return [Phase("table", rounds, plain, flags={"hold": 0})]
        steps = settings.steps if settings.merge == "item" else 0
        rest = settings.clustering + 2 * settings.rounds + 1 + steps
        if rounds - rest < settings.rounds:
            quick = {"clustering": 1, "rounds": 1} | ({"steps": 1} if steps else {})
            given = " ".join(f"--set group_tables.{name}={value}" for name, value in quick.items())
            raise InputError(
                f"method '{self.config.method.name}': run.rounds = {rounds} leaves {max(0, rounds - rest)} for its own "
                f"table, which needs {settings.rounds}: clustering, groups and ρ take {rest}; give --rounds "
                f"{rest + settings.rounds} or more, or for a quick look --rounds {5 + (steps > 0)} {given}"
            )
        hold = {"hold": 1}
        return [
            Phase("table", rounds - rest, plain, flags=hold),
            Phase("cluster", settings.clustering, cluster, flags=hold),
            Phase("groups", settings.rounds, groups, flags=hold),
            Phase("curve", 1, curve, flags=hold),
            *([Phase("theta", steps, theta, flags=hold)] if steps else []),
            Phase("groups-again", settings.rounds, groups, flags={"hold": 0}),
        ]

    @property
    def table_rounds(self) -> int:
        """Rounds before there are groups."""
        settings, rounds = self.config.group_tables, self.config.run.rounds
        if settings.merge == "none":
            return rounds
        return (
            rounds - settings.clustering - 2 * settings.rounds - 1 - (settings.steps if settings.merge == "item" else 0)
        )

    # The server.

    def start(self, table: Tensor) -> State:
        """No groups yet, and nothing fitted."""
        dim = table.shape[1]
        return {
            "groups": table.new_empty((0, *table.shape)),  # (G, m, d) once there are any
            "centres": torch.empty((0, dim)),
            "members": torch.zeros(self.config.group_tables.groups),
            "first": torch.empty((0, self.items, dim)),  # (1 + G, m, d) tables as ρ was fitted with
            "mean": torch.empty(0),  # (R,) mean loss of a held-out item under each ρ
            **ServerAdam.start(torch.empty(0)).state("theta"),
        }

    def sends(self) -> Sequence[str]:
        """Names; the first stage's tables only where clients find their own ρ with them."""
        own = self.config.group_tables.merge == "client" and self.stateless
        return [name for name in SENT if name != "first" or own]

    def settings(self, state: State, users: int) -> dict[str, float]:
        """The common ρ, and the share of users that centres start from."""
        return {"rho": self.rho_of(state), "seeds": min(1.0, _SEEDS * self.config.group_tables.groups / max(1, users))}

    def rho_of(self, state: State) -> float:
        """The common ρ."""
        settings, mean = self.config.group_tables, state["mean"]
        return settings.rhos[int(mean.argmin())] if len(mean) else settings.start

    def diagnostics(self, state: State) -> dict[str, object]:
        """The common curve of ρ, and how many users each group has."""
        settings = self.config.group_tables
        curve = [{"rho": r, "loss": x} for r, x in zip(settings.rhos, state["mean"].tolist(), strict=False)]
        members = state["members"].tolist()
        return {
            "group-tables": {"merge": settings.merge, "rho": self.rho_of(state), "curve": curve, "members": members}
        }

    # A device.

    def tables(self, asked: Asked) -> Tables | None:
        """What is merged; None before there are groups."""
        if not asked.has("groups"):
            return None
        return Tables(asked.tensor(self.table), asked.tensor("groups"), asked.tensor("centres"))

    def tables_there(self, asked: Asked) -> Tables:
        """What is merged.

        Raises:
            ValueError: there are no groups yet.
        """
        found = self.tables(asked)
        if found is None:
            raise ValueError(f"there are no groups yet for the phase '{asked.phase}'")
        return found

    def rho(self, asked: Asked, tables: Tables) -> float | Tensor | None:
        """One for all, or (G, m) one an item; None where each client finds its own."""
        merge = self.config.group_tables.merge
        if merge == "item" and asked.has("theta"):
            return item_rho(self.weights(asked), tables)
        return None if merge == "client" and asked.has("mean") else asked.number("rho")

    def weights(self, asked: Asked) -> ItemWeights:
        """The shared adapter."""
        return ItemWeights(Adapter(self.config.model.dim, self.config.group_tables.hidden), asked.tensor("theta"))

    def held(self, device: Device) -> HeldOut:
        """Histories cut in two."""
        settings, seed = self.config.group_tables, self.config.run.seed
        return hold_out(device.history, settings.hold_out, seed, by_time=device.has_times)

    def summed_under(self, group: Tensor, device: Device) -> Tensor:
        """The groups that users' sums go up under: their own, unless a sum would be of too few users."""
        return crowded(group, self.config.group_tables.groups, device.smallest_sum)


class WithGroups:
    """Mixed into a method: what it tells devices and the report of its merging."""

    merging: GroupMerging

    def settings(self, state: State, users: int) -> dict[str, float]:
        """See `GroupMerging`."""
        return self.merging.settings(state, users)

    def diagnostics(self, state: State) -> dict[str, object]:
        """See `GroupMerging`."""
        return self.merging.diagnostics(state)
