"""FedEM (elastic merging): Chen et al., "Breaking the Aggregation Bottleneck in Federated Recommendation", AAAI 2026.

Private: p_u, the adapter Θ_u, ρ. Up: the trained item table Q_u of each uploader. Server: weights by Eq. 13 from the
similarity of the tables and the shares p_v of the data, and G_u = Σ_v w_uv Q_v for every uploader u. Down: each
uploader its own G_u; the others get nothing and train their own table on. Loss: binary cross-entropy.

Options that deviate from the paper, as the released program does: `aggregate.fraction` (a tenth uploads),
`aggregate.weights = "released"` (the objective's quadratic term is not scaled by 1 + α), `aggregate.similarity =
"pca"`, `aggregate.saturate`, `merge.schedule = "released"`; and beside both, `merge.gate_data = "heldout"`, and
`aggregate.neighbours`, by which weights are near those of Eq. 13. With `merge.mode = "none"` nothing is sent down:
every client trains alone. `first_merge`: see `FedEMOptions`.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from fedem_flwr.config import Config
from fedem_flwr.config.section import Section
from fedem_flwr.contract import Asked, Device, Phase, State
from fedem_flwr.contract.factorisation import Factorisation
from fedem_flwr.contract.merging import Merged
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.engine.parts import Up
from fedem_flwr.errors import InputError
from fedem_flwr.methods.tasks.similar_tables import SimilarTables


class FedEMOptions(Section):
    """Of `FedEM`."""

    first_merge: bool = Field(
        False,
        description="merge in round 1, too, where there is no G yet: with a second random table, the same for all "
        "(the paper calls Q^g and Q^l random at t = 1)",
    )


_NAMED = (
    "merge.table = 'touched': an upload names the rows that its user trained, its history among fresh negatives; what "
    "two of them have in common is nearly the history alone, and how long an upload is says how long the history is"
)


class FedEM(Merged, Factorisation):
    """Similarity-weighted aggregation of one table a client."""

    Options = FedEMOptions
    STRATEGY = "fedem_flwr.strategies.tables:TablesStrategy"
    UP: ClassVar[Up] = "each"
    MERGES_ALONE = True
    FOLDS_ROWS = True
    TUNES = (*Factorisation.TUNES, "merge.lr", "aggregate.alpha")

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        one_for_all = config.merge.mode == "replace" and config.aggregate.weights == "average"
        if config.aggregate.weights == "rows" or one_for_all:
            raise InputError(
                f"aggregate.weights = '{config.aggregate.weights}' with merge.mode = '{config.merge.mode}' makes one "
                "table for all: use the method fedmf, or weights such as eq13"
            )
        aggregate = config.aggregate
        plain = (aggregate.weights, aggregate.similarity, aggregate.saturate) == ("eq13", "frobenius", None)
        if aggregate.neighbours and not plain:
            raise InputError(
                f"aggregate.neighbours = {aggregate.neighbours} is for aggregate.weights = 'eq13' with similarity = "
                "'frobenius' and no saturate: set it to 0, or these"
            )

    def _needs_whole(self) -> str:
        """Also a similarity of more than trained rows, and a first merge with a table that differs at every row."""
        aggregate = self.config.aggregate
        if aggregate.similarity != "frobenius" and aggregate.weights != "average":
            return f"aggregate.similarity = '{aggregate.similarity}' looks at whole tables (frobenius does not)"
        if aggregate.weights == "cvxpy" or aggregate.neighbours:
            return "its weights are exact, by aggregate.weights = 'eq13' with aggregate.neighbours = 0"
        if self.options.first_merge:
            return "method.options.first_merge merges every row with another table"
        return super()._needs_whole()

    @property
    def federated(self) -> bool:
        """Whether anything is aggregated at all."""
        return self.config.merge.mode != "none"

    def phases(self) -> list[Phase]:
        """One."""
        return [Phase("train", self.config.run.rounds, SimilarTables(self))]

    def downloads(self, device: Device, asked: Asked) -> Downloads:
        """Also the random table of round 1, where that is asked for; what only evaluates has no phase."""
        found = super().downloads(device, asked)
        if not (self.options.first_merge and self.federated and asked.round == 1 and asked.phase):
            return found
        second = self.parts()["items"].initial("first-merge", self.items, self.seed).to(asked.place)
        return {**found, "items": Download.for_all(second, len(device.users))}

    def caveats(self) -> list[str]:
        """What the server learns of single users, and what is not exact."""
        if not self.federated:
            return []
        near = [
            f"aggregate.neighbours = {self.config.aggregate.neighbours}: weights are near those of Eq. 13; how near at "
            "most is logged each round, and in summary.json for the last (weights, bound)"
        ]
        return [
            "The server sees a table of each user: a single upload shows which items that user has met, and the rows "
            "that a few of its uploads have in common do so, too. privacy.secret_draws does not hide it. Sums over "
            "many users do (fedmf, fedials); secure aggregation is to come",
            *(near if self.config.aggregate.neighbours else []),
            *([_NAMED] if self.touched else []),
        ]

    def diagnostics(self, state: State) -> dict[str, object]:
        """The last round's weights: each client's own; how many are not zero, and a sample, or the bound of `Near`."""
        shown = [name for name in ("own", "nonzero", "sample", "bound") if f"weights-{name}" in state]
        return {"weights": {name: state[f"weights-{name}"].tolist() for name in shown}} if shown else {}
