"""Pieces of columns, as they come out of a file, become the arrays of `Interactions`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.data.columns import LONGEST_LABEL
from fedem_flwr.data.interactions import Float64Array, Int64Array, Interactions, StrArray, first_appearance
from fedem_flwr.data.reading import Reading
from fedem_flwr.data.times import seconds

if TYPE_CHECKING:
    import pyarrow as pa

Values = dict[str, Any]
"""By role: user and item as Arrow strings or dictionaries of strings, rating and time as (rows,) float64."""


class Unfit(Exception):
    """A piece holds something that the fast way does not take: the slow one says what, or reads it."""


def labels_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of labels as a dictionary without blanks around the labels.

    Raises:
        Unfit: a label is missing, empty, or too long.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        raise Unfit
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    for chunk in column.chunks:
        if len(chunk.dictionary):
            lengths = pc.min_max(pc.utf8_length(pc.utf8_trim_whitespace(chunk.dictionary))).as_py()
            if lengths["min"] == 0 or lengths["max"] > LONGEST_LABEL:
                raise Unfit
    return column


def times_of(column: pa.ChunkedArray, notation: str) -> Float64Array:
    """(rows,) seconds of a column of dates, each different one parsed once.

    Raises:
        Unfit: one is not in the notation.
    """
    encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    values = seconds(encoded.dictionary.to_pylist(), notation)[encoded.indices.to_numpy()]
    return finite(values)


def finite(values: NDArray[Any]) -> Float64Array:
    """(rows,) the same numbers.

    Raises:
        Unfit: one is not finite.
    """
    if not np.isfinite(values).all():
        raise Unfit
    return np.asarray(values, np.float64)


def of_fields(fields: dict[str, Sequence[str]], notation: str | None) -> Values:
    """The columns of fields that were looked at one by one and found right."""
    import pyarrow as pa

    found: Values = {}
    for role, column in fields.items():
        if role in ("user", "item"):
            found[role] = pa.chunked_array([pa.array(column, pa.string())]).dictionary_encode()
        elif role == "time" and notation is not None:
            found[role] = seconds(column, notation)
        else:
            found[role] = np.array(list(map(float, column)), np.float64)
    return found


@dataclass
class Gathered:
    """The columns so far, a piece after the other."""

    parts: dict[str, list[Any]] = field(default_factory=dict)
    rows: int = 0

    def add(self, values: Values) -> None:
        """Take in a piece."""
        for role, column in values.items():
            self.parts.setdefault(role, []).extend(column.chunks if role in ("user", "item") else [column])
        self.rows += len(values["item"])

    def interactions(self, name: str, reading: Callable[[int], Reading], *, in_order: bool) -> Interactions:
        """All rows; where there is no user column, they are one user's, who is called nothing."""
        with ThreadPoolExecutor() as pool:  # Arrow and numpy leave the interpreter to each other
            users, items = pool.submit(self._codes, "user"), pool.submit(self._codes, "item")
            (user, user_ids), (item, item_ids) = users.result(), items.result()
        rating, time = (self._numbers(role) for role in ("rating", "time"))
        return Interactions(
            name=name,
            user=user,
            item=item,
            rating=rating,
            time=np.arange(self.rows, dtype=np.float64) if in_order else time,
            user_ids=user_ids,
            item_ids=item_ids,
            reading=reading(self.rows),
        )

    def _codes(self, role: str) -> tuple[Int64Array, StrArray]:
        """(rows,) codes by first appearance and their labels; blanks of any kind around a label do not count."""
        import pyarrow as pa

        if role not in self.parts:
            return np.zeros(self.rows, np.int64), np.array([""])
        column = pa.chunked_array(self.parts.pop(role)).unify_dictionaries()
        labels = column.chunk(0).dictionary.to_pylist() if column.num_chunks else []
        codes = np.empty(len(column), np.int64)
        start = 0
        for chunk in column.chunks:
            codes[start : start + len(chunk)] = chunk.indices.to_numpy()
            start += len(chunk)
        merged, kept = first_appearance(np.array([label.strip() for label in labels], dtype=object))
        if len(kept) < len(labels):
            codes = merged[codes]
        return codes, np.array(kept.tolist(), dtype=np.str_)

    def _numbers(self, role: str) -> Float64Array | None:
        return np.concatenate(self.parts.pop(role)) if role in self.parts else None
