"""What may come in from a client: shapes, types, finite numbers, sane sizes. Nothing unchecked is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Message

from fedem_flwr.contract.fields import Field, Named
from fedem_flwr.messages.narrow import widened
from fedem_flwr.messages.wire import unpack_arrays

_MOST_SAMPLES = 2**31  # of a user; a larger number can only be a mistake


@dataclass(frozen=True)
class Failure:
    """A contribution that was left out, and why."""

    round: int
    node: str
    reason: str


Spec = Field  # what the hooks of `CohortStrategy` call it


def problem_of(arrays: Named, expected: Mapping[str, Spec], max_norm: float, *, same_type: bool = True) -> str:
    """What is wrong with an upload, in words; empty if nothing is.

    Args:
        same_type: whether types must be those that are expected.
    """
    for name, spec in expected.items():
        if name not in arrays:
            return f"the upload lacks '{name}'"
        got = arrays[name]
        fits = got.ndim == len(spec.shape) and all(
            want in (None, have) for want, have in zip(spec.shape, got.shape, strict=True)
        )
        if not fits:
            return f"'{name}' has shape {got.shape}, not {spec.shape}"
        if got.dtype != np.dtype(spec.dtype) and (same_type or got.dtype.kind not in "fiu"):
            return f"'{name}' has type {got.dtype}, not {spec.dtype}"
        if np.issubdtype(got.dtype, np.floating):
            sizes = norms(got)
            if not np.isfinite(sizes).all():
                return f"'{name}' is not finite"
            if spec.bounded and (largest := sizes.max(initial=0.0)) > max_norm:
                return f"'{name}' has norm {largest:.3g}, more than {max_norm:.3g}"
    return ""


def size_of(arrays: Mapping[str, np.ndarray | Spec]) -> tuple[int, int]:
    """Bytes of the names and of the values of arrays, or of what is expected."""
    return sum(len(name.encode()) for name in arrays), sum(array.nbytes for array in arrays.values())


def norms(values: np.ndarray) -> np.ndarray:
    """(k,) Frobenius norms of clients' arrays (leading axis of three), else (1,); not finite where an array is not."""
    clients = len(values) if values.ndim == 3 else 1
    rows = values.reshape(clients, values.size // max(1, clients))
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)))


def arrays_of(reply: Message, record: str = "arrays") -> Named | None:
    """A reply's arrays; None where there are none, or their bytes are no arrays."""
    try:
        return unpack_arrays(reply.content.array_records[record])
    except Exception:  # foreign bytes fail to decode in any way: bad archives, headers larger than the memory, ...
        return None


def upload_of(reply: Message, bits: int) -> Named | None:
    """An upload's arrays, whose numbers cross with so many bits; None where there are none, or they are none."""
    arrays = arrays_of(reply)
    try:
        return arrays if arrays is None or bits == 32 else widened(arrays)
    except (ValueError, TypeError):  # a scale that is not its array's
        return None


def introduces(arrays: Named, most: int) -> bool:
    """Whether a node's introduction is one: consecutive users of the run's `most`, and a count for each."""
    users, samples = arrays.get("users"), arrays.get("samples")
    if users is None or samples is None or users.ndim != 1 or users.shape != samples.shape:
        return False
    if users.dtype != np.int64 or samples.dtype != np.int64:
        return False
    known = bool((np.diff(users) == 1).all() and users.min(initial=0) >= 0 and users.max(initial=-1) < most)
    return known and bool(samples.min(initial=0) >= 0 and samples.max(initial=0) <= _MOST_SAMPLES)
