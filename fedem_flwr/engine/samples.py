"""The samples of a local round: positives, freshly drawn negatives, touched rows, and the order of the batches.

Every draw is keyed by (seed, round, user, position), so a user gets the same samples in any cohort, node or runtime;
with a node's secret in the seed's place, on that node only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.draws import Draws
from fedem_flwr.errors import InputError

POSITION_BITS = 20  # a user's samples in one round: at most 2**20
LANES = (
    64  # touched rows are padded to a multiple: vector units then see no remainder, which they would round otherwise
)


@dataclass(frozen=True)
class TrainingItems:
    """What a cohort's clients hold: training items and the items that may not be drawn as negatives.

    Attributes:
        users: (k,) the users' indices in the run; they key every draw.
        items: m, the catalogue's size.
        positive_offsets, positive_items: CSR of the training items.
        forbidden_offsets, forbidden_items: CSR, sorted and unique inside a user.
        decoys: offsets and items of a CSR, or None: drawn as negatives in every round (see `engine.decoys`).
        secret: of the node; see `engine.draws.Draws`.
    """

    users: Tensor
    items: int
    positive_offsets: Tensor
    positive_items: Tensor
    forbidden_offsets: Tensor
    forbidden_items: Tensor
    decoys: tuple[Tensor, Tensor] | None = field(default=None, kw_only=True)
    secret: bytes = field(default=b"", kw_only=True, repr=False)

    def counts(self) -> Tensor:
        """(k,) training positives of each user."""
        return self.positive_offsets.diff()

    def sizes(self, negatives: int) -> Tensor:
        """(k,) samples of each user in a round."""
        size = self.counts() * (1 + negatives)
        return size if self.decoys is None else size + self.decoys[0].diff()


def some_of(data: TrainingItems, who: Tensor) -> TrainingItems:
    """Those of users at positions `who`."""

    def some(offsets: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        starts, counts = offsets[who], offsets[who + 1] - offsets[who]
        ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        at = torch.arange(int(ends[-1]), device=values.device) + (starts - ends[:-1]).repeat_interleave(counts)
        return ends, values[at]

    positives = some(data.positive_offsets, data.positive_items)
    forbidden = some(data.forbidden_offsets, data.forbidden_items)
    decoys = None if data.decoys is None else some(*data.decoys)
    return TrainingItems(data.users[who], data.items, *positives, *forbidden, decoys=decoys, secret=data.secret)


@dataclass(frozen=True)
class RoundSamples:
    """One round's samples of k users, on their touched rows.

    Attributes:
        touched: (k, t) item of each touched row, ascending; padding repeats item 0 and is never referred to.
        touched_count: (k,) how many of the rows are real.
        sign: (k, t) −1 where the row is a positive, +1 otherwise.
        row: (k, s) the touched row of every sample; padding is 0.
        size: (k,) how many of the s samples are real.
        weight: (k,) how many a user counts for in means: decoys, of which the server knows nothing, do not count.
    """

    touched: Tensor
    touched_count: Tensor
    sign: Tensor
    row: Tensor
    size: Tensor
    weight: Tensor


def padded_rows(offsets: Tensor, values: Tensor, rows: Tensor, fill: int) -> tuple[Tensor, Tensor]:
    """Slice CSR rows into a padded (k, width) block; returns it with its mask of real entries."""
    counts = (offsets[rows + 1] - offsets[rows]).unsqueeze(1)  # (k, 1)
    column = torch.arange(int(counts.max()) if len(rows) else 0, device=values.device)
    real = column < counts  # (k, width)
    if not values.numel():
        return torch.full(real.shape, fill, dtype=values.dtype, device=values.device), real
    flat = (offsets[rows].unsqueeze(1) + column).clamp_(max=values.numel() - 1)
    return torch.where(real, values[flat], fill), real


def distinct_ranks(bits: Callable[[int], Tensor], allowed: Tensor, each: int) -> Tensor:
    """Draw `each` distinct numbers below `allowed`, uniformly; where there are fewer, the last one repeats.

    Args:
        bits: (...) of the j-th draw. allowed: of the same shape, or one that broadcasts to it.

    Returns:
        (..., each) ascending.
    """
    taken: list[Tensor] = []  # (...) each, ascending
    for j in range(each):
        draw = bits(j) % (allowed - j).clamp(min=1)
        for earlier in taken:
            draw = draw + (draw >= earlier)
        draw = torch.minimum(draw, (allowed - 1).clamp(min=0))  # only where items must repeat
        stacked = torch.stack([*taken, draw]).sort(0).values
        taken = list(stacked.unbind(0))
    return torch.stack(taken, dim=-1)


def draw_negatives(
    forbidden: Tensor, allowed: Tensor, positives: int, each: int, draws: Draws, round_: int, users: Tensor
) -> Tensor:
    """Draw `each` distinct negatives for every positive, uniformly from the items that are not forbidden.

    Args:
        forbidden: (k, f) sorted forbidden items, padded with a number >= m.
        allowed: (k,) how many items are not forbidden; where fewer than `each`, items repeat.
        positives: p, the padded number of positives.
        each: negatives a positive.
        draws, round_, users (k,): the key of the draws.

    Returns:
        (k, p, each) items. Exact sampling without replacement inside one positive: the j-th draw is uniform over the
        items that are left, and is shifted past those already taken, in ascending order.
    """
    k = users.shape[0]
    if not each:
        return users.new_empty((k, positives, 0))
    ranks = distinct_ranks(
        lambda j: draws.bits("train/negatives", (round_,), users, positives, (j,)), allowed[:, None], each
    )
    # The r-th allowed item is r + (number of forbidden items before it); forbidden[j] − j is non-decreasing.
    gaps = (forbidden - torch.arange(forbidden.shape[1], device=users.device)).contiguous()
    flat = ranks.reshape(k, -1)
    return (flat + torch.searchsorted(gaps, flat, right=True)).view_as(ranks)


def draw_samples(histories: TrainingItems, rows: Tensor, negatives: int, draws: Draws, round_: int) -> RoundSamples:
    """Positives and fresh negatives of the cohort's users `rows` (k,), for one round: the D_u of Eq. 2; and decoys."""
    users = histories.users[rows]
    positives, real = padded_rows(histories.positive_offsets, histories.positive_items, rows, 0)
    m = histories.items
    forbidden, _ = padded_rows(histories.forbidden_offsets, histories.forbidden_items, rows, 2 * m)
    allowed = m - (forbidden < m).sum(1)
    k, p = positives.shape
    # A positive and its negatives lie side by side, so the real samples are a prefix of each row.
    drawn = draw_negatives(forbidden, allowed, p, negatives, draws, round_, users)
    usable = (allowed > 0).view(-1, 1, 1)
    items = torch.cat([positives.unsqueeze(-1), torch.where(usable, drawn, positives.unsqueeze(-1))], dim=-1)
    weight = real.sum(1) * (1 + negatives)
    items, size = _behind(items.view(k, -1), weight, histories.decoys, rows)  # (k, s)
    valid = torch.arange(items.shape[1], device=users.device) < size[:, None]
    # Equal items lie side by side in item order, and the place of an item's first sample counts the touched rows.
    ordered, position = _sorted_with_positions(torch.where(valid, items, m))  # (k, s); m is padding
    is_real = ordered < m
    is_first = is_real.clone()
    is_first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    slot = (is_first.cumsum(1) - 1).clamp_(min=0)  # (k, s) touched row of each ordered sample
    touched_count = is_first.sum(1)
    owner, column = is_first.nonzero(as_tuple=True)
    width = -(-int(touched_count.max()) // LANES) * LANES
    touched = torch.zeros((k, width), dtype=torch.int64, device=users.device)
    touched[owner, slot[owner, column]] = ordered[owner, column]
    row = torch.zeros_like(items).scatter_(1, position, torch.where(is_real, slot, 0))
    is_positive = (position % (1 + negatives) == 0) & (position < weight[:, None])  # decoys lie behind them
    owner, column = (is_real & is_positive).nonzero(as_tuple=True)
    sign = torch.ones(touched.shape, device=users.device)
    sign[owner, slot[owner, column]] = -1.0
    return RoundSamples(touched, touched_count, sign, row, size, weight)


def _behind(items: Tensor, size: Tensor, decoys: tuple[Tensor, Tensor] | None, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Samples (k, s) and how many are real (k,), with the decoys behind the real ones."""
    if decoys is None:
        return items, size
    values, real = padded_rows(*decoys, rows, 0)
    grown = size + real.sum(1)
    width = max(items.shape[1], int(grown.max()))
    items = torch.nn.functional.pad(items, (0, width - items.shape[1]))
    owner, column = real.nonzero(as_tuple=True)
    items[owner, size[owner] + column] = values[owner, column]
    return items, grown


def _sorted_with_positions(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row of small non-negative integers (k, s); returns the sorted values and where they stood.

    The position rides in the low bits of the sort key, so one sort of plain integers does it. numpy's vectorised
    integer sort is 3 times as fast as torch's on a CPU, and gives the same order.

    Raises:
        InputError: a row is longer than those bits can number.
    """
    s = values.shape[1]
    if s > 1 << POSITION_BITS:
        raise InputError(f"a user has {s} samples a round, at most {1 << POSITION_BITS} fit: lower local.negatives")
    keys = (values << POSITION_BITS) | torch.arange(s, device=values.device)
    ordered = torch.from_numpy(np.sort(keys.numpy(), axis=-1)) if keys.device.type == "cpu" else keys.sort(-1).values
    return ordered >> POSITION_BITS, ordered & ((1 << POSITION_BITS) - 1)


def shuffled_rows(samples: RoundSamples, users: Tensor, draws: Draws, round_: int, epoch: int) -> Tensor:
    """(k, s) touched rows in the epoch's sample order; the real samples come first, padding stays behind them."""
    position = torch.arange(samples.row.shape[1], device=users.device)
    drawn = draws.bits("train/shuffle", (round_, epoch), users, len(position)) >> POSITION_BITS
    padding = 1 << (63 - POSITION_BITS)  # above every draw
    _, order = _sorted_with_positions(drawn.masked_fill_(position >= samples.size[:, None], padding - 1))
    return samples.row.gather(1, order)


def blocks_of(counts: Tensor, touched: Tensor, group: Tensor, width: int, budget: int) -> Sequence[Tensor]:
    """Split users into blocks that waste little on padding.

    Args:
        counts: (k,) samples of each user; users of a block are neighbours in this order.
        touched: (k,) upper bound of touched rows.
        group: (k,) users of different groups never share a block (equal number of batches, say).
        width: floats of a touched row.
        budget: most floats of a block's compact tables, padding included.

    Returns:
        Index tensors into the k users; together they hold each user once.
    """
    order = torch.from_numpy(np.lexsort((counts.cpu().numpy(), group.cpu().numpy())))
    groups, sizes = group.cpu()[order].tolist(), touched.cpu()[order].tolist()
    blocks, start, widest = [], 0, 0
    for end in range(len(sizes) + 1):
        grown = max(widest, sizes[end]) if end < len(sizes) else 0
        full = end == len(sizes) or groups[end] != groups[start] or grown * (end - start + 1) * width > budget
        if full and end > start:
            blocks.append(order[start:end])
            start, grown = end, sizes[end] if end < len(sizes) else 0
        widest = grown
    return blocks
