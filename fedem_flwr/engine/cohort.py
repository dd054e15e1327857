"""One round of a cohort of k users: merge, train, and what is uploaded. The pure core of a client.

Two schedules of FedEM (AAAI 2026) differ in where merging stands:

* `paper`: Θ is trained through the merge (Eq. 11), the merged table becomes the own one, which is trained (Eq. 12).
* `released`: the merged table becomes the own table, and every batch trains Θ, then p and Q, through a second merge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.local import AdapterStep, Block, LocalSettings, MergedStep, PlainStep, train_epochs
from fedem_flwr.engine.merge import GlobalTables, Merge, pooled
from fedem_flwr.engine.parallel import budget, in_parallel
from fedem_flwr.engine.samples import RoundSamples, TrainingItems, blocks_of, draw_samples
from fedem_flwr.models.mf import initial_table, initial_user, scores

Schedule = Literal["paper", "released"]
BLOCK_FLOATS = 1 << 19  # compact rows trained together: 2 MiB, so that rows, gradient and moments stay in the cache
MERGE_FLOATS = 1 << 22  # merged rows held at a time


@dataclass(frozen=True)
class CohortSettings:
    """What a cohort needs to know of the method, apart from its data.

    Attributes:
        dim: d. init_std: standard deviation of the initial embeddings.
        own_tables: whether each user keeps an item table of its own between rounds (no: it is replaced every round).
        adapter_epochs: epochs of Eq. 11 under the `paper` schedule.
        secret: of the node; see `draws.Draws`.
    """

    dim: int
    init_std: float
    seed: int
    merge: Merge
    schedule: Schedule
    local: LocalSettings
    own_tables: bool
    adapter_epochs: int
    secret: bytes = field(default=b"", repr=False)


@dataclass
class CohortState:
    """Private state of k users. Never leaves the client.

    Attributes:
        user: (k, d) embeddings p.
        table: (k, m, d) own item tables Q, or None where the method keeps none.
        adapter: (k, P) adapter parameters Θ, or None.
        curve: (k, R) losses of held-out items under R merging weights, of `training.elastic`, or None.
    """

    user: Tensor
    table: Tensor | None
    adapter: Tensor | None
    curve: Tensor | None = None

    @classmethod
    def initial(cls, k: int, items: int, settings: CohortSettings, device: torch.device) -> CohortState:
        """All users start from the same values."""
        table = adapter = None
        user = initial_user(settings.dim, settings.init_std, settings.seed).to(device)
        if settings.own_tables:
            start = initial_table(items, settings.dim, settings.init_std, settings.seed).to(device)
            table = start.repeat(k, 1, 1)
        if settings.merge.learned:
            adapter = settings.merge.adapter.initial(settings.seed).to(device).repeat(k, 1)
        return cls(user.repeat(k, 1), table, adapter)


@dataclass
class RowSums:
    """Sums over a cohort of trained rows, for methods whose server needs no single client's table.

    Attributes:
        weighted: (m, d) Σ_u w_u Q_u over whole tables, untouched rows included, w_u = samples of u.
        weight: Σ_u w_u.
        touched: (m, d) Σ of the rows of the clients that touched them. count: (m,) how many did.
    """

    weighted: Tensor
    weight: Tensor
    touched: Tensor
    count: Tensor

    def mean_table(self) -> Tensor:
        """(m, d) the mean of the whole tables, weighted by samples; zeros where nobody trained."""
        return self.weighted / self.weight.clamp(min=1)


@dataclass
class TrainResult:
    """What a cohort's training leaves."""

    loss: Tensor  # (k',) mean training loss a sample
    samples: Tensor  # (k',) positives + negatives
    sums: RowSums | None = None


@dataclass
class _Trained:
    """A block after its round: losses (k,), the trained block, and its rows (k, t, d) before, where sums are wanted."""

    loss: Tensor
    block: Block
    start: Tensor | None


