"""The compiled back end of a cohort's round: from tensors to what compiled functions take, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.block import Block, Trained
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.fused.blocks import CompiledRound, items_of
from fedem_flwr.engine.fused.draws import Drawn
from fedem_flwr.engine.fused.flush import flushed
from fedem_flwr.engine.fused.keys import keys_of
from fedem_flwr.engine.fused.rounds import train_plain, train_through_merge
from fedem_flwr.engine.fused.space import ADAM, FREQUENCY_SGD, SGD, Result, Rules, Space, Values, drawn_room, space_for
from fedem_flwr.engine.fused.tables import flat
from fedem_flwr.engine.learner import Products
from fedem_flwr.engine.merge import ADAPTER, pooled
from fedem_flwr.engine.merging import GATE
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
        cohort, learner = self.cohort, self.cohort.learner
        merge = learner.merge
        own = Draws(learner.seed, cohort.data.secret)
        through = merging and merge.in_batches
        if merging and merge.fits_first:  # Eq. 11, then Eq. 10 with the new Θ
            gate = cohort.merging.gate
            data, draws = (cohort.data, own) if gate is None else (gate, Draws(learner.seed, gate.secret, GATE))
            self._run(data, draws, who, rooms, "adapter", _nothing(len(who)))
            cohort.overwrite(who, self.downloads)
        result = _result(len(who), self.reported_rows(size), self.floats_of_a_row, self.keep)
        self._run(cohort.data, own, who, rooms, "merged" if through else "plain", result)
        return self._trained(who, result)

    def _run(
        self,
        data: TrainingItems,
        draws: Draws,
        who: Tensor,
        rooms: dict[str, tuple[Drawn, Space]],
        kind: str,
        result: Result,
    ) -> None:
        rules = self._rules(kind)
        values = self._values(who, kind)
        largest = int(data.sizes(rules.negatives).max())
        if kind not in rooms:
            items, dim = data.items, values.users.shape[1]
            batch = rules.batch_size or largest
            widths = () if kind == "plain" else tuple(int(w) for w in values.widths)
            rooms[kind] = (
                drawn_room(largest, items, rules.negatives),
                space_for(min(largest, items), batch, dim, widths, values.theta.shape[1]),
            )
        keys = keys_of(draws, self.round, data, who, rules)
        run = train_plain if kind == "plain" else train_through_merge
        with flushed():
            run(items_of(data), keys, rules, values, *rooms[kind], result)

    def _rules(self, kind: str) -> Rules:
        learner, products = self.cohort.learner, self.products
        local, merge, adapter = learner.local, learner.merge, kind == "adapter"
        return Rules(
            epochs=merge.epochs if adapter else local.epochs,
            first_epoch=local.epochs if adapter else 0,
            batch_size=local.batch_size,
            negatives=local.negatives,
            early_stop=float(local.early_stop),
            optimiser=_OPTIMISERS[products.optimiser],
            lr_user=float(products.lr_user),
            lr_item=float(products.lr_item),
            lr_theta=float(merge.lr),
            ridge=float(products.ridge),
            rho=float(merge.rho),
            adapts=adapter or merge.fits_in_batches,
            trains=not adapter,
        )

    def _values(self, who: Tensor, kind: str) -> Values:
        cohort, products, merge = self.cohort, self.products, self.cohort.learner.merge
        own = cohort.parts[products.items].own
        empty, nobody = np.zeros((0, 0, 0), np.float32), np.zeros(0, np.int64)
        if own:
            tables, slot = cohort.state[products.items], who
        else:
            source = cohort.common(products.items, self.downloads)
            tables, slot = source.values, source.slot[who]
        merging = kind != "plain"
        received, received_slot = empty, nobody
        theta, pool = np.zeros((1, 0), np.float32), np.zeros((0, 0), np.float32)
        widths: tuple[int, ...] = (1, 1)
        if merging:
            download = self.downloads[products.items]
            received, received_slot = flat(download.values), download.slot[who].numpy()
            widths = (2 * received.shape[2], 1)
        if merging and merge.learned:
            theta, widths = cohort.state[ADAPTER].numpy(), merge.adapter.mlp.widths
        if merging and merge.mode == "scalar":
            pool = torch.cat(pooled(tables[who], download.of(who)), -1).squeeze(1).numpy()
            half = pool.shape[1] // 2
            pool[:, half:] -= pool[:, :half]
        return Values(
            who=who.numpy(),
            users=cohort.state[products.user].numpy(),
            tables=tables.numpy() if own else flat(tables),
            slot=slot.numpy(),
            own=own,
            received=received,
            received_slot=received_slot,
            theta=theta,
            widths=np.array(widths, np.int64),
            pooled=pool,
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


def _nothing(k: int) -> Result:
    return _result(k, 0, 1, keep=False)
