"""The compiled back end of a cohort's round: from tensors to what compiled functions take, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.block import Block, Trained
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.fused.arrays import flat
from fedem_flwr.engine.fused.blocks import CompiledRound, Kind, items_of
from fedem_flwr.engine.fused.draws import Drawn
from fedem_flwr.engine.fused.flush import flushed
from fedem_flwr.engine.fused.keys import keys_of
from fedem_flwr.engine.fused.mixing import mixing_of
from fedem_flwr.engine.fused.rounds import train_plain, train_through_merge
from fedem_flwr.engine.fused.space import ADAM, FREQUENCY_SGD, SGD, Result, Rules, Space, Values, drawn_room, space_for
from fedem_flwr.engine.learner import Products
from fedem_flwr.engine.samples import RoundSamples, TrainingItems

_OPTIMISERS = {"adam": ADAM, "sgd": SGD, "frequency-sgd": FREQUENCY_SGD}


@dataclass(frozen=True, eq=False)
class FusedRound(CompiledRound):
    """One round of users whose score is a product.

    Attributes:
        products: what a batch does.
    """

    products: Products

    @property
    def floats_of_a_row(self) -> int:
        """d."""
        return self.cohort.parts[self.products.items].width

    def block(self, who: Tensor, size: Tensor, merging: bool, rooms: dict[str, tuple[Drawn, Space]]) -> Trained:
        """See `CompiledRound`."""
        result = _result(len(who), self.reported_rows(size), self.floats_of_a_row, self.keep)
        nothing = _result(len(who), 0, 1, keep=False)

        def run(data: TrainingItems, draws: Draws, kind: Kind) -> None:
            self._run(data, draws, who, rooms, kind, nothing if kind == "adapter" else result)

        self.trained(who, merging, run)
        return self._trained(who, result)

    def _run(
        self,
        data: TrainingItems,
        draws: Draws,
        who: Tensor,
        rooms: dict[str, tuple[Drawn, Space]],
        kind: Kind,
        result: Result,
    ) -> None:
        rules = self._rules(kind)
        values = self._values(who, kind)
        largest = int(data.sizes(rules.negatives).max())
        if kind not in rooms:
            merge = None if kind == "plain" else self.cohort.learner.merge
            rows, batch = min(largest, data.items), rules.batch_size or largest
            rooms[kind] = (
                drawn_room(largest, data.items, rules.negatives),
                space_for(rows, batch, values.users.shape[1], merge),
            )
        keys = keys_of(draws, self.round, data, who, rules)
        run = train_plain if kind == "plain" else train_through_merge
        with flushed():
            run(items_of(data), keys, rules, values, *rooms[kind], result)

    def _rules(self, kind: Kind) -> Rules:
        products = self.products
        return self.rules(kind)._replace(
            optimiser=_OPTIMISERS[products.optimiser],
            lr_user=float(products.lr_user),
            lr_item=float(products.lr_item),
            ridge=float(products.ridge),
        )

    def _values(self, who: Tensor, kind: Kind) -> Values:
        cohort, products = self.cohort, self.products
        own = cohort.parts[products.items].own
        if own:
            tables, slot = cohort.state[products.items], who
        else:
            source = cohort.common(products.items, self.downloads)
            tables, slot = source.values, source.slot[who]
        return Values(
            who=who.numpy(),
            users=cohort.state[products.user].numpy(),
            tables=tables.numpy() if own else flat(tables),
            slot=slot.numpy(),
            own=own,
            mixing=mixing_of(cohort, None if kind == "plain" else self.downloads[products.items], who),
        )

    def _trained(self, who: Tensor, result: Result) -> Trained:
        cohort, products = self.cohort, self.products
        found = {name: torch.from_numpy(array) for name, array in result._asdict().items()}
        rows = torch.zeros((len(who), 0), dtype=torch.int64)
        samples = RoundSamples(
            found["touched"], found["touched_count"], found["sign"], rows, found["size"], found["weight"]
        )
        values = {products.items: found["rows"], products.user: cohort.state[products.user][who]}
        axes = {name: part.axis for name, part in cohort.parts.items()}
        block = Block(cohort.data.users[who], samples, values, axes, round=self.round)
        before = {products.items: found["before"]} if self.keep else {}
        return Trained(found["loss"], who, block, before)


def _result(k: int, width: int, dim: int, keep: bool) -> Result:
    size, weight, count = (np.zeros(k, np.int64) for _ in range(3))
    before = np.zeros((k, width if keep else 0, dim), np.float32)
    rows = np.zeros((k, width, dim), np.float32)
    touched, sign = np.zeros((k, width), np.int64), np.ones((k, width), np.float32)
    return Result(np.zeros(k), size, weight, count, touched, sign, rows, before)