class Cohort:
    """k users with their histories and private state.

    Args:
        histories: the users' interactions.
        state: private state, trained in place.
        settings: the method.
    """

    def __init__(self, histories: TrainingItems, state: CohortState, settings: CohortSettings) -> None:
        self.histories, self.state, self.settings = histories, state, settings

    def merge_blocks(self, who: Tensor) -> list[Tensor]:
        """Users in chunks whose whole tables, or scores where one table serves all, fit the working budget."""
        a_user = self.histories.items * (1 if self.state.table is None else self.settings.dim)
        return list(who.split(max(1, budget(MERGE_FLOATS, who.device) // a_user)))

    def merged(self, who: Tensor, tables: GlobalTables | None) -> tuple[Tensor, Tensor | None]:
        """The tables (k', m, d) that users `who` score with: merged where one was downloaded, else their own.

        Without own tables it is the downloaded one, or the common initial table before the first download.

        Returns:
            The tables, and the merging weights ρ of those who merged: (r, m), (r, 1), or None where nobody did.
        """
        state, merge = self.state, self.settings.merge
        if state.table is None:
            return tables.of(who) if tables is not None else self._initial_table().expand(len(who), -1, -1), None
        own = state.table[who]
        if tables is None or merge.mode == "none":
            return own, None
        got = tables.received[who]
        if not bool(got.any()):
            return own, None
        receivers = who[got]
        theta = None if state.adapter is None else state.adapter[receivers]
        own[got], rho = merge.tables(theta, own[got], tables.of(receivers))
        return own, rho

    def scores(self, who: Tensor, tables: GlobalTables | None) -> tuple[Tensor, Tensor | None]:
        """Logits (k', m) of users `who` for the whole catalogue, and ρ as `merged` gives it."""
        if self.state.table is None:  # one table for all: one product
            table = self._initial_table() if tables is None else tables.tables[0]
            return self.state.user[who] @ table.T, None
        items, rho = self.merged(who, tables)
        return scores(self.state.user[who], items), rho

    def _initial_table(self) -> Tensor:
        settings = self.settings
        table = initial_table(self.histories.items, settings.dim, settings.init_std, settings.seed)
        return table.to(self.state.user.device)

    def train(self, who: Tensor, tables: GlobalTables | None, round_: int, *, sums: bool = False) -> TrainResult:
        """Train users `who` (k',) for one round and update their state.

        Args:
            tables: what they downloaded, or None.
            round_: from 1; keys negatives and batches.
            sums: collect `RowSums`; without own tables nothing else is left of the trained rows.
        """
        settings, merge = self.settings, self.settings.merge
        nobody = torch.zeros(len(who), dtype=torch.bool, device=who.device)
        received = nobody if tables is None or merge.mode == "none" else tables.received[who]
        if tables is not None and (not merge.learned or settings.schedule == "released"):
            self.overwrite(who[received], tables)
        through_merge = merge.learned or (merge.mode == "static" and settings.schedule == "released")
        merging = received.cpu() & through_merge
        size = self.histories.sizes(settings.local.negatives)[who].cpu()
        batches = (size + settings.local.batch_size - 1) // settings.local.batch_size
        touched = size.clamp(max=self.histories.items)
        loss = torch.zeros(len(who), dtype=torch.float64, device=self.state.user.device)
        collected = self._empty_sums() if sums else None
        blocks = blocks_of(size, touched, 2 * batches + merging, settings.dim, budget(BLOCK_FLOATS, who.device))

        def train_block(index: Tensor) -> _Trained:
            part = who[index.to(who.device)]
            return self._train_block(part, tables, round_, bool(merging[index[0]]), sums)

        for index, trained in zip(blocks, in_parallel(train_block, blocks, who.device), strict=True):
            loss[index.to(loss.device)] = trained.loss
            if collected is not None and trained.start is not None:
                _add_rows(collected, trained.block, trained.start)
        size = self.histories.counts()[who].to(loss.device) * (1 + settings.local.negatives)  # decoys do not count
        if collected is not None:
            self._add_whole_tables(collected, who, size, tables)
        return TrainResult(loss, size, collected)

    def _add_whole_tables(self, sums: RowSums, who: Tensor, size: Tensor, tables: GlobalTables | None) -> None:
        """Complete `weighted`, to which the blocks added their weighted changes."""
        if self.state.table is None:
            before = tables.tables[0] if tables is not None else self._initial_table()
            sums.weighted += before * sums.weight
            return
        sums.weighted.zero_()
        blocks = self.merge_blocks(who)
        for part, weight in zip(blocks, size.double().split([len(block) for block in blocks]), strict=True):
            sums.weighted += torch.tensordot(weight, self.state.table[part].double(), dims=1)

    def overwrite(self, who: Tensor, tables: GlobalTables) -> None:
        """Write the merged tables (Eq. 10) of receivers `who` over their own."""
        if self.state.table is None:
            return
        for part in self.merge_blocks(who):
            self.state.table[part], _ = self.merged(part, tables)

    def _train_block(
        self, who: Tensor, tables: GlobalTables | None, round_: int, merging: bool, sums: bool
    ) -> _Trained:
        settings, state, local = self.settings, self.state, self.settings.local
        draws = Draws(settings.seed, settings.secret)
        samples = draw_samples(self.histories, who, local.negatives, draws, round_)
        block = self._gather(who, tables, samples, merging)
        start = block.rows.clone() if sums else None
        run = partial(train_epochs, draws=draws, round_=round_)
        if merging and tables is not None and settings.schedule == "paper":
            adapter = AdapterStep(block, local, settings.merge)  # Eq. 11
            run(adapter, block, local, epochs=settings.adapter_epochs, first_epoch=local.epochs)
            if state.adapter is not None and block.theta is not None:
                state.adapter[who] = block.theta
            self.overwrite(who, tables)  # Eq. 10, with the new Θ
            block = self._gather(who, None, samples, False)
        step = (
            MergedStep(block, local, settings.merge)
            if merging and settings.schedule == "released"
            else PlainStep(block, local)
        )
        loss = run(step, block, local, epochs=local.epochs)
        state.user[who] = block.user
        if state.adapter is not None and block.theta is not None:
            state.adapter[who] = block.theta
        if state.table is not None:
            self._scatter(who, block)
        return _Trained(loss, block, start)

    def _gather(self, who: Tensor, tables: GlobalTables | None, samples: RoundSamples, merging: bool) -> Block:
        """Compact copies of the users' touched rows."""
        state = self.state
        if state.table is not None:
            rows = state.table[who.unsqueeze(1), samples.touched]
        elif tables is not None:
            rows = tables.rows(who, samples.touched)
        else:
            rows = self._initial_table()[samples.touched]
        block = Block(self.histories.users[who], samples, state.user[who], rows)
        if merging and tables is not None:
            block.glob = tables.rows(who, samples.touched)
            block.theta = None if state.adapter is None else state.adapter[who]
            if self.settings.merge.mode == "scalar" and state.table is not None:
                block.pool = pooled(state.table[who], tables.of(who))
        return block

    def _scatter(self, who: Tensor, block: Block) -> None:
        """Write the trained rows back; padding is masked out."""
        samples = block.samples
        real = torch.arange(samples.touched.shape[1], device=who.device) < samples.touched_count.unsqueeze(1)
        owner = who.unsqueeze(1).expand_as(real)[real]
        if self.state.table is not None:
            self.state.table[owner, samples.touched[real]] = block.rows[real]

    def _empty_sums(self) -> RowSums:
        m, d, device = self.histories.items, self.settings.dim, self.state.user.device
        table = torch.zeros((m, d), dtype=torch.float64, device=device)
        scalar = torch.zeros((), dtype=torch.float64, device=device)
        return RowSums(table, scalar, table.clone(), torch.zeros(m, dtype=torch.float64, device=device))


def _add_rows(sums: RowSums, block: Block, start: Tensor) -> None:
    """Add a trained block to the cohort's sums.

    `weighted` collects w·(change); w·(table before) is added once at the end.
    """
    samples = block.samples
    t = samples.touched.shape[1]
    real = torch.arange(t, device=start.device) < samples.touched_count.unsqueeze(1)
    items, weight = samples.touched[real], samples.weight.double()
    change = (block.rows - start).double() * weight.view(-1, 1, 1)
    sums.weighted.index_add_(0, items, change[real])
    sums.touched.index_add_(0, items, block.rows[real].double())
    sums.count.index_add_(0, items, torch.ones(len(items), dtype=torch.float64, device=start.device))
    sums.weight += weight.sum()
