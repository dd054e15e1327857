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
from torch import Tensor

from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.ranking import MetricSums, Part, evaluate_scores
from fedem_flwr.protocol.splits import IntArray, Protocol, Split
from fedem_flwr.randomness import keyed_uniform

Control = Literal["random", "popularity", "ease"]
Scorer = Callable[[IntArray], Tensor]  # (k,) users -> (k, m) scores

EASE_ITEM_LIMIT = 25_000  # EASE holds m x m tables: 2.5 GB each in float32 at this size
_DOUBLE_UP_TO = 4096  # items up to which EASE is solved in float64; beyond, memory and time count for more
_CELLS = 2**23  # scores held at a time
_FORMAT = 1  # of a cache entry; raise it when a control's figures change


def headline(
    protocol: Protocol, full_means: Mapping[str, float], sampled_means: Mapping[str, float]
) -> dict[str, Any]:
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
        which: headline(split.protocol, ways["full"].means(), ways["sampled99"].means())
        for which, ways in sums.items()
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


def ease_weights(split: Split, ridge: float) -> Tensor:
    """Item weights of EASE (Steck 2019): B = I - P diag(P)^-1 with P = (XᵀX + λI)^-1, in closed form.

    Args:
        split: X is its binary training matrix.
        ridge: λ.

    Returns:
        (m, m) weights, zero on the diagonal; float64 up to 4,096 items, float32 beyond.

    Raises:
        InputError: λ is not positive, or too small for the arithmetic.
    """
    if not ridge > 0:
        raise InputError(f"ease_lambda is {ridge}: the ridge of the EASE control must be positive; try 300")
    precision = np.float64 if split.items <= _DOUBLE_UP_TO else np.float32
    train = split.train_csr().astype(precision)
    items_by_users = train.T.tocsr()
    gram = torch.empty((split.items, split.items), dtype=torch.from_numpy(np.empty(0, precision)).dtype)
    block = max(1, _CELLS // split.items)
    for start in range(0, split.items, block):
        rows = (
            items_by_users[start : start + block] @ train
        )  # the sparse product in whole could outgrow the table
        gram[start : start + block] = torch.from_numpy(rows.toarray())
    gram.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        raise InputError(f"ease_lambda is {ridge}: too small to solve the EASE control; try 300")
    del gram  # three m x m tables at most
    inverse = torch.cholesky_inverse(factor)
    diagonal = inverse.diagonal().clone()
    weights = inverse.div_(-diagonal)  # column j by P_jj
    weights.fill_diagonal_(0)
    return weights


def ease_control(split: Split, ridge: float = 300.0) -> dict[str, Any]:
    """EASE with ridge λ: scores X B; the form of `evaluate_scorer`."""
    weights = ease_weights(split, ridge).numpy()
    train = split.train_csr().astype(weights.dtype)
    return evaluate_scorer(split, lambda users: torch.from_numpy(train[users] @ weights))


def compute_controls(split: Split, ease_lambda: float = 300.0) -> dict[str, dict[str, Any]]:
    """All controls of a split by name (`Control`), each in the form of `evaluate_scorer`.

    EASE is left out where the catalogue has more than `EASE_ITEM_LIMIT` items.
    """
    controls: dict[Control, dict[str, Any]] = {
        "random": random_control(split),
        "popularity": popularity_control(split),
    }
    if split.items <= EASE_ITEM_LIMIT:
        controls["ease"] = ease_control(split, ease_lambda)
    return dict(controls)


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
    key = split_hash(split, ease_lambda=ease_lambda, ease_item_limit=EASE_ITEM_LIMIT, format=_FORMAT)
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
