"""Merging in a cohort's round: who merges, when, and what is written over what. The merge itself is `engine.merge`.

The part `learner.merged` is the item table of which clients keep a copy; the part `ADAPTER` is Θ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedem_flwr.engine.block import Block
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.epochs import batches_of, train_epochs
from fedem_flwr.engine.fallback import COMPILING, by_kernels, device_fallback, merge_fallback
from fedem_flwr.engine.learner import Learner
from fedem_flwr.engine.merge import ADAPTER, Merge, pooled
from fedem_flwr.engine.parts import State
from fedem_flwr.engine.samples import RoundSamples, TrainingItems, draw_samples

By = Literal["", "fused", "kernels"]
GATE = "gate/"  # prefix of the draws that Θ's own samples are made with


@dataclass(frozen=True, eq=False)
class Merging:
    """What a cohort's users merge.

    Attributes:
        learner: the method. state: the cohort's, changed in place.
        gate: held-out items that Θ alone is trained on, as training items; None: it sees what is trained.
    """

    learner: Learner
    state: State
    gate: TrainingItems | None = None

    def begin(self, who: Tensor, downloads: Downloads) -> tuple[Tensor, Tensor]:
        """Who of users `who` (k',) does what with the tables that they downloaded.

        Returns:
            (r,) positions of those whose merged table becomes their own before anything is trained, and (k',) on the
            CPU: who trains through a merge.
        """
        name, merge = self.learner.merged, self.learner.merge
        if not name or name not in downloads or merge.mode == "none":
            return who[:0], torch.zeros(len(who), dtype=torch.bool)
        received = downloads[name].received[who]
        first = who[:0] if merge.fits_first else who[received]
        return first, received.cpu() & merge.in_training

    def merge(self, own: Tensor, who: Tensor, download: Download) -> Tensor | None:
        """Merge whole tables `own` (k', m, d) of users `who` in place (Eq. 10), of those who received one.

        Returns:
            Their ρ: (r, m) or (r, 1); None where nobody merged.
        """
        merge = self.learner.merge
        got = download.received[who]
        if merge.mode == "none" or not bool(got.any()):
            return None
        receivers = who[got]
        theta = self.state[ADAPTER] if merge.learned else None
        if theta is not None and (by := self.compiled(own, theta)):
            return merge_compiled(merge, own, got.nonzero().squeeze(1), theta, receivers, download, by=by)
        theta = None if theta is None else theta[receivers]
        own[got], rho = merge.tables(theta, own[got], download.of(receivers))
        return rho

    def compiled(self, own: Tensor, theta: Tensor) -> By:
        """What merges whole tables (k, m, d): `fused` functions, `kernels`; empty: torch."""
        engine, merge = self.learner.engine, self.learner.merge
        if engine not in COMPILING or not merge.learned or {own.dtype, theta.dtype} != {torch.float32}:
            return ""
        if by_kernels(engine):
            why_not = merge_fallback(merge, own.shape[2]) or device_fallback(own.device, kernels=True)
            return "" if why_not else "kernels"
        return "fused" if own.device.type == "cpu" and merge.mode == "elastic" else ""

    def overwrite(self, chunks: Sequence[Tensor], downloads: Downloads) -> None:
        """Write the merged tables of receivers, chunk by chunk, over their own."""
        name = self.learner.merged
        for part in chunks:
            if self.learner.merge.learned and (by := self.compiled(self.state[name], self.state[ADAPTER])):
                receivers = part[downloads[name].received[part]]
                args = self.state[ADAPTER], receivers, downloads[name]
                merge_compiled(self.learner.merge, self.state[name], receivers, *args, seen=False, by=by)
                continue
            if self.learner.merge.mode == "replace":
                receivers = part[downloads[name].received[part]]
                self.state[name][receivers] = downloads[name].of(receivers)
                continue
            table = self.state[name][part]
            self.merge(table, part, downloads[name])
            self.state[name][part] = table

    def beside(self, block: Block, who: Tensor, downloads: Downloads) -> None:
        """Lay the downloaded rows beside a block's own, which is then trained through the merge."""
        name = self.learner.merged
        block.received = {name: downloads[name].rows(who, block.samples.touched)}
        if self.learner.merge.mode == "scalar":
            block.pool = pooled(self.state[name][who], downloads[name].of(who))

    def gate_samples(self, who: Tensor, round_: int) -> tuple[RoundSamples, Draws] | None:
        """What Θ is trained on in a round where it has items of its own, and the draws of its batches."""
        if self.gate is None:
            return None
        learner = self.learner
        draws = Draws(learner.seed, self.gate.secret, GATE)
        return draw_samples(self.gate, who, learner.local.negatives, draws, round_), draws

    def gate_batches(self, who: Tensor) -> Tensor | int:
        """(k',) batches of an epoch of Θ's own samples, on the CPU; 0 where it has none of its own."""
        if self.gate is None:
            return 0
        local = self.learner.local
        return batches_of(self.gate.sizes(local.negatives)[who].cpu(), local)

    def fit(self, block: Block, who: Tensor, draws: Draws, round_: int) -> None:
        """Eq. 11: train Θ through the merge on a block's samples, and keep it."""
        local, merge = self.learner.local, self.learner.merge
        if block.samples.row.shape[1]:
            step = self.learner.adapter_step(block)
            train_epochs(step, block, local, epochs=merge.epochs, first_epoch=local.epochs, draws=draws, round_=round_)
        self.state[ADAPTER][who] = block.parts[ADAPTER]


def merge_compiled(
    merge: Merge,
    own: Tensor,
    slot: Tensor,
    theta: Tensor,
    who: Tensor,
    download: Download,
    *,
    by: By,
    seen: bool = True,
) -> Tensor:
    """Merge whole tables (Eq. 9–10) in place: tables own[slot] of users `who`, with theta[who].

    Args:
        by: what does it; see `Merging.compiled`. seen: whether ρ is looked at.

    Returns:
        ρ (r, m), or nothing of it.
    """
    if by == "kernels":
        from fedem_flwr.engine.gpu.tables import merge_whole as merge_by_kernel  # not everywhere is Triton

        return merge_by_kernel(merge, own, slot, theta, who, download, seen=seen)
    from fedem_flwr.engine.fused.tables import merge_whole  # the compiler takes half a second to import

    return merge_whole(merge, own, slot, theta, who, download, seen=seen)


def as_gate(data: TrainingItems, offsets: Tensor, items: Tensor) -> TrainingItems:
    """Held-out items (CSR) as what Θ is trained on: negatives are none of a user's own items."""
    return TrainingItems(
        data.users, data.items, offsets, items, data.forbidden_offsets, data.forbidden_items, secret=data.secret
    )
