"""The kernels' back end of a cohort's round: from tensors to what kernels take, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedem_flwr.engine.block import Block, Trained
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.gpu.draws import CLIENTS, Batches, Drawn, Sizes, draw_all, shuffle_all
from fedem_flwr.engine.gpu.merged import train_merged
from fedem_flwr.engine.gpu.rows import train_plain
from fedem_flwr.engine.gpu.space import THROUGH_MERGE, Shape, scales_of, sent, tile_of, widened
from fedem_flwr.engine.gpu.tables import merge_whole, pool_of
from fedem_flwr.engine.learner import Products
from fedem_flwr.engine.merge import ADAPTER
from fedem_flwr.engine.merging import GATE
from fedem_flwr.engine.samples import LANES as PADDED
from fedem_flwr.engine.samples import RoundSamples, TrainingItems
from fedem_flwr.pulse import beat

if TYPE_CHECKING:
    from fedem_flwr.engine.cohort import Cohort
    from fedem_flwr.engine.downloads import Download, Downloads

NUMBERS = 1 << 28  # of rows, moments and samples on the device at a time: 1 GiB
_OF_A_SAMPLE = 24  # numbers that are there while samples are drawn and sorted
_OPTIMISERS = {"adam": 0, "sgd": 1, "frequency-sgd": 2}


@dataclass(frozen=True, eq=False)
class KernelRound:
    """One round of users whose score is a product.

    Attributes:
        cohort: whom. downloads: what they downloaded. round: from 1.
        reported: whether samples and rows are looked at afterwards. keep: also the rows before.
        products: what a batch does. common: the tables that users start from who have none of their own.
    """

    cohort: Cohort
    downloads: Downloads
    round: int
    reported: bool
    keep: bool
    products: Products
    common: Download | None
    streams: dict[bool, torch.cuda.Stream] = field(default_factory=dict, init=False)

    def train(self, who: Tensor, size: Tensor, merging: Tensor) -> Iterator[tuple[Tensor, Trained]]:
        """Blocks of users `who` (k,), largest users first, as they are trained: mergers and others beside each other.

        Nothing between the first draw and the last step waits for the device.

        Args:
            size: (k,) samples. merging: (k,) who trains through a merge; both on the CPU.
        """
        cohort, learner = self.cohort, self.cohort.learner
        positives = cohort.data.counts()[who].cpu()
        gate = cohort.merging.gate
        others = None if gate is None else (gate.sizes(learner.local.negatives)[who].cpu(), gate.counts()[who].cpu())
        if self.cohort.device.type == "cuda":
            self.streams.update({kind: torch.cuda.Stream(self.cohort.device) for kind in (True, False)})
        kinds = [self.blocks(merging.nonzero().squeeze(1), size), self.blocks((~merging).nonzero().squeeze(1), size)]
        for pair in zip_longest(*kinds):
            found = []
            for kind, index in zip((True, False), pair, strict=True):
                if index is None:
                    continue
                beat()
                sizes = Sizes.of(size[index], positives[index], cohort.data.items)
                gated = others and Sizes.of(others[0][index], others[1][index], cohort.data.items)
                found.append((index, self._beside(kind, who[sent(index, who.device)], sizes, gated)))
            for kind in self.streams:
                torch.cuda.current_stream().wait_stream(self.streams[kind])
            yield from found

    def _beside(self, kind: bool, who: Tensor, sizes: Sizes, gated: Sizes | None) -> Trained:
        stream = self.streams.get(kind)
        if stream is None:
            return self.block(who, sizes, gated, kind)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = self.block(who, sizes, gated, kind)
        samples = found.block.samples
        made = [found.loss, samples.touched, samples.touched_count, samples.sign, samples.size, samples.weight]
        for tensor in (who, *made, *found.block.parts.values(), *found.before.values()):
            tensor.record_stream(torch.cuda.current_stream() if tensor is not who else stream)
        return found

    def blocks(self, index: Tensor, size: Tensor) -> list[Tensor]:
        """Those of the users at `index` whose numbers fit together, all on the CPU, with `size` samples each."""
        local, dim = self.cohort.learner.local, self.cohort.parts[self.products.items].width
        size, place = size[index].sort(descending=True, stable=True)
        rows = size.clamp(max=self.cohort.data.items)
        epochs = max(local.epochs, self.cohort.learner.merge.epochs)
        number = (4 * widened(dim) * rows + size * (_OF_A_SAMPLE + 2 * epochs)).cumsum(0) // NUMBERS
        number += torch.arange(len(index)) // CLIENTS
        if self.reported:  # as many rows of each are handed on as the largest has: at most twice its own
            number -= rows.float().frexp().exponent
        _, counts = number.unique_consecutive(return_counts=True)
        return list(index[place].split(counts.tolist())) if len(index) else []

    def block(self, who: Tensor, sizes: Sizes, gated: Sizes | None, merging: bool) -> Trained:
        """Train users `who` (k,), all of whom do or do not train through a merge."""
        cohort, learner = self.cohort, self.cohort.learner
        merge, local = learner.merge, learner.local
        draws = Draws(learner.seed, cohort.data.secret)
        drawn = draw_all(cohort.data, who, sizes, local.negatives, draws, self.round)
        if merging and merge.fits_first:  # Eq. 11, then Eq. 10 with the new Θ
            gate = cohort.merging.gate
            if gate is None or gated is None:
                self._through_merge(cohort.data, drawn, sizes, draws, adapts_alone=True)
            else:
                own = Draws(learner.seed, gate.secret, GATE)
                seen = draw_all(gate, who, gated, local.negatives, own, self.round)
                self._through_merge(gate, seen, gated, own, adapts_alone=True)
            items = self.products.items
            merge_whole(merge, cohort.state[items], who, cohort.state[ADAPTER], who, self.downloads[items], seen=False)
        before = self._before(drawn, sizes) if self.keep else {}
        if merging and merge.in_batches:
            x, loss = self._through_merge(cohort.data, drawn, sizes, draws, adapts_alone=False)
        else:
            x, loss = self._plain(drawn, sizes, draws)
        return self._trained(drawn, sizes, x, loss, before)

    def _batches(self, data: TrainingItems, drawn: Drawn, sizes: Sizes, draws: Draws, epochs: range) -> Batches:
        local = self.cohort.learner.local
        users = data.users[drawn.who]
        args = users, local.batch_size, sizes.longest, epochs, draws, self.round
        return shuffle_all(drawn, *args, ordered=local.deterministic)

    def _steps(self, sizes: Sizes, epochs: int) -> Tensor:
        batches = -(-sizes.longest // (self.cohort.learner.local.batch_size or max(1, sizes.longest)))
        return scales_of(batches * epochs, self.cohort.device)

    def _tables(self, who: Tensor) -> tuple[Tensor, Tensor]:
        """(r, m, d) what item rows start from, and (k,) the table of each user."""
        items = self.products.items
        if self.common is None:
            return self.cohort.state[items], who
        return self.common.values.contiguous(), self.common.slot[who]

    def _plain(self, drawn: Drawn, sizes: Sizes, draws: Draws) -> tuple[Tensor, Tensor]:
        cohort, products, local = self.cohort, self.products, self.cohort.learner.local
        batches = self._batches(cohort.data, drawn, sizes, draws, range(local.epochs))
        tables, slot = self._tables(drawn.who)
        dim = tables.shape[2]
        rule, wide = _OPTIMISERS[products.optimiser], widened(dim)
        x = torch.zeros((len(drawn.sign), wide), device=cohort.device)
        first, second = (torch.zeros_like(x) if rule == 0 else x[:1] for _ in range(2))
        slope, often = torch.zeros_like(drawn.sign), torch.zeros_like(drawn.sign)
        loss = torch.zeros(len(drawn.who), dtype=torch.float64, device=cohort.device)
        train_plain[len(drawn.who),](
            cohort.state[products.user],
            tables,
            drawn.who,
            slot,
            drawn.offsets,
            drawn.places,
            drawn.counts,
            drawn.touched,
            drawn.sign,
            batches.row,
            batches.weight,
            x,
            first,
            second,
            slope,
            often,
            self._steps(sizes, local.epochs),
            loss,
            sizes.samples,
            cohort.data.items,
            local.epochs,
            local.batch_size,
            products.lr_user,
            products.lr_item,
            products.ridge,
            local.early_stop,
            own=self.common is None,
            rule=rule,
            counted=bool(products.ridge) or products.optimiser == "frequency-sgd",
            ordered=local.deterministic,
            dim=dim,
            wide=wide,
            tile=tile_of(dim, local.batch_size),
        )
        return x, loss

    def _through_merge(
        self, data: TrainingItems, drawn: Drawn, sizes: Sizes, draws: Draws, *, adapts_alone: bool
    ) -> tuple[Tensor, Tensor]:
        cohort, products, local = self.cohort, self.products, self.cohort.learner.local
        merge, epochs = cohort.learner.merge, range(local.epochs)
        if adapts_alone:
            epochs = range(local.epochs, local.epochs + merge.epochs)
        batches = self._batches(data, drawn, sizes, draws, epochs)
        tables, slot = self._tables(drawn.who)
        download, dim = self.downloads[products.items], tables.shape[2]
        theta = cohort.state[ADAPTER] if merge.learned else cohort.state[products.user]
        received, got, single = download.values.contiguous(), download.slot[drawn.who], merge.mode == "scalar"
        x = torch.zeros((len(drawn.sign), widened(dim)), device=cohort.device)
        moving = [x[:1] if adapts_alone else torch.zeros_like(x) for _ in range(3)]
        loss = torch.zeros(len(drawn.who), dtype=torch.float64, device=cohort.device)
        train_merged[len(drawn.who),](
            cohort.state[products.user],
            tables,
            received,
            theta,
            pool_of(tables, slot, received, got) if single else theta,
            drawn.who,
            slot,
            got,
            drawn.offsets,
            drawn.places,
            drawn.counts,
            drawn.touched,
            drawn.sign,
            batches.row,
            batches.weight,
            x,
            *moving,
            self._steps(sizes, len(epochs)),
            loss,
            sizes.samples,
            data.items,
            theta.shape[1],
            len(epochs),
            local.batch_size,
            products.lr_user,
            products.lr_item,
            merge.lr,
            merge.rho,
            local.early_stop,
            own=self.common is None,
            adapts=adapts_alone or merge.fits_in_batches,
            trains=not adapts_alone,
            learned=merge.learned,
            single=single,
            ordered=local.deterministic,
            dim=dim,
            wide=widened(dim),
            **asdict(Shape.of(merge)),
            tile=tile_of(dim, local.batch_size, THROUGH_MERGE),
        )
        return x, loss

    def _reported(self, drawn: Drawn, sizes: Sizes) -> tuple[Tensor, Tensor]:
        """(k, t) places of touched rows, and which are real; t = 0 where nobody looks at them."""
        most = min(sizes.longest, self.cohort.data.items) if self.reported else 0
        column = torch.arange(-(-most // PADDED) * PADDED, device=self.cohort.device)
        place = (drawn.places[:-1].unsqueeze(1) + column).clamp_(max=len(drawn.sign) - 1)
        return place, column < drawn.counts.unsqueeze(1)

    def _before(self, drawn: Drawn, sizes: Sizes) -> dict[str, Tensor]:
        place, real = self._reported(drawn, sizes)
        tables, slot = self._tables(drawn.who)
        rows = tables[slot.unsqueeze(1), torch.where(real, drawn.touched[place], 0)]
        return {self.products.items: rows * real.unsqueeze(2)}

    def _trained(self, drawn: Drawn, sizes: Sizes, x: Tensor, loss: Tensor, before: dict[str, Tensor]) -> Trained:
        cohort, products = self.cohort, self.products
        place, real = self._reported(drawn, sizes)
        negatives = cohort.learner.local.negatives
        samples = RoundSamples(
            torch.where(real, drawn.touched[place], 0),
            drawn.counts.long(),
            torch.where(real, drawn.sign[place], 1.0),
            drawn.who.new_zeros((len(drawn.who), 0)),
            cohort.data.sizes(negatives)[drawn.who],
            cohort.data.counts()[drawn.who] * (1 + negatives),
        )
        rows = x[place, : cohort.parts[products.items].width] * real.unsqueeze(2)
        values = {products.items: rows, products.user: cohort.state[products.user][drawn.who]}
        axes = {name: part.axis for name, part in cohort.parts.items()}
        block = Block(cohort.data.users[drawn.who], samples, values, axes, round=self.round)
        return Trained(loss, drawn.who, block, before)


def kernel_round(cohort: Cohort, downloads: Downloads, round_: int, reported: bool, keep: bool) -> KernelRound:
    """One that `engine.fallback` has nothing against; arguments as those of `KernelRound`."""
    products = cohort.learner.products(round_)
    assert isinstance(products, Products)
    common = None if cohort.parts[products.items].own else cohort.common(products.items, downloads)
    return KernelRound(cohort, downloads, round_, reported, keep, products, common)
