"""Aggregation weights by a general solver: the oracle of the closed form, and the way to add constraints."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedem_flwr.errors import InputError

FloatArray = NDArray[np.float64]
Objective = Literal["eq13", "released"]
GroupFloor = tuple[Tensor, float]
"""(n,) bool mask of the members, and the least weight that they get together."""

# The solver's default of 1e-8 leaves errors of 1e-5 in the weights: where a weight is just about to vanish,
# its error is the root of the tolerance. So the tightest is tried first; rounding keeps some problems from
# reaching it.
_TOLERANCES = (1e-14, 1e-13, 1e-12, 1e-11)
_WIDE = 1e3  # a spread of released scores that the solver cannot resolve to 1e-6 any more


def cvxpy_weights(
    proportions: Tensor,
    similarity: Tensor,
    alpha: float,
    *,
    objective: Objective = "eq13",
    caps: float | None = None,
    banned: Tensor | None = None,
    floors: Sequence[GroupFloor] = (),
) -> Tensor:
    """Minimise FedEM's weight objective on the simplex, one problem a receiver, with extra constraints.

    ``eq13`` is the paper's Σ_v (w_v - p_v)² + α (w_v - σ_uv)²; ``released`` is the released program's
    ||w||² - 2 (p + α σ_u)·w. Without extra constraints both have closed forms, see
    `fedem_flwr.aggregation.weights`.

    Args:
        proportions: (n,) p_v, summing to 1.
        similarity: (k, n) σ_uv, one row a receiver.
        alpha: α >= 0.
        objective: which of the two.
        caps: no single weight may exceed it; None is no limit.
        banned: (k, n) bool, True where receiver u must not take anything from v.
        floors: groups of clients that every receiver must give at least a total weight to.

    Returns:
        (k, n) float64 on the similarity's device; rows sum to 1, constraints hold within 1e-8.

    Raises:
        ValueError: if a shape or the objective is wrong, or a value is not finite.
        InputError: if no weights satisfy the constraints or the solver fails (the message names the row),
            or cvxpy is not installed.
    """
    prior = proportions.detach().to("cpu", torch.float64).numpy()
    rows = similarity.detach().to("cpu", torch.float64).numpy()
    upper = _upper_bounds(rows.shape, caps, banned)
    _check(prior, rows, alpha)
    problem, variable, linear, bound = _compile(prior, alpha, objective, floors)
    reach = np.zeros_like(upper) if floors else upper  # see `_released_scores`
    weights = np.empty_like(rows)
    for row, sigma in enumerate(rows):
        bound.value = upper[row]
        linear.value = sigma if objective == "eq13" else _released_scores(prior, sigma, alpha, reach[row])
        weights[row] = _solve(problem, variable, upper[row], row)
    return torch.from_numpy(weights).to(similarity.device)


def _compile(
    prior: FloatArray, alpha: float, objective: Objective, floors: Sequence[GroupFloor]
) -> tuple[Any, Any, Any, Any]:
    """State the problem once: (problem, weights, parameter of a receiver's row, of its upper bounds)."""
    try:
        import cvxpy as cp  # on demand: it takes a second to import, and only this path needs it
    except ImportError as error:
        raise InputError("the weight solver needs cvxpy, which is not installed: pip install cvxpy") from error
    weights = cp.Variable(len(prior))
    linear, bound = cp.Parameter(len(prior)), cp.Parameter(len(prior), nonneg=True)
    if objective == "eq13":  # divided by 1 + α: numbers that the solver can handle when α is huge
        fit_prior, fit_neighbours = cp.sum_squares(weights - prior), cp.sum_squares(weights - linear)
        loss = fit_prior / (1 + alpha) + fit_neighbours * (alpha / (1 + alpha))
    elif objective == "released":
        loss = cp.sum_squares(weights) - 2 * (linear @ weights)
    else:
        raise ValueError(f"unknown objective '{objective}'; valid: eq13, released")
    constraints = [weights >= 0, cp.sum(weights) == 1, weights <= bound]
    for group, (members, floor) in enumerate(floors):
        mask = members.detach().cpu().numpy().astype(np.float64)
        if mask.shape != prior.shape:
            raise ValueError(f"floor {group} has a mask of shape {mask.shape}; want {prior.shape}")
        constraints.append(mask @ weights >= floor)
    return cp.Problem(cp.Minimize(loss), constraints), weights, linear, bound


def _released_scores(prior: FloatArray, sigma: FloatArray, alpha: float, upper: FloatArray) -> FloatArray:
    """p + α σ, the largest moved to 0 (a constant on the simplex), a huge spread narrowed without loss.

    Give the best scores their upper bounds until the weight 1 is used up, at score s_j. Then s_j - 1 <= τ
    <= s_j in the minimiser clip(s - τ, 0, upper), so a score more than 1 away from s_j puts its weight at a
    bound, however far away it is. Group floors void the argument; the caller then passes upper bounds of 0,
    and nothing is narrowed.
    """
    scores: FloatArray = prior + alpha * sigma
    scores = scores - scores.max()
    order = np.argsort(-scores, kind="stable")
    filled = np.cumsum(upper[order]) >= 1
    if np.ptp(scores) <= _WIDE or not filled.any():  # nothing to narrow, or infeasible: the solver says so
        return scores
    pivot = scores[order[np.argmax(filled)]]
    return np.asarray(np.clip(scores, pivot - 2, pivot + 2) - pivot)


def _solve(problem: Any, variable: Any, upper: FloatArray, row: int) -> FloatArray:
    """Solve the compiled problem and return the weights, (n,), inside their bounds."""
    for tolerance in _TOLERANCES:
        status = _attempt(problem, tolerance)
        if status in ("optimal", "optimal_inaccurate"):
            inside: FloatArray = np.clip(variable.value, 0, upper)  # an interior point is off by rounding
            return np.asarray(inside / inside.sum())
        if status == "infeasible":
            raise InputError(
                f"row {row}: no weights satisfy the caps, banned neighbours and floors;"
                " raise the cap, ban fewer neighbours or lower a floor"
            )
    raise InputError(f"row {row}: the weight solver failed ({status}); use a smaller alpha or looser constraints")


def _attempt(problem: Any, tolerance: float) -> str:
    """Solve to a tolerance, or ten times as much where rounding stops the solver; returns cvxpy's status."""
    from cvxpy.error import SolverError

    names = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
    settings = dict.fromkeys(names, tolerance) | {f"reduced_{name}": 10 * tolerance for name in names}
    with warnings.catch_warnings():
        # "Solution may be inaccurate": by less than what is accepted here.
        warnings.simplefilter("ignore", UserWarning)
        try:
            problem.solve(solver="CLARABEL", **settings)
        except SolverError:
            return "solver_error"
    return str(problem.status)


def _upper_bounds(shape: tuple[int, ...], caps: float | None, banned: Tensor | None) -> FloatArray:
    """(k, n) the most that each receiver may take from each client."""
    if caps is not None and not caps >= 0:
        raise ValueError(f"caps is {caps}; it must be a number and not negative")
    upper = np.full(shape, 1.0 if caps is None else min(caps, 1.0))
    if banned is not None:
        if tuple(banned.shape) != shape:
            raise ValueError(f"banned has shape {tuple(banned.shape)}; want {shape}")
        upper[banned.detach().cpu().numpy().astype(bool)] = 0.0
    return upper


def _check(prior: FloatArray, rows: FloatArray, alpha: float) -> None:
    if rows.ndim != 2 or prior.shape != rows.shape[1:]:
        raise ValueError(f"similarity {rows.shape} does not fit proportions {prior.shape}; want (k, n) and (n,)")
    if not (np.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha is {alpha}; it must be finite and not negative")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(f"similarity row {int(np.argmin(finite))} holds a value that is not finite")
    if not np.isfinite(prior).all():
        raise ValueError(f"proportions row {int(np.argmin(np.isfinite(prior)))} is not finite")
