"""Linear controls: a user's scores are the weighted rows of the user's history times an item-item table.

EASE (Steck 2019, "Embarrassingly shallow autoencoders for sparse data") in closed form, and item-based nearest
neighbours (Sarwar et al. 2001) with shrunk cosine similarity. Both only see the training part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from fedem_flwr.engine.parallel import in_parallel
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.cost import DOUBLE_UP_TO
from fedem_flwr.protocol.split import IntArray, Split, user_rows

Linear = Callable[[csr_matrix], Tensor]  # (k, m) weights of histories -> (k, m) float32 scores

_CPU = torch.device("cpu")
CELLS = 2**23  # numbers of a dense block held at a time
_COLUMNS = 256  # of the item-item table multiplied at a time: that many stay in the processor's cache


def blocks(count: int, width: int) -> Iterator[slice]:
    """Consecutive slices that cover ``count`` rows of ``width`` numbers, each of at most `CELLS` numbers."""
    step = max(1, CELLS // max(1, width))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


@dataclass(frozen=True, eq=False)
class AgedItems:
    """The distinct items that each user has met, oldest first.

    Attributes:
        offsets: (n + 1,) row starts.
        items: (e,) item codes; of repeated rows the newest counts.
        ages: (e,) how many newer items the user has.
        catalogue: m.
    """

    offsets: IntArray
    items: IntArray
    ages: IntArray
    catalogue: int

    @classmethod
    def of(cls, split: Split, *, validation: bool = False) -> AgedItems:
        """What users are scored from and, if asked for, the validation item as the newest one."""
        everyone, (known, items) = np.arange(split.users, dtype=np.int64), split.known()
        user, item = np.repeat(everyone, np.diff(known)), np.asarray(items, np.int64)
        if validation:
            user, item = np.append(user, everyone), np.append(item, split.validation)
            order = np.argsort(user, kind="stable")
            user, item = user[order], item[order]
        _, last = np.unique((user * split.items + item)[::-1], return_index=True)  # first from behind
        kept = np.sort(len(user) - 1 - last)
        user, item = user[kept], item[kept]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(user, minlength=split.users))])
        return cls(offsets, item, offsets[user + 1] - 1 - np.arange(len(item)), split.items)

    def rows(self, users: IntArray, half_life: float = float("inf")) -> csr_matrix:
        """(k, m) float32 rows of some users: an item weighs 0.5 ** (age / half_life), 1 for an infinite half-life."""
        row, flat = user_rows(self.offsets, users)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(row, minlength=len(users)))])
        weights = np.exp2(-self.ages[flat] / half_life).astype(np.float32)
        return csr_matrix((weights, self.items[flat], starts), shape=(len(users), self.catalogue))


class Ease:
    """EASE for any number of ridges: B = I - P diag(P)^-1, P = (XᵀX + λI)^-1; scores x B.

    With far fewer users than items the scores come from the small side: x P = (x - x Xᵀ K X) / λ and
    λ diag(P) = 1 - diag(Xᵀ K X) with K = (XXᵀ + λI)^-1, so a solution costs n^3, but scores more than from B. One
    Cholesky inverse a ridge: for ML-1M's 3,706 items it takes 2.5 s on one core, the eigenvectors of XᵀX 11 s and then
    as much again a ridge.

    Attributes:
        train: X, the binary (n, m) training matrix.
    """

    def __init__(self, train: csr_matrix) -> None:
        users, items = train.shape
        self._by_users = self.size(users, items) < items
        self._small = self.size(users, items) <= DOUBLE_UP_TO
        self.train = train.astype(np.float64 if self._small else np.float32)
        self._gram = _gram(self.train if self._by_users else self.train.T.tocsr())
        self._solved: dict[float, Linear] = {}

    @staticmethod
    def size(users: int, items: int) -> int:
        """Rows of the dense tables that a solution holds."""
        return users if 2 * users < items else items

    def model(self, ridge: float) -> Linear:
        """The scores for one ridge λ; small solutions are kept.

        Raises:
            InputError: λ is not positive, or too small for the arithmetic.
        """
        if not ridge > 0:
            raise InputError(f"evaluation.ease_lambda is {ridge}: the ridge of EASE must be positive; try 300")
        if ridge in self._solved:
            return self._solved[ridge]
        inverse = self._inverse(ridge)
        model = _by_users(self.train, inverse) if self._by_users else _by_items(inverse)
        if self._small:
            self._solved[ridge] = model
        return model

    def _inverse(self, ridge: float) -> NDArray[Any]:
        """(r, r) inverse of the Gram matrix + λI; three such tables live at a time."""
        diagonal = np.diag_indices(len(self._gram))
        plain = self._gram[diagonal]
        self._gram[diagonal] = plain + ridge
        factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(self._gram))
        self._gram[diagonal] = plain
        if failed:
            raise InputError(f"evaluation.ease_lambda is {ridge}: too small to solve EASE; try 300")
        inverse: NDArray[Any] = torch.cholesky_inverse(factor).numpy()
        return inverse


def _gram(rows: csr_matrix) -> NDArray[Any]:
    """(r, r) dense A Aᵀ of sparse A (r, c), in blocks: in whole the sparse product could outgrow the dense table."""
    count, columns = rows.shape[0], rows.T.tocsr()
    gram = np.empty((count, count), rows.dtype)
    for block in blocks(count, count):
        gram[block] = (rows[block] @ columns).toarray()
    return gram


def _by_items(inverse: NDArray[Any]) -> Linear:
    """x B from P (m, m), which is overwritten."""
    inverse /= -inverse.diagonal().copy()  # column j by P_jj
    np.fill_diagonal(inverse, 0)
    parts = [
        torch.from_numpy(inverse[:, start : start + _COLUMNS].astype(np.float32, order="C"))
        for start in range(0, len(inverse), _COLUMNS)
    ]  # (m, c) each

    def score(rows: csr_matrix) -> Tensor:
        items, starts = torch.from_numpy(rows.indices.astype(np.int64)), torch.from_numpy(rows.indptr.astype(np.int64))
        weights = torch.from_numpy(rows.data)
        return torch.cat([_sum_of_rows(part, items, starts, weights) for part in parts], dim=1)

    return score


def _sum_of_rows(table: Tensor, items: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """(k, c) sparse rows times a dense table; several times as fast as scipy's product on a narrow table."""
    return torch.nn.functional.embedding_bag(
        items, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def _by_users(train: csr_matrix, inverse: NDArray[Any]) -> Linear:
    """x B = x - (x - x Xᵀ K X) / (λ diag P) from K (n, n)."""
    transposed = train.T.tocsr()
    filled = np.zeros(train.shape[1], train.dtype)  # diag(XᵀKX)
    for block in blocks(train.shape[0], max(train.shape)):
        filled += np.asarray(train[block].T.multiply(transposed @ inverse[:, block]).sum(1)).ravel()
    scale = 1 / (1 - filled)  # (m,) of λ P_jj
    scaled = csr_matrix(transposed.multiply(scale[:, None]), dtype=np.float32)  # (m, n)

    def score(rows: csr_matrix) -> Tensor:
        overlap = (rows.astype(train.dtype) @ transposed).toarray()  # (k, n)
        scores = np.ascontiguousarray((scaled @ (overlap @ inverse).T.astype(np.float32)).T)  # (k, m)
        row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        scores[row, rows.indices] += rows.data * (1 - scale[rows.indices]).astype(np.float32)
        return torch.from_numpy(scores)

    return score


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The items most similar to each item, nearest first: (m, q) codes and float32 similarities."""

    items: NDArray[np.int32]
    similarities: NDArray[np.float32]

    @classmethod
    def of(cls, train: csr_matrix, most: int, shrinkages: Sequence[float]) -> dict[float, Neighbours]:
        """Find at most ``most`` neighbours by |i ∩ j| / (√(|i| |j|) + shrinkage); the lower code first in a tie.

        Args:
            train: binary (n, m).
            most: q, or m where there are fewer items. Where an item has fewer neighbours, the rest have similarity 0.
            shrinkages: what lowers the similarity of items with few users; one answer for each.
        """
        count, most = train.shape[1], min(most, train.shape[1])
        by_item, sizes = train.T.tocsr(), np.asarray(train.sum(0), np.float32).ravel()
        found = {
            shrinkage: cls(np.zeros((count, most), np.int32), np.zeros((count, most), np.float32))
            for shrinkage in shrinkages
        }

        def fill(block: slice) -> None:
            common = (by_item[block] @ train).sorted_indices()  # (b, m) sparse
            lengths = np.diff(common.indptr)
            row = np.repeat(np.arange(len(lengths)), lengths)
            place = np.arange(common.nnz) - common.indptr[row]
            common.data[common.indices == row + block.start] = 0  # no neighbour of itself
            root = np.sqrt(sizes[row + block.start] * sizes[common.indices])
            near = np.zeros((len(lengths), max(most, int(lengths.max(initial=0)))), np.float32)
            for shrinkage, neighbours in found.items():
                near[row, place] = common.data / (root + np.float32(shrinkage))
                rows, places, ranks = _largest(torch.from_numpy(near), most)
                neighbours.items[block.start + rows, ranks] = common.indices[common.indptr[rows] + places]
                neighbours.similarities[block.start + rows, ranks] = near[rows, places]

        for _ in in_parallel(fill, list(blocks(count, count)), _CPU, "control item-kNN: neighbours"):
            pass
        return found

    def model(self, neighbours: int) -> Linear:
        """Score an item by the summed similarity of those of its nearest neighbours that are in the history."""
        items, similarities = self.items[:, :neighbours], self.similarities[:, :neighbours]
        count, width = items.shape
        starts = np.arange(0, count * width + 1, max(1, width))
        table = csr_matrix((similarities.flatten(), items.flatten(), starts), shape=(count, count))
        table.eliminate_zeros()  # in place, on the copies that flatten makes
        by_neighbour = table.T.tocsr()
        return lambda rows: torch.from_numpy((rows @ by_neighbour).toarray())


def _largest(values: Tensor, count: int) -> tuple[IntArray, IntArray, IntArray]:
    """Each row's largest positive values, at most `count`; among equals the first, which topk leaves open.

    Returns:
        (e,) rows of them, (e,) places in the row, and (e,) ranks from 0, the largest first.
    """
    least = values.topk(count, sorted=False).values.amin(1, keepdim=True)  # (b, 1)
    rows, places = ((values >= least) & (values > 0)).nonzero().numpy().T  # by row, then by place
    order = np.lexsort((places, -values.numpy()[rows, places], rows))
    rows, places = rows[order], places[order]
    ranks = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = ranks < count
    return rows[kept], places[kept], ranks[kept]
