"""fedials with order: after the table, a causal encoder and, if wanted, a directional map learn what follows what.

Private: the history. Up: a cohort's sums over its users, of the table's rows, then once of pairs of items for the map,
then of gradients of the encoder, from few users a round. Down: what the round trains, and what users are scored with
where its model is evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedem_flwr.config import Config
from fedem_flwr.contract import Asked, Device, Gathered, Phase, State, Tuning, Wanted
from fedem_flwr.engine.order import OrderScores, OrderTask
from fedem_flwr.engine.transitions import MapScores
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.cohort import Sums
from fedem_flwr.evaluation.scorers import Component
from fedem_flwr.evaluation.settings_grid import mixture_sums
from fedem_flwr.methods.fedials import Fedials, TableStep
from fedem_flwr.methods.tasks.order_encoder import OrderEncoder
from fedem_flwr.methods.tasks.order_map import OrderMap, with_room
from fedem_flwr.models.encoder import Encoder
from fedem_flwr.protocol.split import SplitFacts
from fedem_flwr.protocol.splits import Split


class FedialsOrder(Fedials):
    """`run.rounds - order.rounds` rounds of `Fedials`, one of the map where there is one, then those of the encoder."""

    NEEDS_TIMES = True
    TUNES = (*Fedials.TUNES, "order.lr", "order.dropout")

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self.order, rounds = config.order, config.run.rounds
        self.ordered = self.order.rounds > 0
        wanted = self.order.map and self.ordered
        order = self.order
        self.map = OrderMap(items, order.map, order.map_ridge, sparse=order.map_sparse) if wanted else None
        before = self.table_rounds + (self.map is not None)
        if self.table_rounds < 1 or (self.ordered and before >= rounds):
            raise InputError(self._no_room(rounds, 1 + (self.map is not None)))
        self.first_step = before + 1  # round
        self.task = order_task(config)
        self.encoder = OrderEncoder(self.order, self.task, items, rounds - before, self.max_norm)

    @classmethod
    def fitted(cls, config: Config, facts: SplitFacts, given: frozenset[str]) -> Config:
        """See `tasks.order_map.with_room`."""
        return with_room(config, facts, given)

    def _no_room(self, rounds: int, least: int) -> str:
        """What to do where the table, the map if there is one, and the encoder do not have a round each.

        Args:
            least: rounds of the map and the encoder.
        """
        own = self.order.rounds
        fewer = max(least, min(rounds - 1, max(rounds - 10, rounds // 2)))
        ways = [f"--set order.rounds={fewer}" if rounds > least else f"--rounds {least + 1} --set order.rounds={least}"]
        ways += [f"--rounds {own + 1} or more"] if own >= rounds and own >= least else []
        needed = "the table, the map and the encoder" if self.map else "the table and the encoder"
        return (
            f"method '{self.config.method.name}': order.rounds = {own} of run.rounds = {rounds} do not leave one round "
            f"or more to each of {needed}; give {', or '.join(ways)}"
        )

    @property
    def table_rounds(self) -> int:
        """The run's first rounds."""
        return self.config.run.rounds - self.config.order.rounds

    def phases(self) -> Sequence[Phase]:
        """The table, the map, the encoder."""
        of_map = [Phase("map", 1, self.map)] if self.map else []
        steps = self.config.run.rounds - self.first_step + 1
        encoder = [Phase("encoder", steps, self.encoder, participants=self.order.participants)] if self.ordered else []
        return [Phase("table", self.table_rounds, LastTableStep(self)), *of_map, *encoder]

    def evaluates(self, round_: int) -> bool:
        """Also the finished table."""
        return round_ == self.table_rounds

    def start(self) -> State:
        """Also the map, and the encoder with its moments."""
        encoder = self.encoder.start() if self.ordered else {}
        return {**super().start(), **encoder, **(self.map.start() if self.map else {})}

    def sends(self) -> Sequence[str]:
        """Also the encoder and the map."""
        of_map = ("map-items", "map-values") if self.map else ()
        return ["table", *(("rows", "weights") if self.ordered else ()), *of_map]

    def scored_with(self, done: int) -> Sequence[str]:
        """Everything, once there is an encoder to train."""
        return self.sends() if done + 1 >= self.first_step else ["table"]

    def tunings(self) -> Sequence[Tuning]:
        """Also the weights in the score, 0 before there is something to add."""
        first = {"order_weight": self.order.weight, "map_weight": self.order.map_weight if self.map else 0.0}
        rows, nothing = self.order.grid(), dict.fromkeys(first, 0.0)

        def due(round_: int) -> bool:
            looked_at = round_ >= self.first_step and round_ % self.config.evaluation.every == 0
            return looked_at and self.order.tune and len(rows) > 1

        mixing = Tuning("order", rows, first, due, self._mixtures, lambda d: nothing if d < self.first_step else None)
        return [*super().tunings(), mixing]

    def _mixtures(self, device: Device, asked: Asked, split: Split, wanted: Wanted) -> Sums:
        scorer, grid = self.scorer(device, asked), self.order.grid()
        weights = {row: (1.0, grid[row]["order_weight"], grid[row]["map_weight"]) for row in wanted.rows}
        some = {row: found[: len(scorer.components)] for row, found in weights.items()}
        return mixture_sums(scorer, some, split, "order", wanted.who)

    def components(self, asked: Asked) -> list[tuple[float, Component]]:
        """Also what the encoder and the map say comes next, once there are any."""
        found = super().components(asked)
        if asked.has("weights"):
            order = OrderScores(self.task.encoder, asked.tensor("weights"), asked.tensor("rows"))
            found.append((asked.number("order_weight"), order))
            if asked.has("map-items"):
                of_map = MapScores(asked.tensor("map-items"), asked.tensor("map-values"))
                found.append((asked.number("map_weight"), of_map))
        return found


class LastTableStep(TableStep):
    """Steps of the table; when it is finished, the encoder's rows start from it."""

    method: FedialsOrder

    def fold(self, state: State, gathered: Gathered) -> State:
        """See `TableStep`."""
        new = super().fold(state, gathered)
        last = self.method.ordered and gathered.round == self.method.table_rounds
        return {**new, **self.method.encoder.from_table(new["table"])} if last else new


def order_task(config: Config) -> OrderTask:
    """What devices minimise.

    Raises:
        InputError: the heads do not divide the width.
    """
    order, dim = config.order, config.model.dim
    if dim % order.heads:
        raise InputError(f"order.heads = {order.heads} does not divide model.dim = {dim}: choose a divisor")
    encoder = Encoder(dim, order.layers, order.heads, order.window, order.dropout)
    return OrderTask(encoder, order.negatives, order.fine_tune, config.run.seed)
