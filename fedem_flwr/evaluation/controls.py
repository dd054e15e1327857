"""Controls that stand beside every result, on the same split: random, popularity and EASE.

A federated method that does not beat them has shown nothing. All are fitted on the training part alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.ranking import MetricSums, Part, evaluate_scores
from fedem_flwr.protocol.splits import IntArray, Split
from fedem_flwr.randomness import keyed_uniform

Control = Literal["random", "popularity", "ease"]
Scorer = Callable[[IntArray], Tensor]  # (k,) users -> (k, m) scores

EASE_LIMIT = 25_000  # EASE holds tables of min(n, m) squared: 2.5 GB each in float32 at this size
_DOUBLE_UP_TO = 4096  # the size up to which EASE is solved in float64; beyond, memory and time count for more
_CELLS = 2**23  # scores held at a time
_FORMAT = 1  # of a cache entry; raise it when a control's figures change


def headline(protocol: str, full_means: Mapping[str, float], sampled_means: Mapping[str, float]) -> dict[str, Any]:
    """Put the figures of a protocol's headline first: 99 negatives under ``paper``, else the whole catalogue.

    Args:
        protocol: of the split that the figures were measured on.
        full_means: metric name to mean, target ranked in the whole catalogue.
        sampled_means: the same among 99 negatives.

    Returns:
        The headline's metrics by name, then ``"sampled99"`` and ``"full"`` with either set in whole.
    """
    first = sampled_means if protocol == "paper" else full_means
    return {**first, "sampled99": dict(sampled_means), "full": dict(full_means)}


def evaluate_scorer(split: Split, score: Scorer) -> dict[str, Any]:
    """Evaluate fixed scores on both held-out items, in blocks of users so that memory is bounded.

    Returns:
        The test figures in the form of `headline`, and ``"validation"`` with those of the validation item.
    """
    parts: tuple[Part, ...] = ("validation", "test")
    sums = {which: {way: MetricSums.empty() for way in ("full", "sampled99")} for which in parts}
    block = max(1, _CELLS // split.items)
    for start in range(0, split.users, block):
        users = np.arange(start, min(start + block, split.users), dtype=np.int64)
        scores = score(users)  # (k, m)
        for which in parts:
            for way, part in evaluate_scores(split, users, scores, which=which).items():
                sums[which][way] += part
    forms = {
        which: headline(split.protocol, ways["full"].means(), ways["sampled99"].means()) for which, ways in sums.items()
    }
    return {**forms["test"], "validation": forms["validation"]}


def random_control(split: Split) -> dict[str, Any]:
    """Uniform scores keyed by (the split's seed, user, item); the form of `evaluate_scorer`."""
    items = torch.arange(split.items)

    def score(users: IntArray) -> Tensor:
        return keyed_uniform(split.seed, "control/random", torch.from_numpy(users)[:, None], items)

    return evaluate_scorer(split, score)


def popularity_control(split: Split) -> dict[str, Any]:
    """Score an item by the number of users who have it in training; the form of `evaluate_scorer`."""
    counts = np.bincount(split.train_csr().indices, minlength=split.items)
    popularity = torch.from_numpy(counts.astype(np.float32))
    return evaluate_scorer(split, lambda users: popularity.expand(len(users), -1))


def ease_control(split: Split, ridge: float = 300.0) -> dict[str, Any]:
    """EASE (Steck 2019) in closed form: scores X B, B = I - P diag(P)^-1, P = (XᵀX + λI)^-1.

    With fewer users than items the same scores come from the small side: X P = K X and
    λ diag(P) = 1 - diag(Xᵀ K X) with K = (XXᵀ + λI)^-1, so the cost is min(n, m)^3.

    Args:
        split: X is its binary (n, m) training matrix.
        ridge: λ.

    Returns:
        The form of `evaluate_scorer`.

    Raises:
        InputError: λ is not positive, or too small for the arithmetic.
    """
    if not ridge > 0:
        raise InputError(f"ease_lambda is {ridge}: the ridge of the EASE control must be positive; try 300")
    train = split.train_csr().astype(np.float64 if min(split.users, split.items) <= _DOUBLE_UP_TO else np.float32)
    return evaluate_scorer(split, (_ease_by_users if split.users < split.items else _ease_by_items)(train, ridge))


def _ease_by_items(train: csr_matrix, ridge: float) -> Scorer:
    weights = _ridge_inverse(train.T.tocsr(), ridge)  # (m, m)
    weights /= -weights.diagonal().copy()  # column j by P_jj
    np.fill_diagonal(weights, 0)
    return lambda users: torch.from_numpy(train[users] @ weights)


def _ease_by_users(train: csr_matrix, ridge: float) -> Scorer:
    inverse, transposed = _ridge_inverse(train, ridge), train.T.tocsr()  # K (n, n)
    filled = np.zeros(train.shape[1], train.dtype)  # diag(XᵀKX)
    block = max(1, _CELLS // max(train.shape))
    for start in range(0, train.shape[0], block):
        stop = start + block
        filled += np.asarray(train[start:stop].T.multiply(transposed @ inverse[:, start:stop]).sum(1)).ravel()
    diagonal = ((1 - filled) / ridge)[:, None]  # (m, 1) P_jj
    return lambda users: torch.from_numpy((train[users].T - transposed @ inverse[:, users] / diagonal).T)


def _ridge_inverse(rows: csr_matrix, ridge: float) -> NDArray[Any]:
    """(r, r) inverse of A Aᵀ + λI for sparse A (r, c); holds three such tables at most."""
    count, columns = rows.shape[0], rows.T.tocsr()
    gram = np.empty((count, count), rows.dtype)
    block = max(1, _CELLS // count)
    for start in range(0, count, block):  # in whole the sparse product could outgrow the dense table
        gram[start : start + block] = (rows[start : start + block] @ columns).toarray()
    gram[np.diag_indices(count)] += ridge
    factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(gram))
    if failed:
        raise InputError(f"ease_lambda is {ridge}: too small to solve the EASE control; try 300")
    inverse: NDArray[Any] = torch.cholesky_inverse(factor).numpy()
    return inverse


def compute_controls(split: Split, ease_lambda: float = 300.0) -> dict[str, dict[str, Any]]:
    """All controls of a split by name (`Control`), each in the form of `evaluate_scorer`.

    EASE is left out where there are more than `EASE_LIMIT` items and as many users.
    """
    controls = {"random": random_control(split), "popularity": popularity_control(split)}
    if min(split.users, split.items) <= EASE_LIMIT:
        controls["ease"] = ease_control(split, ease_lambda)
    return controls


def split_hash(split: Split, **settings: float | str) -> str:
    """Hex SHA-256 of everything in a split, by content, and of the settings given."""
    fields = vars(split)
    scalars = {name: value for name, value in fields.items() if not isinstance(value, np.ndarray)}
    digest = hashlib.sha256(json.dumps([scalars, settings], sort_keys=True).encode())
    for name, value in sorted(fields.items()):
        if isinstance(value, np.ndarray):
            digest.update(f"{name}{value.dtype.str}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    return digest.hexdigest()


def cached_controls(split: Split, directory: Path, ease_lambda: float = 300.0) -> dict[str, dict[str, Any]]:
    """`compute_controls`, remembered in ``directory`` under the content of the split and the settings.

    A missing or damaged entry is computed again and replaced in one step.
    """
    key = split_hash(split, ease_lambda=ease_lambda, ease_limit=EASE_LIMIT, format=_FORMAT)
    entry = directory / f"controls-{key}.json"
    known = _read_entry(entry)
    if known is not None:
        return known
    controls = compute_controls(split, ease_lambda)
    directory.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{entry.name}-", dir=directory)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({"checksum": _checksum(controls), "controls": controls}, file)
        os.replace(temporary, entry)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return controls


def _read_entry(entry: Path) -> dict[str, dict[str, Any]] | None:
    """The controls in a cache entry; None where it is missing or damaged."""
    try:
        content = json.loads(entry.read_bytes())
        controls: dict[str, dict[str, Any]] = content["controls"]
        return controls if content["checksum"] == _checksum(controls) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checksum(controls: dict[str, dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(controls, sort_keys=True).encode()).hexdigest()
