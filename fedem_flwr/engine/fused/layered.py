"""The compiled back end of methods that score with a network: from tensors to what `layered_rounds` takes, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.block import Block, Trained
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.fused.arrays import flat
from fedem_flwr.engine.fused.blocks import CompiledRound, Kind, items_of
from fedem_flwr.engine.fused.flush import flushed
from fedem_flwr.engine.fused.keys import keys_of
from fedem_flwr.engine.fused.lanes import LANES
from fedem_flwr.engine.fused.layer_space import FIRST, NEITHER, SECOND, WEIGHTS, LayerSpace, Steps
from fedem_flwr.engine.fused.layered_rounds import (
    Kept,
    LayerResult,
    LayerValues,
    Tables,
    train_layers,
    train_merged_layers,
)
from fedem_flwr.engine.fused.mixing import adapter_space, mixing_of
from fedem_flwr.engine.fused.moving import moving
from fedem_flwr.engine.fused.space import drawn_room, whole
from fedem_flwr.engine.plan import Move, Plan
from fedem_flwr.engine.samples import RoundSamples, TrainingItems

_NOBODY = Tables(np.zeros((0, 0, 0), np.float32), np.zeros(0, np.int64), False, False)


@dataclass(frozen=True, eq=False)
class LayeredRound(CompiledRound):
    """One round of users whose score is a network's.

    Attributes:
        plan: what a batch does.
    """

    plan: Plan

    @property
    def floats_of_a_row(self) -> int:
        """Of both item parts together."""
        return sum(self.width(name) for name, _ in self.plan.rows if name)

    def width(self, name: str) -> int:
        """Of a part."""
        return self.cohort.parts[name].width

    @property
    def dim(self) -> int:
        """d, of the rows that the network sees."""
        return self.width(self.plan.layers.base or self.plan.first)

    def block(self, who: Tensor, size: Tensor, merging: bool, rooms: dict[str, Any]) -> Trained:
        """See `CompiledRound`."""
        cohort, plan = self.cohort, self.plan
        vectors = {name: self._vectors(name, who) for name in plan.vectors}
        before = {name: values.clone() for name, values in vectors.items() if self._kept_before(name)}
        result = self._result(len(who), self.reported_rows(size))

        def run(data: TrainingItems, draws: Draws, kind: Kind) -> None:
            self._run(data, draws, who, vectors, rooms, kind, result)

        self.trained(who, merging, run)
        for name, trained in vectors.items():
            if cohort.parts[name].own:
                cohort.state[name][who] = trained
        return self._trained(who, vectors, before, result)

    def _run(
        self,
        data: TrainingItems,
        draws: Draws,
        who: Tensor,
        vectors: dict[str, Tensor],
        rooms: dict[str, Any],
        kind: Kind,
        result: LayerResult,
    ) -> None:
        """A phase; of where Θ alone is trained nothing stays in `result`."""
        cohort, layers, rules = self.cohort, self.plan.layers, self.rules(kind)
        none = np.zeros((len(who), 0), np.float32)
        user = vectors[layers.user].numpy() if layers.user else none
        basis = self._vectors(layers.basis, who).numpy() if layers.basis else none
        weights = vectors[layers.weights].numpy()
        steps = self._steps(user.shape[1], kind)
        if "drawn" not in rooms:
            gate = cohort.merging.gate
            sizes = [one.sizes(rules.negatives) for one in (cohort.data, *([] if gate is None else [gate]))]
            largest = int(torch.cat(sizes).max())
            rooms["drawn"] = drawn_room(largest, data.items, rules.negatives)
            rooms["space"] = self._space(largest, steps, weights.shape[1])
        first, second = (self._tables(name, who, moves=move.update >= 0) for name, move in self.plan.rows)
        values = LayerValues(who.numpy(), weights, user, basis, first, second)
        keys = keys_of(draws, self.round, data, who, rules)
        what = items_of(data), keys, rules, steps, values, _NOBODY, rooms["drawn"], rooms["space"]
        if kind != "plain" and "adapter" not in rooms:
            rows, batch = len(rooms["drawn"].touched), len(rooms["space"].sign)
            rooms["adapter"] = adapter_space(cohort.learner.merge, rows, batch, self.dim)
        with flushed():
            if kind == "plain":
                train_layers(*what, result)
            else:
                mixing = mixing_of(cohort, self.downloads[cohort.learner.merged], who)
                train_merged_layers(*what, mixing, rooms["adapter"], result)

    def _kept_before(self, name: str) -> bool:
        """Whether somebody looks at what a part was before the round."""
        return self.keep and self.cohort.parts[name].up == "sum"

    def _vectors(self, name: str, who: Tensor) -> Tensor:
        """(k, width) of their own to train."""
        if self.cohort.parts[name].own:
            return self.cohort.state[name][who]
        values = self.cohort.common(name, self.downloads).of(who)
        return values.clone(memory_format=torch.contiguous_format)

    def _tables(self, name: str, who: Tensor, *, moves: bool) -> Tables:
        if not name:
            return _NOBODY
        if self.cohort.parts[name].own:
            return Tables(self.cohort.state[name].numpy(), who.numpy(), True, moves)
        source = self.cohort.common(name, self.downloads)
        return Tables(flat(source.values), source.slot[who].numpy(), False, moves)

    def _steps(self, beside: int, kind: Kind) -> Steps:
        plan, layers = self.plan, self.plan.layers
        pulls = np.array([move.pull for move in plan.moves])
        pulls[WEIGHTS] += 2 * layers.ridge
        found = {
            name: np.array([getattr(move, name) for move in plan.moves], kind)
            for name, kind in (("update", np.int64), ("adam", np.bool_), ("rate", float), ("fading", float))
        }
        return Steps(
            updates=0 if kind == "adapter" else plan.updates,
            update=found["update"],
            adam=found["adam"],
            rates=found["rate"],
            fadings=found["fading"],
            pulls=pulls,
            widths=np.array([self.dim, *layers.hidden, 1], np.int64),
            beside=beside,
            biased=self.cohort.parts[layers.weights].axis == "model",
            rank=self.width(plan.first) if layers.basis else 0,
            added=plan.added,
            towards=bool(plan.moves[FIRST].to),
            often=plan.moves[FIRST].often,
            merged=NEITHER if kind == "plain" else FIRST if self.cohort.learner.merged == plan.first else SECOND,
            apart=2 * layers.apart / self.dim,
            sparse=layers.sparse / self.dim,
            ridge=2 * layers.ridge,
        )

    def _space(self, largest: int, steps: Steps, parameters: int) -> LayerSpace:
        """For clients of at most so many samples."""
        dim, hidden = int(steps.widths[0]), int(steps.widths[1:-1].sum())
        rows = whole(min(largest, self.cohort.data.items))
        batch = whole(self.cohort.learner.local.batch_size or largest)
        batch = min(2 * batch, rows) if hidden else rows  # see `layered_batch`
        folded = sum(int((a + 1) * b) for a, b in zip(steps.widths, steps.widths[1:], strict=False))

        def room(size: int) -> np.ndarray:
            return np.zeros(size, np.float32)

        return LayerSpace(
            weights=moving(whole(parameters)),
            user=moving(whole(steps.beside)),
            x=moving(rows * (steps.rank or dim)),
            y=moving(rows * dim if self.plan.second else 0),
            rates=np.zeros(4),
            folded=room(folded),
            folded_gradient=room(folded),
            distinct=np.zeros(batch, np.int32),
            sign=room(batch),
            weight=room(batch),
            logits=room(batch),
            upstream=room(batch),
            features=room(batch * dim),
            hidden=room(batch * hidden),
            slopes=room(batch * hidden),
            inputs=room(dim * LANES),
            others=room(dim * LANES),
            basis=room(steps.rank * dim),
            low=room(steps.rank * LANES),
        )

    def _result(self, k: int, width: int) -> LayerResult:
        def kept(name: str, move: Move) -> Kept:
            rows, dim = (width, self.width(name)) if move.update >= 0 else (0, 0)
            before = np.zeros((k, rows if rows and self._kept_before(name) else 0, dim), np.float32)
            return Kept(np.zeros((k, rows, dim), np.float32), before, np.ones(k, np.float32))

        size, weight, count = (np.zeros(k, np.int64) for _ in range(3))
        touched, sign = np.zeros((k, width), np.int64), np.ones((k, width), np.float32)
        first, second = (kept(name, move) for name, move in self.plan.rows)
        return LayerResult(np.zeros(k), size, weight, count, touched, sign, first, second)

    def _trained(
        self, who: Tensor, vectors: dict[str, Tensor], before: dict[str, Tensor], result: LayerResult
    ) -> Trained:
        cohort = self.cohort
        loss, size, weight, count, touched, sign = (torch.from_numpy(array) for array in result[:6])
        samples = RoundSamples(touched, count, sign, torch.zeros((len(who), 0), dtype=torch.int64), size, weight)
        axes = {name: part.axis for name, part in cohort.parts.items()}
        values, left = dict(vectors), {}
        for (name, move), kept in zip(self.plan.rows, (result.first, result.second), strict=True):
            if move.update < 0:
                continue
            values[name] = torch.from_numpy(kept.rows)
            if self._kept_before(name):
                before[name] = torch.from_numpy(kept.before)
            if move.pull:
                left[name, move.to] = torch.from_numpy(kept.left)
        block = Block(cohort.data.users[who], samples, values, axes, round=self.round, left=left)
        return Trained(loss, who, block, before)
