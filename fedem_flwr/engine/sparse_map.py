"""The directional map of a large catalogue, from sparse sums: no table of items × items.

Row i of W = (G + λ I)⁻¹ C is zᵢᵀ C with (G + λ I) zᵢ = eᵢ, and zᵢ is small away from i's neighbours in G. So zᵢ is
solved for on i and its nearest neighbours alone (a sparse approximate inverse, Grote and Huckle 1997), a small
system a row: exact where all items are neighbours, else another estimate. G's part of it is positive definite, as G is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from fedem_flwr.engine.history import IntArray
from fedem_flwr.engine.parallel import in_parallel

NEIGHBOURS = 16  # of an item, itself included, that its system is solved on; more were worse on sparse data
FOLLOWERS = 1024  # of an item: entries of a row of C that are kept, the largest
_ROWS = 256  # solved at a time, in one worker


@dataclass(frozen=True)
class SparseSums:
    """Sums of pairs of m items.

    Attributes:
        items: m. pairs: (t,) i · m + j, ascending. gram, cross: (t,) Σ x_i x_j and Σ x_i y_j.
    """

    items: int
    pairs: IntArray
    gram: np.ndarray
    cross: np.ndarray

    def ends(self) -> IntArray:
        """(m + 1,) where the pairs of each item begin, and where they end."""
        found: IntArray = np.searchsorted(self.pairs, np.arange(self.items + 1) * self.items)
        return found

    def of(self, rows: IntArray, columns: IntArray) -> np.ndarray:
        """Σ x_i x_j of pairs of items; 0 where no history has them."""
        codes = rows.astype(np.int64) * self.items + columns
        at = np.searchsorted(self.pairs, codes).clip(max=max(0, len(self.pairs) - 1))
        found: np.ndarray = np.where(self.pairs[at] == codes, self.gram[at], 0.0)
        return found


def sparse_map(
    sums: SparseSums, ridge: float, entries: int, *, neighbours: int = NEIGHBOURS, followers: int = FOLLOWERS
) -> tuple[Tensor, Tensor]:
    """The map, cut to each row's largest entries; as `transitions.directional_map`, by another estimate.

    Returns:
        items (m, e) int32 and their values (m, e) float32; places without an entry are item 0 with value 0.

    Raises:
        FloatingPointError: the sums are not those of any histories.
    """
    m, size = sums.items, min(neighbours, sums.items)
    diagonal = sums.of(np.arange(m), np.arange(m)) if len(sums.pairs) else np.zeros(m)
    strength = max(float(ridge * diagonal.mean()), 1e-12)
    ends, cross = sums.ends(), _largest(sums, followers)

    def solved(block: IntArray) -> tuple[np.ndarray, np.ndarray]:
        near, real = _nearest(sums, ends, block, size, diagonal + strength)  # (b, s)
        left, right = np.triu_indices(size, 1)
        gram = np.zeros((len(block), size, size))
        gram[:, left, right] = sums.of(near[:, left], near[:, right]) * (real[:, left] & real[:, right])
        gram += gram.swapaxes(1, 2)
        own = np.arange(size)
        gram[:, own, own] = np.where(real, diagonal[near], 0.0) + strength
        factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(gram))
        if bool(failed.any()):
            raise FloatingPointError("the sums of pairs of items are not those of any histories")
        units = torch.from_numpy((near == block[:, None]).astype(np.float64)).unsqueeze(2)
        weights = torch.cholesky_solve(units, factor).squeeze(2).numpy() * real  # (b, s)
        places = np.arange(len(block) + 1) * size
        inverse = csr_matrix((weights.ravel(), near.ravel(), places), shape=(len(block), m))
        return _top(inverse @ cross, entries)

    blocks = np.split(np.arange(m), range(_ROWS, m, _ROWS))
    items, values = np.zeros((m, entries), np.int32), np.zeros((m, entries), np.float32)
    done = 0
    for found, of_found in in_parallel(solved, blocks, torch.device("cpu"), "rows of the map"):
        items[done : done + len(found)], values[done : done + len(found)] = found, of_found
        done += len(found)
    return torch.from_numpy(items), torch.from_numpy(values)


def _nearest(
    sums: SparseSums, ends: IntArray, block: IntArray, size: int, spread: np.ndarray
) -> tuple[IntArray, np.ndarray]:
    """(b, s) items' nearest neighbours and themselves, ascending, and which of these places hold one.

    Args:
        spread: (m,) diagonal of G + λ I: neighbours are near by Σ x_i x_j / √ of theirs.
    """
    near, real = np.repeat(block[:, None], size, axis=1), np.zeros((len(block), size), np.bool_)
    for row, item in enumerate(block):
        columns = sums.pairs[ends[item] : ends[item + 1]] - item * sums.items
        close = sums.gram[ends[item] : ends[item + 1]] / np.sqrt(spread[columns])
        others = columns[_first(np.where(columns == item, 0.0, close), size - 1)]
        chosen = np.union1d(others[others != item], [item])
        near[row, : len(chosen)], real[row, : len(chosen)] = chosen, True
    return near, real


def _largest(sums: SparseSums, followers: int) -> csr_matrix:
    """(m, m) C with the largest entries of each row."""
    rows, ends = [], sums.ends()
    for item in np.flatnonzero(np.diff(ends)):
        rows.append(ends[item] + _first(sums.cross[ends[item] : ends[item + 1]], followers))
    at = np.sort(np.concatenate([np.empty(0, np.int64), *rows]))
    at = at[sums.cross[at] > 0]
    owner, columns = np.divmod(sums.pairs[at], sums.items)
    return csr_matrix((sums.cross[at], (owner, columns)), shape=(sums.items, sums.items))


def _first(values: np.ndarray, count: int) -> IntArray:
    """Places of the `count` largest values that are above 0, in no order."""
    if len(values) > count:
        places = np.argpartition(values, len(values) - count)[len(values) - count :] if count else np.empty(0, np.int64)
    else:
        places = np.arange(len(values))
    found: IntArray = places[values[places] > 0]
    return found


def _top(rows: csr_matrix, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row's largest entries by size, largest first: columns and values (b, e)."""
    items, values = np.zeros((rows.shape[0], entries), np.int32), np.zeros((rows.shape[0], entries), np.float32)
    for row in range(rows.shape[0]):
        where = slice(rows.indptr[row], rows.indptr[row + 1])
        columns, found = rows.indices[where], rows.data[where]
        best = _first(np.abs(found), entries)
        best = best[np.lexsort((columns[best], -np.abs(found[best])))]
        items[row, : len(best)], values[row, : len(best)] = columns[best], found[best]
    return items, values
