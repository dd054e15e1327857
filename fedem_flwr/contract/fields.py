"""The arrays of an upload: what each must be, and how a server adds them up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedem_flwr.models.rows import ragged

Named = dict[str, np.ndarray]
_ROUNDING = 1e-4  # of a Gram matrix, as a share of its trace


@dataclass(frozen=True)
class Field:
    """What an array of an upload must be. Anything else is refused, and named.

    Attributes:
        shape: None stands for any length.
        dtype: exact type.
        each: whether it holds the uploaders' own values, along its first axis, and no sum.
        bounded: whether its norm is held against `aggregate.max_norm`: each client's, where there are three axes.
        index: name of the array that says which rows of the sum these rows belong to; empty: the array is added as it
            is.
        rows: of an index itself: how many rows the sum has. Its entries must ascend and be below that.
        count: whether it holds numbers of users: whole, from 1 (in indexed rows; else from 0) to those asked.
        terms: an entry of an upload is the sum of at most so many sane terms a user, each no larger than
            `aggregate.max_norm`; 0: not checked.
        least: the smallest that an entry may be.
        counted: name of the array that says how many of its rows each uploader has, one after the other.
        gram: whether it holds sums of p pᵀ, (..., d, d): symmetric, and positive semidefinite.
        sparse: of an index itself: whether the server adds up the rows that are sent, without a table of all of them.
    """

    shape: tuple[int | None, ...]
    dtype: str = "float32"
    each: bool = False
    bounded: bool = False
    index: str = ""
    rows: int = 0
    count: bool = False
    terms: int = 0
    least: float = -math.inf
    gram: bool = False
    counted: str = ""
    sparse: bool = False

    @property
    def exact(self) -> bool:
        """Whether what is checked of its values, or done with them, leaves no room for fewer bits (`[messages]`)."""
        return self.dtype != "float32" or self.gram or self.count or self.least > -math.inf

    @property
    def nbytes(self) -> int:
        """What its values take; none where a length is open."""
        return math.prod(length or 0 for length in self.shape) * np.dtype(self.dtype).itemsize

    def sized(self, length: int) -> tuple[int, ...]:
        """Its shape with every open length set."""
        return tuple(length if side is None else side for side in self.shape)

    def filled(self, length: int) -> Field:
        """The same with every open length set."""
        return replace(self, shape=self.sized(length))


def counted(part: str, rows: int, width: int) -> dict[str, Field]:
    """Rows of single users' tables of so many rows: see `models.rows.ragged`."""
    count, index, values = ragged(part)
    return {
        count: Field((None,), "int64", each=True, least=0),
        index: Field((None,), "int32", each=True, rows=rows, counted=count),
        values: Field((None, width), each=True, counted=count),
    }


def indexed(
    name: str, length: int, /, *, dtype: str = "int32", sparse: bool = False, **values: Field
) -> dict[str, Field]:
    """An index and what lies under it: touched rows of sums that are `length` long.

    Args:
        name: of the index. dtype, sparse: of the index, see `Field`.
        values: fields whose first axis is open; `_` in a name becomes `-`.
    """
    under = {key: replace(field, index=name) for key, field in values.items()}
    index = Field((None,), dtype, rows=length, sparse=sparse)
    return {name: index, **{key.replace("_", "-"): field for key, field in under.items()}}


def fault_of(arrays: Mapping[str, np.ndarray], fields: Mapping[str, Field], users: int, max_norm: float) -> str:
    """What is wrong with an upload's values, in words; empty if nothing is. Shapes and types are right already.

    Args:
        users: how many were asked. max_norm: see `Field.terms`.
    """
    for name, field in fields.items():
        values = arrays[name]
        if field.counted:
            counts = arrays[field.counted].astype(np.int64)
            if counts.min(initial=0) < 0 or int(counts.sum()) != len(values):
                return f"'{name}' has {len(values)} rows, not those that '{field.counted}' says"
        if field.rows and len(values):
            ascends = np.diff(values) > 0
            if field.counted:
                ends = counts.cumsum()[counts > 0][:-1]
                ascends[ends - 1] = True
            ascending = bool(ascends.all())
            if not (values.min() >= 0 and values.max() < field.rows and ascending):
                return f"'{name}' are not ascending item codes below {field.rows}"
        if field.index and len(values) != len(arrays[field.index]):
            return f"'{name}' has {len(values)} rows for {len(arrays[field.index])} items"
        if field.count and values.size:
            least = 1 if field.index else 0
            if values.min() < least or values.max() > users or bool((values != np.round(values)).any()):
                return f"'{name}' are not whole numbers between {least} and {users}"
        if values.size and float(values.min()) < field.least:
            return f"'{name}' has an entry below {field.least:g}"
        if field.gram and values.size and not _is_gram(values):
            return f"'{name}' is no sum of p pᵀ: it is not symmetric and positive semidefinite"
        limit = max_norm * field.terms * max(1, users)
        if field.terms and (size := float(np.abs(values).max(initial=0.0))) > limit:
            return f"'{name}' has an entry of {size:.3g}, more than {limit:.3g}"
    return ""


def _is_gram(values: np.ndarray) -> bool:
    """Whether matrices (..., d, d) are symmetric and positive semidefinite, up to the rounding of float32."""
    wide = values.astype(np.float64)
    small = _ROUNDING * np.abs(np.trace(wide, axis1=-2, axis2=-1))  # (...)
    if bool((np.abs(wide - wide.swapaxes(-1, -2)).max((-2, -1)) > small).any()):
        return False
    return bool((np.linalg.eigvalsh(wide)[..., 0] >= -small).all())


def empty(fields: Mapping[str, Field]) -> Named:
    """An upload of nobody: no rows, and zeros."""
    return {name: np.zeros(field.sized(0), field.dtype) for name, field in fields.items()}
