"""Eq. 13 of FedEM (AAAI 2026) without a product of all pairs of tables: a smooth part, a diagonal, and near pairs.

Tables lie about their mean in so many directions that ‖Q_u − Q_v‖² is nearly n_u + n_v, of their squared distances n
from the mean. So σ_uv = 1 / (1 + n_u + n_v) is the base of each pair, as a function of n_v interpolated between a few
nodes, and what tables it combines are a few sums over all clients. Pairs that a sketch finds furthest from it get their
exact distance. What is dropped has a bound: an orthonormal sketch y, and the norms r_i of what it leaves of each item's
row, have ‖y_u − y_v‖² + Σ_i (r_ui − r_vi)² ≤ ‖Q_u − Q_v‖² ≤ ‖y_u − y_v‖² + Σ_i (r_ui + r_vi)², to single
precision.

With K clients and tables of M numbers it takes O(K M) operations, and O(K²) on sketches and norms.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from fedem_flwr.aggregation.combine import item_blocks
from fedem_flwr.aggregation.weights import eq13_scores, simplex_weights
from fedem_flwr.randomness import keyed_normal

_PAIRS = 1 << 22  # pairs of clients that are looked at together
_ROWS = 1024  # norms of rows that are kept of a client: items together where there are more
_BYTES = 1 << 26  # tables that are subtracted together
_CANCELS = 0.05  # of two squared norms: what is left of their sum has fewer digits


@dataclass(frozen=True)
class Near:
    """What is made for K clients.

    Attributes:
        tables: (K, m, d) G_u.
        own: (K,) each client's weight for itself.
        bound: (K,) what ‖ŵ_u − w_u‖ of the weights, Eq. 13's, cannot exceed.
        spread: what ‖Ĝ_u − G_u‖ over that of the weights cannot exceed: the root of Σ n_v.
        exact: (e,) clients whose weights reach 0: they were combined with all of them.
    """

    tables: Tensor
    own: Tensor
    bound: Tensor
    spread: float
    exact: Tensor


@dataclass(frozen=True)
class _Pairs:
    """Of each client: (K, k) kept neighbours, (K,) bound on the norm of what scores lack, the smallest base score."""

    kept: Tensor
    dropped: Tensor
    lowest: Tensor


def combine_near(
    tables: Tensor,
    shares: Tensor,
    alpha: float,
    *,
    neighbours: int,
    sketch: int = 64,
    nodes: int = 24,
    block_items: int | None = None,
) -> Near:
    """G_u = Σ_v w_uv Q_v by weights near those of Eq. 13, with a bound on how near.

    Args:
        tables: (K, m, d) uploaded tables. shares: (K,) p_v, which sum to 1. alpha: α.
        neighbours: pairs of each client that get their exact distance. sketch: its width. nodes: of the base.
        block_items: items read at a time; None chooses by memory.
    """
    clients, items, width = tables.shape
    neighbours, sketch = min(neighbours, clients - 1), min(sketch, clients, items * width)
    blocks = list(item_blocks(items, clients * width * 8, block_items))
    norms, y, rest = _sketched(tables, blocks, sketch)
    at = torch.linspace(0, 1, nodes, dtype=torch.float64)
    low, high = norms.min() + 1, norms.max() + 1
    points = low * (high / low) ** at - 1  # evenly apart in the logarithm
    hats = _hats(norms, points)
    base = 1 / (1 + norms.unsqueeze(1) + points)  # (K, nodes) σ at the nodes
    prior, share = shares.double() / (1 + alpha), alpha / (1 + alpha)  # see `weights.eq13_scores`
    pairs = _pairs(y, rest, share * base, hats, prior, share, neighbours)
    everyone = torch.arange(clients).unsqueeze(1)
    chosen = torch.cat([everyone, pairs.kept], 1).sort(1).values  # (K, 1 + k)
    exact = 1 / (1 + _distances(tables, norms, chosen, blocks))
    smooth = torch.einsum("uj,ukj->uk", base, hats[chosen])
    more = share * (exact - smooth)  # (K, 1 + k)
    total = share * (base @ hats.sum(0)) + prior.sum() + more.sum(1)
    threshold = (total - 1) / clients
    own = prior + share * exact[chosen == everyone] - threshold
    lowest = pairs.lowest + more.clamp(max=0).amin(1) - threshold
    mixing = torch.cat([(-threshold).unsqueeze(1), torch.ones(clients, 1).double(), share * base], 1)
    sums = torch.cat([torch.ones(1, clients).double(), prior.unsqueeze(0), hats.T])
    found = _combined(tables, mixing, sums, chosen, more, blocks)
    dense = (lowest < 0).nonzero().squeeze(1)
    bound = pairs.dropped
    if len(dense):
        own[dense], bound[dense] = _dense(tables, shares, alpha, dense, blocks, found), 0.0
    return Near(found, own, bound, float(norms.sum().sqrt()), dense)


def _sketched(tables: Tensor, blocks: list[slice], sketch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances from the mean table (K,), tables about it on r orthonormal directions (K, r), and what is left.

    That is the norms of rows, or of a few together, of the rest (K, rows).
    """
    clients, items, width = tables.shape
    mix = keyed_normal(0, "near/sketch", torch.arange(sketch)[:, None], torch.arange(clients)).to(tables)
    parts, norms = [], torch.zeros(clients, dtype=torch.float64)
    for block in blocks:
        part = _centred(tables, block)
        norms += part.double().square().sum(1)
        parts.append(mix @ part)  # (r, block · d): random sums of tables lie where tables lie
    directions = torch.linalg.qr(torch.cat(parts, 1).double().T).Q  # (m d, r)
    y, pieces = torch.zeros(clients, directions.shape[1]), directions.float().split([p.shape[1] for p in parts])
    for block, piece in zip(blocks, pieces, strict=True):
        y += _centred(tables, block) @ piece
    rest = torch.zeros(clients, min(items, _ROWS), dtype=torch.float64)
    for block, piece in zip(blocks, pieces, strict=True):
        left = (_centred(tables, block) - y @ piece.T).view(clients, -1, width).square().sum(2)
        into = torch.arange(block.start, block.stop) * rest.shape[1] // items
        rest.index_add_(1, into, left.double())
    return norms, y.double(), rest.sqrt()


