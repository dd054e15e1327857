"""Samples and shuffles of all clients of a block at once, by segmented sorts: draws as in `engine.samples`, to the bit.

Everything lies flat, client after client, and nothing is as large as what is drawn: sizes are known before, from how
many items clients have. So no operation here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.samples import POSITION_BITS, TrainingItems, distinct_ranks
from fedem_flwr.randomness import keyed_bits

_DRAWN = 63 - POSITION_BITS  # bits of a draw that order samples; those that draw the same stay in order
CLIENTS = 1 << (63 - _DRAWN)  # so many stand before these bits in a key


@dataclass(frozen=True)
class Sizes:
    """What is known of clients before anything is drawn.

    Attributes:
        samples, positives: of all of them. rows: of all of them, at most.
        longest: most samples of one. most: most positives of one.
    """

    samples: int
    positives: int
    rows: int
    longest: int
    most: int

    @classmethod
    def of(cls, samples: Tensor, positives: Tensor, items: int) -> Sizes:
        """Of k clients with `samples` and `positives` (k,), both on the CPU, among so many items."""
        rows = samples.clamp(max=items).sum()
        return cls(int(samples.sum()), int(positives.sum()), int(rows), _most(samples), _most(positives))


@dataclass(frozen=True)
class Drawn:
    """A round's samples of k clients, flat: s samples, and room for r rows, on the device.

    Attributes:
        who: (k,) positions in the cohort.
        offsets, places: (k + 1,) where each client's samples, and its rows, begin.
        owner: (s,) number of each sample's client. at: (s,) its number among the client's.
        row: (s,) int32 the client's touched row of each sample.
        touched: (r,) item of each row, ascending in a client. sign: (r,) −1 for positives, else 1.
        counts: (k,) int32 how many rows there are.
    """

    who: Tensor
    offsets: Tensor
    places: Tensor
    owner: Tensor
    at: Tensor
    row: Tensor
    touched: Tensor
    sign: Tensor
    counts: Tensor


def draw_all(data: TrainingItems, who: Tensor, sizes: Sizes, negatives: int, draws: Draws, round_: int) -> Drawn:
    """Positives, fresh negatives, decoys, and touched rows, of clients at positions `who` (k,)."""
    device, m, each = data.users.device, data.items, 1 + negatives
    clients = torch.arange(len(who), device=device)
    size = data.sizes(negatives)[who]
    counts, offsets, places = (_starts(x) for x in (data.counts()[who], size, size.clamp(max=m)))
    client = clients.repeat_interleave(counts.diff(), output_size=sizes.positives)
    place = torch.arange(sizes.positives, device=device) - counts[client]
    positive = data.positive_items[data.positive_offsets[who][client] + place]
    allowed = m - data.forbidden_offsets.diff()[who]
    drawn = _negatives(data, who, client, place, allowed, sizes, negatives, draws, round_)
    drawn = torch.where((allowed > 0)[client].unsqueeze(1), drawn, positive.unsqueeze(1))
    first = offsets[client] + place * each  # a positive and its negatives lie side by side
    items = torch.empty(sizes.samples, dtype=torch.int64, device=device)
    items[first.unsqueeze(1) + torch.arange(each, device=device)] = torch.cat([positive.unsqueeze(1), drawn], 1)
    if data.decoys is not None:  # behind the others
        begin, decoys = data.decoys
        starts = _starts(begin.diff()[who])
        owner = clients.repeat_interleave(starts.diff(), output_size=sizes.samples - sizes.positives * each)
        nth = torch.arange(len(owner), device=device) - starts[owner]
        items[offsets[owner] + counts.diff()[owner] * each + nth] = decoys[begin[who][owner] + nth]
    owner = clients.repeat_interleave(offsets.diff(), output_size=sizes.samples)
    ordered, position = (owner * m + items).sort()  # equal items of a client lie side by side, in the items' order
    before = _starts(_differs(ordered).long())  # (s + 1,) touched rows in front of each
    of_client = before[1:] - 1 - before[offsets[owner]]
    row = torch.empty_like(items).scatter_(0, position, of_client)
    room = max(1, sizes.rows)
    touched = torch.zeros(room, dtype=torch.int64, device=device)
    touched[places[owner] + row] = items
    sign = torch.ones(room, device=device)
    sign[places[client] + row[first]] = -1.0
    found = (before[offsets[1:]] - before[offsets[:-1]]).int()
    at = torch.arange(sizes.samples, device=device) - offsets[owner]
    return Drawn(who, offsets, places, owner, at, row.int(), touched, sign, found)


def _negatives(
    data: TrainingItems,
    who: Tensor,
    client: Tensor,
    place: Tensor,
    allowed: Tensor,
    sizes: Sizes,
    negatives: int,
    draws: Draws,
    round_: int,
) -> Tensor:
    """(p, e) negatives of p positives, `place` among those of their `client`; see `samples.draw_negatives`."""
    if not negatives or not len(client):
        return client.new_empty((len(client), negatives))
    users = data.users[who]

    def bits(j: int) -> Tensor:
        return bits_of(draws, "train/negatives", (round_,), users, client, place, sizes.most, (j,))

    ranks = distinct_ranks(bits, allowed[client], negatives)
    # As there, in all clients' gaps at once: each client's lie in a range of their own.
    all_of = torch.arange(len(data.users), device=client.device)
    begin, width = data.forbidden_offsets, data.items + 1
    whose = all_of.repeat_interleave(begin.diff(), output_size=len(data.forbidden_items))
    nth = torch.arange(len(whose), device=client.device) - begin[whose]
    gaps = whose * width + data.forbidden_items - nth
    wanted = (who[client] * width).unsqueeze(1) + ranks
    return ranks + torch.searchsorted(gaps, wanted, right=True) - begin[who][client].unsqueeze(1)


def bits_of(
    draws: Draws,
    purpose: str,
    before: tuple[int, ...],
    users: Tensor,
    client: Tensor,
    place: Tensor,
    longest: int,
    after: tuple[int, ...] = (),
) -> Tensor:
    """`Draws.bits` at places of clients (s,) only; a secret's are made for (k, longest) of them, on the CPU."""
    if draws.secret:
        return draws.bits(purpose, before, users, longest, after)[client, place]
    return keyed_bits(draws.seed, draws.prefix + purpose, *before, users[client], place, *after)


