"""A cohort whose users keep the rows of their own item table that their last round trained, and no others.

A user's own table is its kept rows, and at every other item the table B that everybody is sent. What it merges with is,
where the server makes a table for each user, the rows that it was sent beside B, and B elsewhere; else B. So own and
received rows differ at kept and sent items alone: only those are merged, and whole tables are never kept. They are laid
out for as many users as are trained together, on a bench that is cleared row by row, and trained there by whatever back
end trains whole tables: the same numbers, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedem_flwr.engine.block import Trained
from fedem_flwr.engine.cohort import MERGE_FLOATS, Cohort
from fedem_flwr.engine.contribution import Stage, TrainResult
from fedem_flwr.engine.downloads import Download, Downloads, alike
from fedem_flwr.engine.learner import Learner
from fedem_flwr.engine.merge import ADAPTER, merged
from fedem_flwr.engine.merging import Merging
from fedem_flwr.engine.parallel import budget
from fedem_flwr.engine.parts import State
from fedem_flwr.engine.samples import TrainingItems, some_of
from fedem_flwr.models.rows import Rows, union

_BENCH_FLOATS = 1 << 24  # of whole tables that are laid out at a time: 64 MiB


@dataclass(frozen=True)
class SentRows(Download):
    """A table for all, and rows in its place for some users.

    Attributes:
        beside: of r users. place: (k,) which of them are each user's; −1: it was sent none, and merges nothing.
    """

    beside: Rows
    place: Tensor


class TouchedCohort(Cohort):
    """See the module. In its state the merged part is `Rows`, by their names."""

    def __init__(self, data: TrainingItems, state: State, learner: Learner, gate: TrainingItems | None = None) -> None:
        super().__init__(data, state, learner, gate)
        self.name = learner.merged
        self.gate = gate

    @property
    def rows(self) -> Rows:
        """What the users keep."""
        return Rows.of(self.state, self.name)

    @property
    def _width(self) -> int:
        return self.parts[self.name].width

    def base(self, downloads: Downloads) -> Tensor:
        """(m, width) the table of rows that nobody has touched."""
        if self.name in downloads:
            return downloads[self.name].values[0]
        return self.parts[self.name].initial(self.name, self.data.items, self.learner.seed).to(self.device)

    def sent(self, who: Tensor, downloads: Downloads) -> tuple[Rows, Tensor]:
        """The rows that users `who` were sent, and (k',) who of them merges."""
        nothing = Rows.none(len(who), self._width).to(self.device)
        download = downloads.get(self.name)
        if not isinstance(download, SentRows):
            return nothing, torch.full_like(who, download is not None, dtype=torch.bool)
        place = download.place[who]
        got = place >= 0
        return nothing.replaced(got.nonzero().squeeze(1), download.beside.at(place[got])), got

    # Scoring.

    def chunks(self, who: Tensor, downloads: Downloads | None = None) -> list[Tensor]:
        """Users in chunks whose scores fit the working budget, as do whole tables of other parts."""
        own = sum(p.width for n, p in self.parts.items() if p.axis == "item" and p.own and n != self.name)
        floats = self.data.items * max(1, own + self.learner.floats_of_a_score)
        return list(who.split(max(1, budget(MERGE_FLOATS, who.device) // floats)))

    def _merged(
        self, who: Tensor, downloads: Downloads, *, merge: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Items (k', t) at which users' tables are not B, which are real, the rows there (k', t, width), and ρ."""
        base, own = self.base(downloads), self.rows.at(who)
        sent, merges = self.sent(who, downloads)
        index, real = union(own, sent, self.data.items)
        rows = own.over(base[index], index, real)
        if not merge or not bool(merges.any()):
            return index, real, rows, None
        received = sent.over(base[index], index, real)
        merging = _RowMerging(self.learner, self.state, base=base, index=index, real=real)
        return index, real, rows, merging.rows(rows, received, who, torch.arange(len(who)), merges)

    def seen(self, who: Tensor, downloads: Downloads, *, merge: bool = True) -> tuple[dict[str, Tensor], Tensor | None]:
        """See `Cohort`; ρ is of the rows that are merged, (N,) or (r, 1)."""
        found = self._others(who, downloads)
        index, real, rows, rho = self._merged(who, downloads, merge=merge)
        table = self.base(downloads).repeat(len(who), 1, 1)
        owner = torch.arange(len(who), device=self.device).unsqueeze(1).expand_as(real)[real]
        table[owner, index[real]] = rows[real]
        return {name: table if name == self.name else found[name] for name in self.parts}, rho

    def scores(self, who: Tensor, downloads: Downloads) -> tuple[Tensor, Tensor | None]:
        """See `Cohort`: scores of B, and those of the rows that differ from it in their place."""
        found = self._others(who, downloads)
        index, real, rows, rho = self._merged(who, downloads, merge=True)
        logits = self.learner.score({**found, self.name: alike(self.base(downloads), len(who))})
        at = torch.arange(len(who), device=self.device).unsqueeze(1)
        here = {n: x[at, index] if self.parts[n].axis == "item" else x for n, x in found.items()}
        owner = at.expand_as(real)[real]
        logits[owner, index[real]] = self.learner.score({**here, self.name: rows})[real]
        return logits, rho

    def _others(self, who: Tensor, downloads: Downloads) -> dict[str, Tensor]:
        """The other parts, as `Cohort.seen` gives them."""
        plain = Cohort(self.data, self.state, self.learner)
        del plain.parts[self.name]
        return plain.seen(who, downloads)[0]

    # Training.

    def train(
        self,
        who: Tensor,
        downloads: Downloads,
        round_: int,
        *,
        sums: bool = False,
        stages: Sequence[Stage] | None = None,
    ) -> TrainResult:
        """See `Cohort`. What users keep afterwards are the rows that this round touched."""
        personal = isinstance(downloads.get(self.name), SentRows)
        floats = self.data.items * self._width * (2 if personal else 1)
        chunks = list(who.split(max(1, budget(_BENCH_FLOATS, who.device) // floats)))
        bench = _Bench(self.base(downloads), max((len(chunk) for chunk in chunks), default=0), personal)
        found = [
            self._train_some(chunk, downloads, bench, round_, sums=sums, stages=stages) for chunk in chunks or [who]
        ]
        self.state.update(self.rows.replaced(who, Rows.joined([rows for rows, _ in found])).named(self.name))
        return _together([result for _, result in found])

    def _train_some(
        self,
        who: Tensor,
        downloads: Downloads,
        bench: _Bench,
        round_: int,
        *,
        sums: bool,
        stages: Sequence[Stage] | None,
    ) -> tuple[Rows, TrainResult]:
        own = self.rows.at(who)
        sent, merges = self.sent(who, downloads)
        bench.lay(own, sent)
        names = [name for name, part in self.parts.items() if part.stays and name != self.name]
        state = {name: self.state[name] if self.parts[name].group else self.state[name][who] for name in names}
        state[self.name] = bench.own[: len(who)]
        gate = None if self.gate is None else some_of(self.gate, who)
        cohort = _OnBench(some_of(self.data, who), state, self.learner, gate)
        index, real = union(own, sent, self.data.items)
        cohort.merging = _RowMerging(self.learner, state, gate, base=bench.base, index=index, real=real)
        here = {n: Download(d.values, d.slot[who]) for n, d in downloads.items() if n != self.name}
        if self.name in downloads:
            here[self.name] = bench.download(merges)
        result = cohort.train(cohort.everyone, here, round_, sums=sums, stages=stages)
        for name in names:
            if self.parts[name].own:
                self.state[name][who] = state[name]
        rows = cohort.trained_rows()
        bench.clear(own, sent, rows)
        return rows, result


class _OnBench(Cohort):
    """Users with whole tables, who are asked afterwards which rows they have touched."""

    def __init__(self, data: TrainingItems, state: State, learner: Learner, gate: TrainingItems | None) -> None:
        super().__init__(data, state, learner, gate)
        self._touched: list[tuple[Tensor, Tensor]] = []

    def note(self, trained: Trained) -> None:
        """See `Cohort`."""
        block = trained.block
        owner = trained.who.unsqueeze(1).expand_as(block.real)[block.real]
        self._touched.append((owner, block.samples.touched[block.real]))

    def trained_rows(self) -> Rows:
        """What they now have of the rows that they have touched."""
        none = self.everyone[:0], self.everyone[:0]
        owner, index = (torch.cat(found) for found in zip(none, *self._touched, strict=True))
        order = owner.argsort(stable=True)
        owner, index = owner[order], index[order]
        counts = torch.bincount(owner, minlength=len(self.data.users))
        return Rows(counts, index.int(), self.state[self.learner.merged][owner, index])


@dataclass(frozen=True, eq=False, kw_only=True)
class _RowMerging(Merging):
    """Merges rows where own and received tables may differ; elsewhere a merge changes nothing.

    Attributes:
        base: (m, width) B. index, real: (k, t) where they may differ.
    """

    base: Tensor
    index: Tensor
    real: Tensor

    def overwrite(self, chunks: Sequence[Tensor], downloads: Downloads) -> None:
        """See `Merging`."""
        name = self.learner.merged
        for part in chunks:
            index, real = self.index[part], self.real[part]
            own, merges = self.state[name][part.unsqueeze(1), index], downloads[name].received[part]
            received = own.clone()
            received[merges] = downloads[name].rows(part[merges], index[merges])
            self.rows(own, received, part, part, merges)
            self.state[name][part.unsqueeze(1).expand_as(real)[real], index[real]] = own[real]

    def rows(self, own: Tensor, received: Tensor, who: Tensor, at: Tensor, merges: Tensor) -> Tensor | None:
        """Merge rows (k', t, width) in place.

        Args:
            who: (k',) the users' positions in the state. at: in `index`. merges: which of them merge.

        Returns:
            Their ρ: of real rows, or (r, 1) where each has one; None where nobody merged.
        """
        merge, real = self.learner.merge, self.real[at][merges]
        if merge.mode == "scalar":
            start, count = self.base[self.index[at][merges]], len(self.base)
            means = (
                (self.base.mean(0) + ((x[merges] - start) * real.unsqueeze(-1)).sum(1) / count).unsqueeze(1)
                for x in (own, received)
            )
            rho = merge.adapter.forward(self.state[ADAPTER][who[merges]], *means).rho
            own[merges] = merged(own[merges], received[merges], rho.unsqueeze(-1))
            return rho
        slot = torch.full((int(who.max()) + 1,), -1, device=who.device)
        slot[who[merges]] = torch.arange(len(real), device=who.device)
        found = self.merge(own, who, Download(received[merges], slot))
        return found[real] if found is not None and merge.mode == "elastic" else found


class _Bench:
    """Whole tables of a few users, all B but where rows are laid.

    Args:
        base: (m, width) B. users: how many fit. personal: whether each also has a received table of its own.
    """

    def __init__(self, base: Tensor, users: int, personal: bool) -> None:
        self.base = base
        self.own = base.repeat(users, 1, 1)
        self.received = base.repeat(users, 1, 1) if personal else None

    def lay(self, own: Rows, sent: Rows) -> None:
        """Lay users' rows."""
        self.own[own.owner, own.index.long()] = own.values
        if self.received is not None:
            self.received[sent.owner, sent.index.long()] = sent.values

    def download(self, merges: Tensor) -> Download:
        """What was received, of those (k,) who merge."""
        if self.received is None:
            return Download.for_all(self.base, len(merges))
        places = torch.arange(len(merges), device=merges.device)
        return Download(self.received[: len(merges)], places.where(merges, -1))

    def clear(self, *found: Rows) -> None:
        """Make tables B again at these rows."""
        for table in [self.own] if self.received is None else [self.own, self.received]:
            for rows in found:
                table[rows.owner, rows.index.long()] = self.base[rows.index.long()]


def _together(results: Sequence[TrainResult]) -> TrainResult:
    """Results of some users each, as one."""
    first = results[0]
    loss, samples, factor = (torch.cat([getattr(r, n) for r in results]) for n in ("loss", "samples", "factor"))
    for other in results[1:]:
        for name, into in first.sums.items():
            into.total += other.sums[name].total
            into.weight += other.sums[name].weight
    why_not = next((r.uncompiled for r in results if r.uncompiled), "")
    return TrainResult(loss, samples, first.sums, {}, factor, uncompiled=why_not)
