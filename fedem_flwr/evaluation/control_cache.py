"""The cache of controls: one file a split and settings, whole or not at all; a damaged one is computed again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.files import private_folder
from fedem_flwr.protocol.split import ACCOUNT, Split

UserMetrics = dict[str, NDArray[np.float32]]  # metric, such as "full/ndcg@10" -> (n,)

_RESULTS = "results"  # name of the array that holds the results as JSON
_ROWS = 2**16  # of an array hashed at a time
_DIGEST = 32  # bytes of SHA-256, which stand before the content


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known of a split's controls.

    Attributes:
        results: control to its figures, or to ``{"skipped": why}``.
        per_user: control to its test metrics of each user; without the skipped ones.
    """

    results: dict[str, dict[str, Any]]
    per_user: dict[str, UserMetrics]


def remembered(entry: Path, compute: Callable[[], Measured]) -> Measured:
    """Read a cache entry; where it is missing or damaged, compute it and replace it in one step."""
    known = _read(entry)
    if known is not None:
        return known
    measured = compute()
    content = _to_bytes(measured)
    private_folder(entry.parent)  # figures of single users
    handle, temporary = tempfile.mkstemp(prefix=f".{entry.name}-", dir=entry.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)
        os.replace(temporary, entry)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return measured


def split_hash(split: Split, **settings: float | str | None) -> str:
    """Hex SHA-256 of everything in a split but its account, by content, and of the settings given."""
    fields = {name: value for name, value in vars(split).items() if name not in (ACCOUNT, "histories")}
    if split.histories is not None:
        fields |= {**split.histories.facts, **split.histories.arrays()}
    scalars = {name: value for name, value in fields.items() if not isinstance(value, np.ndarray)}
    digest = hashlib.sha256(json.dumps([scalars, settings], sort_keys=True).encode())
    for name, value in sorted(fields.items()):
        if isinstance(value, np.ndarray):
            kind = np.dtype(np.int64) if value.dtype.kind == "i" else value.dtype  # a loaded split's are narrower
            digest.update(f"{name}{kind.str}{value.shape}".encode())
            for start in range(0, len(value), _ROWS):
                digest.update(np.ascontiguousarray(value[start : start + _ROWS], kind).view(np.uint8).data)
    return digest.hexdigest()


def _to_bytes(measured: Measured) -> bytes:
    arrays: dict[str, NDArray[Any]] = {
        f"{control}/{metric}": values
        for control, metrics in measured.per_user.items()
        for metric, values in metrics.items()
    }
    arrays[_RESULTS] = np.frombuffer(json.dumps(measured.results).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _read(entry: Path) -> Measured | None:
    """What an entry holds; None where it is missing or its digest does not fit."""
    try:
        content = entry.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
        return None
    per_user: dict[str, UserMetrics] = {}
    with np.load(io.BytesIO(content[_DIGEST:]), allow_pickle=False) as arrays:
        results = json.loads(arrays[_RESULTS].tobytes())
        for name in arrays.files:
            if name != _RESULTS:
                control, _, metric = name.partition("/")
                per_user.setdefault(control, {})[metric] = arrays[name]
    return Measured(results, per_user)
