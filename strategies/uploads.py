"""What may come in from a client: shapes, types, finite numbers, sane sizes. Nothing unchecked is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Message

from fedem_flwr.config import Config
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.ranking import METRICS
from fedem_flwr.messages.wire import unpack_arrays

Named = dict[str, np.ndarray]
_WHOLE = frozenset({"users", "nonfinite", "num-examples", "withheld"})
_SANE = 1e18
_ROUNDING = 1e-9  # of sums of floats
_MOST_SAMPLES = 2**31  # of a user; a larger number can only be a mistake


@dataclass(frozen=True)
class Failure:
    """A contribution that was left out, and why."""

    round: int
    node: str
    reason: str


@dataclass(frozen=True)
class Spec:
    """What an array of an upload must be.

    Attributes:
        shape: None stands for any length.
        dtype: exact type.
        bounded: whether its norm is held against `aggregate.max_norm`: each client's, where there are three axes.
    """

    shape: tuple[int | None, ...]
    dtype: str = "float32"
    bounded: bool = False

    @property
    def nbytes(self) -> int:
        """What its values take; none where a length is open."""
        return math.prod(length or 0 for length in self.shape) * np.dtype(self.dtype).itemsize

    def filled(self, length: int) -> Spec:
        """The same with every open length set."""
        return Spec(tuple(length if side is None else side for side in self.shape), self.dtype, self.bounded)


def problem_of(arrays: Named, expected: Mapping[str, Spec], max_norm: float) -> str:
    """What is wrong with an upload, in words; empty if nothing is."""
    for name, spec in expected.items():
        if name not in arrays:
            return f"the upload lacks '{name}'"
        got = arrays[name]
        fits = got.ndim == len(spec.shape) and all(
            want in (None, have) for want, have in zip(spec.shape, got.shape, strict=True)
        )
        if not fits:
            return f"'{name}' has shape {got.shape}, not {spec.shape}"
        if got.dtype != np.dtype(spec.dtype):
            return f"'{name}' has type {got.dtype}, not {spec.dtype}"
        if np.issubdtype(got.dtype, np.floating):
            sizes = norms(got)
            if not np.isfinite(sizes).all():
                return f"'{name}' is not finite"
            if spec.bounded and (largest := sizes.max(initial=0.0)) > max_norm:
                return f"'{name}' has norm {largest:.3g}, more than {max_norm:.3g}"
    return ""


def refuse_fraction(config: Config) -> None:
    """For strategies whose nodes upload sums over their users.

    Raises:
        InputError: only some of the participants' tables are to be aggregated.
    """
    if config.aggregate.fraction < 1:
        raise InputError(
            "aggregate.fraction chooses among tables of single clients, and this method uploads sums: "
            "set run.participants instead"
        )


def sparse_problem(items: np.ndarray, counts: np.ndarray, rows: Named, most_items: int, most: int) -> str:
    """What is wrong with an upload of touched rows, in words; empty if nothing is.

    Args:
        items: (t,) which rows; ascending, none twice. counts: (t,) how many users are behind each.
        rows: arrays with a row for each item.
        most_items: m. most: users that were asked.
    """
    if len(items) and not (items[0] >= 0 and items[-1] < most_items and bool((np.diff(items) > 0).all())):
        return f"'items' are not ascending item codes below {most_items}"
    for name, values in {"counts": counts, **rows}.items():
        if len(values) != len(items):
            return f"'{name}' has {len(values)} rows for {len(items)} items"
    if len(counts) and not (counts.min() >= 1 and counts.max() <= most):
        return f"'counts' are not between 1 and {most}"
    return ""


def size_of(arrays: Mapping[str, np.ndarray | Spec]) -> tuple[int, int]:
    """Bytes of the names and of the values of arrays, or of what is expected."""
    return sum(len(name.encode()) for name in arrays), sum(array.nbytes for array in arrays.values())


def norms(values: np.ndarray) -> np.ndarray:
    """(k,) Frobenius norms of clients' arrays (leading axis of three), else (1,); not finite where an array is not."""
    clients = len(values) if values.ndim == 3 else 1
    rows = values.reshape(clients, values.size // max(1, clients))
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)))


def arrays_of(reply: Message) -> Named | None:
    """A reply's arrays; None where there are none, or their bytes are no arrays."""
    try:
        return unpack_arrays(reply.content.array_records["arrays"])
    except Exception:  # foreign bytes fail to decode in any way: bad archives, headers larger than the memory, ...
        return None


def metrics_problem(metrics: Mapping[str, float], hosted: int) -> str:
    """What is wrong with a node's metric sums, in words; empty if they can be true.

    They choose the round that is served, so a node counts for no more than the users that it hosts: a number of users
    is at most theirs, and a sum of a metric at most the number of users behind it. Other sums (losses, counts, those of
    a strategy of one's own) must be sane: finite, and small enough to be added up.

    Args:
        hosted: how many users live on the node.
    """
    if not metrics:
        return "a reply without metrics"
    if not all(math.isfinite(value) for value in metrics.values()):
        return "a metric that is not finite"
    if large := next((name for name, value in metrics.items() if abs(value) > _SANE), ""):
        return f"a metric that cannot be: '{large}' is {metrics[large]:.6g}"
    for name, value in metrics.items():
        most = _most(name, metrics, hosted)
        whole = name.rpartition("/")[2] in _WHOLE
        if most is not None and (not 0 <= value <= most * (1 + _ROUNDING) or (whole and value != int(value))):
            return f"a metric that cannot be: '{name}' is {value:.6g}, of {hosted} users"
    return ""


def _most(name: str, metrics: Mapping[str, float], hosted: int) -> float | None:
    """The largest that a metric sum may be; None where any number will do. Names are those of `evaluation`."""
    prefix, _, last = name.rpartition("/")
    if last in ("users", "withheld"):
        return hosted
    if last in _WHOLE:
        return math.inf
    if prefix == "rho":
        return metrics.get("rho/count", 0.0) if last != "count" else math.inf
    if last in METRICS:
        group = prefix.rpartition("/")[0].rpartition("/")[0]  # of "group-0/validation/full/hr@10"
        return metrics.get(f"{group}/users" if group else "users", hosted)
    if last.isdigit():  # "fold-in/003": the place in a grid of settings
        return metrics.get(f"{prefix}/users", hosted)
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