@dataclass(frozen=True)
class Batches:
    """What the batches of a round see, one after the other.

    Attributes:
        row: (e, s) int32 touched rows, in each epoch's order.
        weight: (e, s) how often its batch has the row, the first time that it does, else 0; (1, 1) where every sample
            is taken for itself.
    """

    row: Tensor
    weight: Tensor


def shuffle_all(
    drawn: Drawn, users: Tensor, batch: int, longest: int, epochs: range, draws: Draws, round_: int, *, ordered: bool
) -> Batches:
    """Order the samples of each epoch.

    Args:
        users: (k,) keys. batch: samples of one; 0: all. longest: most samples of a client.
        ordered: lay equal rows of a batch side by side, so that its sums have an order.
    """
    device, s = drawn.row.device, len(drawn.row)
    found = Batches(
        torch.empty((len(epochs), s), dtype=torch.int32, device=device),
        torch.empty((len(epochs), s) if ordered else (1, 1), device=device),
    )
    shuffles = bool(batch) and longest > batch
    alone = (drawn.offsets.diff() <= batch)[drawn.owner]  # one batch takes all, in whatever order
    batches = -(-longest // batch) if shuffles else 1
    group = drawn.owner * batches + (drawn.at // batch if shuffles else 0)
    width = longest + 1
    for number, epoch in enumerate(epochs):
        row = drawn.row
        if shuffles:
            bits = bits_of(draws, "train/shuffle", (round_, epoch), users, drawn.owner, drawn.at, longest)
            keys = (drawn.owner << _DRAWN) | (bits >> POSITION_BITS).masked_fill_(alone, 0)
            row = row[keys.argsort(stable=True)]
        if ordered:
            keys = (group * width + row).sort().values
            first = _differs(keys)
            run = first.cumsum(0) - 1
            times = torch.zeros_like(keys).scatter_add_(0, run, torch.ones_like(keys))
            row = (keys % width).int()
            found.weight[number] = torch.where(first, times[run], 0)
        found.row[number] = row
    return found


def _most(counts: Tensor) -> int:
    return int(counts.max()) if len(counts) else 0


def _starts(counts: Tensor) -> Tensor:
    """(k + 1,) int64 where each of so many begin."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _differs(ordered: Tensor) -> Tensor:
    """(s,) bool: where a number is not the one before."""
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first