def _centred(tables: Tensor, block: slice) -> Tensor:
    part = tables[:, block].flatten(1).float()
    return part - part.mean(0)


def _hats(norms: Tensor, points: Tensor) -> Tensor:
    """(K, nodes) weights of linear interpolation between the nodes."""
    right = torch.searchsorted(points, norms).clamp(1, len(points) - 1)
    gap = (points[right] - points[right - 1]).clamp(min=1e-300)
    part = ((norms - points[right - 1]) / gap).clamp(0, 1).unsqueeze(1)
    hats = torch.zeros(len(norms), len(points), dtype=torch.float64)
    return hats.scatter_(1, (right - 1).unsqueeze(1), 1 - part).scatter_(1, right.unsqueeze(1), part)


def _pairs(y: Tensor, rest: Tensor, base: Tensor, hats: Tensor, prior: Tensor, share: float, neighbours: int) -> _Pairs:
    """Look at all pairs' scores on sketches, some receivers at a time; projection moves no two scores further apart."""
    clients, flat = len(y), y.square().sum(1) + rest.square().sum(1)
    kept, dropped, lowest = [], [], []
    for rows in torch.arange(clients).split(max(1, _PAIRS // clients)):
        smooth = base[rows] @ hats.T
        expected = flat[rows].unsqueeze(1) + flat - 2 * y[rows] @ y.T  # what is left is taken to be orthogonal
        alike = 2 * rest[rows] @ rest.T
        least, most = share / (1 + expected + alike), share / (1 + (expected - alike).clamp(min=0))
        itself = rows.unsqueeze(1)
        away = (share / (1 + expected) - smooth).abs().scatter_(1, itself, -1.0)
        near = away.topk(neighbours, 1).indices
        worst = torch.maximum(most - smooth, smooth - least).scatter_(1, itself, 0.0).scatter_(1, near, 0.0)
        kept.append(near)
        dropped.append(worst.norm(dim=1))
        lowest.append((smooth + prior).amin(1))
    return _Pairs(*(torch.cat(found) for found in (kept, dropped, lowest)))


def _distances(tables: Tensor, norms: Tensor, chosen: Tensor, blocks: list[slice]) -> Tensor:
    """(K, k) ‖Q_u − Q_v‖² of chosen pairs: by products, or differences where they are so near that these cancel."""
    products = torch.zeros(chosen.shape, dtype=torch.float64)
    for block in blocks:
        part = _centred(tables, block)
        found = torch.sparse.sampled_addmm(_sparse(torch.zeros(chosen.shape), chosen), part, part.T)
        products += found.values().view(chosen.shape)
    both = norms.unsqueeze(1) + norms[chosen]
    found = both - 2 * products
    first, place = (found < _CANCELS * both).nonzero(as_tuple=True)
    for some in torch.arange(len(first)).split(max(1, _BYTES // (8 * tables[0].numel()))):
        u, v = first[some], chosen[first[some], place[some]]
        found[u, place[some]] = (tables[u].double() - tables[v].double()).square().sum((1, 2))
    return found


def _sparse(values: Tensor, chosen: Tensor) -> Tensor:
    """(K, K) of values (K, k) at chosen columns, ascending."""
    clients, count = chosen.shape
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)  # torch calls it beta
        rows = torch.arange(0, clients * count + 1, count)
        return torch.sparse_csr_tensor(
            rows, chosen.flatten(), values.flatten(), (clients, clients), check_invariants=True
        )


def _combined(
    tables: Tensor, mixing: Tensor, sums: Tensor, chosen: Tensor, more: Tensor, blocks: list[slice]
) -> Tensor:
    """mixing (K, s) · sums (s, K) · tables, and `more` (K, k) of the chosen ones, item block by item block."""
    out = torch.empty_like(tables)
    mixing, sums, near = mixing.float(), sums.float(), _sparse(more.float(), chosen)
    for block in blocks:
        mean, part = tables[:, block].flatten(1).float().mean(0), _centred(tables, block)  # weights sum to 1
        found = mixing @ (sums @ part) + near @ part + mean
        out[:, block] = found.view(len(found), -1, tables.shape[2]).to(out.dtype)
    return out


def _dense(tables: Tensor, shares: Tensor, alpha: float, who: Tensor, blocks: list[slice], out: Tensor) -> Tensor:
    """Write exact tables of clients `who` (e,); returns their own weights."""
    distances = torch.zeros(len(who), len(tables), dtype=torch.float64)
    for block in blocks:
        part = _centred(tables, block).double()
        norm = part.square().sum(1)
        distances += norm[who].unsqueeze(1) + norm - 2 * part[who] @ part.T
    alike = (1 / (1 + distances.clamp(min=0))).scatter_(1, who.unsqueeze(1), 1.0)
    weights = simplex_weights(eq13_scores(shares, alike, alpha))
    for block in blocks:
        found = weights.float() @ tables[:, block].flatten(1).float()
        out[who, block] = found.view(len(who), -1, tables.shape[2]).to(out.dtype)
    return weights.gather(1, who.unsqueeze(1)).squeeze(1)
