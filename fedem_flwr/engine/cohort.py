"""One round of a cohort of k users: merge, train, and what they give. The pure core of a client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedem_flwr.engine.block import Block, Trained
from fedem_flwr.engine.contribution import Collector, Stage, TrainResult, contribution_of
from fedem_flwr.engine.downloads import Download, Downloads, alike, rows_of
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.epochs import batches_of, train_epochs
from fedem_flwr.engine.fallback import by_kernels, fallback
from fedem_flwr.engine.learner import Learner
from fedem_flwr.engine.merging import Merging
from fedem_flwr.engine.parallel import budget, in_parallel
from fedem_flwr.engine.parts import State, floats_of_a_row
from fedem_flwr.engine.reference import train_alone
from fedem_flwr.engine.samples import RoundSamples, TrainingItems, blocks_of, draw_samples

BLOCK_FLOATS = 1 << 19  # compact rows trained together: 2 MiB, so that rows, gradient and moments stay in the cache
MERGE_FLOATS = 1 << 22  # merged rows held at a time
_BATCH_BITS = 20  # of a user's number of batches


class Cohort:
    """k users with their training items and private state.

    Args:
        data: the users' interactions.
        state: private state by part, (k, ...), trained in place. It never leaves the client.
        learner: the method.
        gate: what Θ alone is trained on; see `engine.merging`.
    """

    def __init__(self, data: TrainingItems, state: State, learner: Learner, gate: TrainingItems | None = None) -> None:
        self.data, self.state, self.learner = data, state, learner
        self.parts = dict(learner.parts())
        self.merging = Merging(learner, state, gate)

    @property
    def device(self) -> torch.device:
        """Where the state is."""
        return self.data.users.device

    @property
    def everyone(self) -> Tensor:
        """(k,) all positions."""
        return torch.arange(len(self.data.users), device=self.device)

    def chunks(self, who: Tensor, downloads: Downloads | None = None) -> list[Tensor]:
        """Users in chunks whose whole tables, or scores where one table serves all, fit the working budget."""
        several = {name for name, download in (downloads or {}).items() if len(download.values) > 1}
        own = (part for name, part in self.parts.items() if part.axis == "item" and (part.own or name in several))
        kept = sum(part.width for part in own) + self.learner.floats_of_a_score
        return list(who.split(max(1, budget(MERGE_FLOATS, who.device) // (self.data.items * max(1, kept)))))

    def seen(self, who: Tensor, downloads: Downloads, *, merge: bool = True) -> tuple[dict[str, Tensor], Tensor | None]:
        """What users `who` score with: every part, (k', width) or whole tables (k', m, width).

        Of a part that stays with its client that is the client's own (or its group's), merged with or replaced by what
        was downloaded of it; of any other part what was downloaded, or its initial value before the first download.

        Args:
            merge: else the own tables as they lie.

        Returns:
            The parts, and the merging weights ρ of those who merged: (r, m), (r, 1), or None where nobody did.
        """
        found, rho = {}, None
        for name, part in self.parts.items():
            if not part.own:
                found[name] = self.common(name, downloads).of(who)
                continue
            found[name] = self.state[name][who]
            if not merge or name not in downloads:
                continue
            if name == self.learner.merged:
                rho = self.merging.merge(found[name], who, downloads[name])
            else:
                downloads[name].write_over(found[name], who)
        return found, rho

    def scores(self, who: Tensor, downloads: Downloads) -> tuple[Tensor, Tensor | None]:
        """Logits (k', m) of users `who` for the whole catalogue, and ρ as `seen` gives it."""
        parts, rho = self.seen(who, downloads)
        return self.learner.score(parts), rho

    def train(
        self,
        who: Tensor,
        downloads: Downloads,
        round_: int,
        *,
        sums: bool = False,
        stages: Sequence[Stage] | None = None,
    ) -> TrainResult:
        """Train users `who` (k',) for one round and update their state.

        Args:
            downloads: what they downloaded of each shared part; a part may be missing.
            round_: from 1; keys negatives and batches.
            sums: let what each user gives go through the stages, and add up the parts that go up as sums.
            stages: default: the method's.
        """
        learner = self.learner
        size, merging = self.data.sizes(learner.local.negatives)[who].cpu(), self._before_training(who, downloads)
        stages = learner.stages() if stages is None else stages
        each = {name: values.double() for name, values in self._each(who).items()} if sums and stages else {}
        kept = [name for name, part in self.parts.items() if part.up == "sum" and part.stays] if stages else []
        loss, factor = (make(len(who), dtype=torch.float64, device=self.device) for make in (torch.zeros, torch.ones))
        shrunk = {name: torch.ones_like(loss) for name in self._going_up()}
        collector = Collector(self.parts, self.data.items, self.device, round_, stages) if sums else None
        keep = collector is not None and collector.needs_before
        why_not = fallback(self, size, round_)
        by_torch = self._one_by_one if learner.engine == "reference" else self._in_blocks
        train = by_torch if why_not else self._compiled
        for index, trained in train(who, size, merging, downloads, round_, keep):
            loss[index.to(loss.device)] = trained.loss
            self.note(trained)
            if collector is None:
                continue
            given = contribution_of(trained, list(collector.parts))
            if each or kept:
                own = {name: self.state[name][trained.who] for name in each}
                before = {name: self.known(name, trained.who, downloads) for name in (*each, *kept)}
                before |= {name: rows_of(before[name], given.items) for name in kept if name in given.rows}
                given = replace(given, values=given.values | own, before=given.before | before)
            found = collector.add(given)
            if found.factor is not None:
                factor[index.to(factor.device)] = found.factor.double()
            for name in shrunk.keys() & found.shrunk.keys():
                shrunk[name][index.to(loss.device)] = found.shrunk[name].double()
            for name, values in each.items():
                values[index] = found.values[name].to(values)
        size = self.data.counts()[who].to(loss.device) * (1 + learner.local.negatives)  # decoys do not count
        if collector is not None:
            for name in collector.whole():
                collector.complete(name, self._whole(name, who, size, shrunk[name], downloads))
        return TrainResult(loss, size, collector.sums if collector else {}, each, factor, uncompiled=why_not)

    def note(self, trained: Trained) -> None:
        """Told of each block that was trained."""

    def known(self, name: str, who: Tensor, downloads: Downloads) -> Tensor:
        """(k', ...) what the server knows users `who` to start from: what it sent of a part, or the initial values."""
        start = alike(self.parts[name].initial(name, self.data.items, self.learner.seed).to(self.device), len(who))
        if name not in downloads:
            return start
        if bool(downloads[name].received[who].all()):
            return downloads[name].of(who)
        found = start.clone()
        downloads[name].write_over(found, who)
        return found

    def overwrite(self, who: Tensor, downloads: Downloads) -> None:
        """Write the merged tables (Eq. 10) of receivers `who` over their own."""
        self.merging.overwrite(self.chunks(who), downloads)

    def block_of(
        self, who: Tensor, downloads: Downloads, samples: RoundSamples, round_: int, *, merging: bool
    ) -> Block:
        """Compact copies of the users' parts, with the downloaded rows where merging looks at them."""
        values = {}
        for name, part in self.parts.items():
            source = None if part.own else self.common(name, downloads)
            if part.axis != "item":
                values[name] = self.state[name][who] if source is None else source.of(who).clone()
            elif source is None:
                values[name] = self.state[name][who.unsqueeze(1), samples.touched]
            else:
                values[name] = source.rows(who, samples.touched)
        axes = {name: part.axis for name, part in self.parts.items()}
        block = Block(self.data.users[who], samples, values, axes, round=round_)
        if merging:
            self.merging.beside(block, who, downloads)
        return block

    def write_back(self, who: Tensor, block: Block) -> None:
        """Write the trained parts that stay with their clients back; padding is masked out."""
        real, touched = block.real, block.samples.touched
        owner = who.unsqueeze(1).expand_as(real)[real]
        for name, values in self.state.items():
            if not self.parts[name].own:
                continue
            if self.parts[name].axis == "item":
                values[owner, touched[real]] = block.parts[name][real]
            else:
                values[who] = block.parts[name]

    def _before_training(self, who: Tensor, downloads: Downloads) -> Tensor:
        """Replace own values where the method does so first; returns (k',) who trains through a merge, on the CPU."""
        for other in self.state.keys() & downloads.keys() - {self.learner.merged}:
            got = who[downloads[other].received[who]]
            self.state[other][got] = downloads[other].of(got)
        first, merging = self.merging.begin(who, downloads)
        if len(first):
            self.overwrite(first, downloads)
        return merging

    def _compiled(
        self, who: Tensor, size: Tensor, merging: Tensor, downloads: Downloads, round_: int, keep: bool
    ) -> Iterator[tuple[Tensor, Trained]]:
        reported = bool(self._going_up() or self.learner.stages()) or type(self).note is not Cohort.note
        if by_kernels(self.learner.engine):
            from fedem_flwr.engine.gpu.backend import kernel_round  # not everywhere is Triton

            return kernel_round(self, downloads, round_, reported, keep).train(who, size, merging)
        from fedem_flwr.engine.fused.which import compiled_round  # the compiler takes half a second to import

        return compiled_round(self, downloads, round_, reported, keep).train(who, size, merging)

    def _in_blocks(
        self, who: Tensor, size: Tensor, merging: Tensor, downloads: Downloads, round_: int, keep: bool
    ) -> Iterator[tuple[Tensor, Trained]]:
        touched, width = size.clamp(max=self.data.items), floats_of_a_row(self.parts)
        group = 2 * (batches_of(size, self.learner.local) + (self.merging.gate_batches(who) << _BATCH_BITS)) + merging
        blocks = blocks_of(size, touched, group, width, budget(BLOCK_FLOATS, who.device))

        def train_block(index: Tensor) -> Trained:
            part = who[index.to(who.device)]
            return self._train_block(part, downloads, round_, bool(merging[index[0]]), keep)

        return zip(blocks, in_parallel(train_block, blocks, who.device, "training"), strict=True)

    def _one_by_one(
        self, who: Tensor, size: Tensor, merging: Tensor, downloads: Downloads, round_: int, keep: bool
    ) -> Iterator[tuple[Tensor, Trained]]:
        for at in range(len(who)):
            if size[at]:
                trained = train_alone(self, who[at : at + 1], downloads, round_, bool(merging[at]), keep)
                yield torch.tensor([at]), trained

    def _train_block(self, who: Tensor, downloads: Downloads, round_: int, merging: bool, keep: bool) -> Trained:
        learner, local, merge = self.learner, self.learner.local, self.learner.merge
        draws = Draws(learner.seed, self.data.secret)
        samples = draw_samples(self.data, who, local.negatives, draws, round_)
        block = self.block_of(who, downloads, samples, round_, merging=merging)
        if merging and merge.fits_first:  # Eq. 11, then Eq. 10 with the new Θ
            gate = self.merging.gate_samples(who, round_)
            fitted = block if gate is None else self.block_of(who, downloads, gate[0], round_, merging=True)
            self.merging.fit(fitted, who, draws if gate is None else gate[1], round_)
            self.overwrite(who, downloads)
            block = self.block_of(who, downloads, samples, round_, merging=merge.in_batches)
        before = {name: block.parts[name].clone() for name in self._going_up()} if keep else {}
        loss = train_epochs(learner.step(block, round_), block, local, epochs=local.epochs, draws=draws, round_=round_)
        self._pull(who, block, downloads)
        self.write_back(who, block)
        return Trained(loss, who, block, before)

    def _pull(self, who: Tensor, block: Block, downloads: Downloads) -> None:
        """Move the rows that no batch touched; see `engine.optimizer.Pull`."""
        for (name, to), left in block.left.items():
            part = self.parts[name]
            if part.own:
                table = self.state[name][who]
                anchor = self.common(to, downloads).of(who) if to else torch.zeros(())
                self.state[name][who] = torch.lerp(anchor.to(table), table, left.view(-1, 1, 1))
            elif to or part.change:
                raise ValueError(f"'{name}' is pulled to '{to}', and clients keep no table of it")

    def _each(self, who: Tensor) -> State:
        """Users' own values of the parts that go up so."""
        return {name: self.state[name][who] for name, part in self.parts.items() if part.up == "each"}

    def _going_up(self) -> list[str]:
        return [name for name, part in self.parts.items() if part.up == "sum"]

    def common(self, name: str, downloads: Downloads) -> Download:
        """The values of a part of which users have none of their own: downloaded, or initial.

        Raises:
            ValueError: some were not sent it.
        """
        if self.parts[name].group:
            return Download.for_all(self.state[name][0], len(self.data.users))
        if name in downloads:
            if not bool(downloads[name].received.all()):
                raise ValueError(f"some users got no '{name}', of which they keep no copy")
            return downloads[name]
        start = self.parts[name].initial(name, self.data.items, self.learner.seed).to(self.device)
        return Download.for_all(start, len(self.data.users))

    def _whole(
        self, name: str, who: Tensor, samples: Tensor, shrunk: Tensor, downloads: Downloads
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The whole tables behind the users' sums of a part; see `Collector.complete`."""
        if self.parts[name].stays:
            sizes = [len(chunk) for chunk in self.chunks(who)]
            for chunk, weight in zip(who.split(sizes), samples.split(sizes), strict=True):
                yield self.state[name][chunk], weight, torch.ones_like(weight, dtype=torch.float64)
            return
        download = self.common(name, downloads)
        for slot, value in enumerate(download.values):
            inside = download.slot[who] == slot
            if bool(inside.any()):
                yield alike(value, int(inside.sum())), samples[inside], shrunk[inside]
