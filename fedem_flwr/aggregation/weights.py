"""Aggregation weights: who listens to whom, and how much. Closed forms; the general solver is in `oracle`."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fedem_flwr.aggregation.oracle import cvxpy_weights

WeightRule = Literal["average", "eq13", "released", "cvxpy"]

_NEWTON_STEPS = 32  # rows that need more are sorted; on real similarities five to seven steps suffice
_NEGLIGIBLE = 1e-20  # the released program drops weights below it


def aggregation_weights(rule: WeightRule, proportions: Tensor, similarity: Tensor, alpha: float) -> Tensor:
    """Weights of every receiver over the cohort's uploads.

    - ``average``: w_uv = p_v for everyone (FedAvg).
    - ``eq13``: the minimiser of the paper's Eq. 13, in closed form.
    - ``released``: the released program's minimiser; entries below 1e-20 dropped, rows renormalised.
    - ``cvxpy``: Eq. 13 by the general solver, one problem a client; slow, to check ``eq13``.

    Args:
        rule: which of the four.
        proportions: (K,) share of the data that each client holds, p_v; any positive scale, normalised here.
        similarity: (K, K) σ_uv, see `fedem_flwr.aggregation.similarity`.
        alpha: α >= 0, how much the similarity counts (0.9 in the paper).

    Returns:
        (K, K) float64 on the similarity's device; row u holds what client u takes of each v, and sums to 1.

    Raises:
        ValueError: if a shape or the rule is wrong, or a value is not finite (the message names its row).
    """
    if proportions.ndim != 1 or similarity.shape != (len(proportions), len(proportions)):
        raise ValueError(
            f"similarity {tuple(similarity.shape)} does not fit proportions {tuple(proportions.shape)};"
            " want (K, K) and (K,)"
        )
    shares = _normalised(proportions).to(similarity.device)
    return cvxpy_weights(shares, similarity, alpha) if rule == "cvxpy" else row_weights(rule, shares, similarity, alpha)


def row_weights(rule: WeightRule, shares: Tensor, similarity: Tensor, alpha: float) -> Tensor:
    """The same of some receivers: similarities (r, K) to weights (r, K); shares (K,) sum to 1. Not ``cvxpy``."""
    if rule == "average":
        return average_weights(shares, len(similarity))
    if rule == "eq13":
        return _project_(eq13_scores(shares, similarity, alpha))
    if rule == "released":
        weights = _project_(released_scores(shares, similarity, alpha))
        weights.masked_fill_(weights < _NEGLIGIBLE, 0.0)
        return weights.div_(weights.sum(dim=-1, keepdim=True))
    raise ValueError(f"unknown weight rule '{rule}'; valid: average, cvxpy, eq13, released")


def average_weights(proportions: Tensor, receivers: int) -> Tensor:
    """FedAvg: every one of k receivers weights client v by p_v. (n,) -> (k, n) float64, own memory."""
    return proportions.to(torch.float64).expand(receivers, -1).clone()


def eq13_scores(proportions: Tensor, similarity: Tensor, alpha: float) -> Tensor:
    """(p + α σ_u) / (1 + α): completing the square, Eq. 13 is the projection of this on the simplex.

    Args:
        proportions: (n,) p_v.
        similarity: (k, n) σ_uv, one row a receiver.
        alpha: α >= 0.

    Returns:
        (k, n) float64 scores, own memory.
    """
    _require_alpha(alpha)
    prior = proportions.to(torch.float64) / (1 + alpha)
    return torch.add(prior, similarity.to(torch.float64), alpha=alpha / (1 + alpha))


def released_scores(proportions: Tensor, similarity: Tensor, alpha: float) -> Tensor:
    """p + α σ_u, which the released program projects (its quadratic term lacks 1 + α); as `eq13_scores`."""
    _require_alpha(alpha)
    return torch.add(proportions.to(torch.float64), similarity.to(torch.float64), alpha=alpha)


def simplex_weights(scores: Tensor) -> Tensor:
    """Project each row on the probability simplex: argmin_w ||w - scores||² subject to w >= 0 and sum(w) = 1.

    The exact minimiser of Eq. 13 for `eq13_scores`. The answer is (scores - τ)₊ for the one τ at which it
    sums to 1. That sum is convex and piecewise linear in τ, so Newton's method from below (Michelot 1986)
    ends at the exact τ once the set of positive weights stays the same. Rows that take many steps are
    sorted instead, O(n log n) a row.

    Args:
        scores: (k, n) unconstrained weights, one row a client, any scale.

    Returns:
        (k, n) float64 weights on the scores' device.

    Raises:
        ValueError: if the shape is wrong, or a score is not finite (the message names its row).
    """
    if scores.ndim != 2:
        raise ValueError(f"scores have shape {tuple(scores.shape)}; want (k, n)")
    return _project_(scores.to(torch.float64, copy=True))


def _project_(scores: Tensor) -> Tensor:
    """`simplex_weights` in place on float64 (k, n), in blocks of rows that stay in a CPU's cache."""
    if scores.shape[1] == 0:
        raise ValueError("scores have no columns: there is nobody to weight")
    elements = 2**25 if scores.is_cuda else 2**17
    block_rows = max(1, elements // scores.shape[1])
    for start in range(0, len(scores), block_rows):
        block = scores[start : start + block_rows]
        _shift_(block, start)
        block.copy_(_newton_projection(block))
    return scores


def _shift_(block: Tensor, first_row: int) -> None:
    """Move each row's largest score to 0 and clamp at -1, in place; neither changes the projection.

    τ is at least the largest score minus 1, so lower scores get no weight whatever they are. Afterwards
    every number is in [-1, 0]: scores of 1e9 (a huge α) lose no further digits in the sums, and overflow
    cannot happen.
    """
    largest = block.amax(dim=-1, keepdim=True)
    if not bool(block.sum(dim=-1).isfinite().all()):  # one cheap pass; it may be a mere overflow of the sum
        finite = block.isfinite().all(dim=-1)
        if not bool(finite.all()):
            row = first_row + int((~finite).nonzero()[0])
            raise ValueError(f"scores row {row} holds a value that is not finite")
    block.sub_(largest).clamp_(min=-1)


def _newton_projection(shifted: Tensor) -> Tensor:
    """Projection of rows in [-1, 0], largest score 0: (rows, n) -> (rows, n). Unsettled rows are sorted."""
    # The first threshold is exact if all weights are positive, and too low otherwise.
    threshold = (shifted.sum(dim=-1, keepdim=True) - 1) / shifted.shape[1]  # (rows, 1)
    weights, positive = torch.empty_like(shifted), torch.empty_like(shifted)
    kept = torch.full_like(threshold, -1)
    for _ in range(_NEWTON_STEPS):
        torch.sub(shifted, threshold, out=weights).clamp_(min=0)
        torch.sign(weights, out=positive)  # summing these is several times faster than counting booleans
        count = positive.sum(dim=-1, keepdim=True)  # (rows, 1)
        if torch.equal(count, kept):
            return weights
        threshold = threshold + (weights.sum(dim=-1, keepdim=True) - 1) / count
        kept = count
    torch.sub(shifted, threshold, out=weights).clamp_(min=0)
    unsettled = (weights > 0).sum(dim=-1) != kept.squeeze(-1)
    weights[unsettled] = _sorted_projection(shifted[unsettled])
    return weights


def _sorted_projection(shifted: Tensor) -> Tensor:
    """The same by sorting (Held, Wolfe and Crowder 1974): (rows, n) -> (rows, n)."""
    ordered = shifted.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(dim=-1) - 1  # what must be taken off if the first j stay
    rank = torch.arange(1, shifted.shape[-1] + 1, dtype=shifted.dtype, device=shifted.device)
    kept = (ordered * rank > excess).sum(dim=-1, keepdim=True)  # (rows, 1) how many weights stay positive
    return (shifted - excess.gather(-1, kept - 1) / kept).clamp_(min=0)


def _normalised(proportions: Tensor) -> Tensor:
    """Check the shares of the data and scale them to sum 1, float64."""
    shares = proportions.to(torch.float64)
    valid = shares.isfinite() & (shares >= 0)
    if not bool(valid.all()):
        row = int((~valid).nonzero()[0])
        raise ValueError(f"proportions row {row} is {float(shares[row])}; it must be finite and not negative")
    total = shares.sum()
    if not bool(total > 0):
        raise ValueError("the proportions sum to 0: no client holds any data")
    return shares / total


def _require_alpha(alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha is {alpha}; it must be finite and not negative")
