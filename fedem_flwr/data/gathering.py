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
from fedem_flwr.data.times import is_open, other_unit, seconds, seconds_in_any, settled, unit_name
from fedem_flwr.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Values = dict[str, Any]
"""By role: user and item as Arrow strings or dictionaries of strings, rating and time as (rows,) float64; time as a
dictionary of strings while it is open which notation it is in."""


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


def times_of(column: pa.ChunkedArray, notation: str) -> Any:
    """(rows,) seconds of a column of dates, each different one parsed once.

    Where it is open which notation they are in, they stay text, in an Arrow dictionary.

    Raises:
        Unfit: one is in no notation that it could be in.
    """
    encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    texts = encoded.dictionary.to_pylist()
    if is_open(notation):
        finite(seconds_in_any(texts, notation))
        return encoded
    return finite(seconds(texts, notation)[encoded.indices.to_numpy()])


def finite(values: NDArray[Any]) -> Float64Array:
    """(rows,) the same numbers.

    Raises:
        Unfit: one is not finite.
    """
    if not np.isfinite(values).all():
        raise Unfit
    return np.asarray(values, np.float64)


def check_units(times: Float64Array, where: Callable[[int], str], unit: str = "") -> None:
    """Make sure that times since 1970 are all in one unit.

    Args:
        where: the place of a row.
        unit: of the rows before these.

    Raises:
        InputError: they are not; it names the first that differs.
    """
    row = other_unit(times, unit)
    if row is not None:
        before = unit or next(name for name in map(unit_name, times.tolist()) if name)
        raise InputError(
            f"{where(row)}: the time {times[row]:.0f} looks like {unit_name(times[row])}, those before it like "
            f"{before}; write all times in one unit"
        )


def _as_digits(values: Float64Array) -> Any:
    import pyarrow as pa

    return pa.array(values.astype(np.int64)).cast(pa.string()).dictionary_encode()


def of_fields(fields: dict[str, Sequence[str]], notation: str | None) -> Values:
    """The columns of fields that were looked at one by one and found right."""
    import pyarrow as pa

    found: Values = {}
    for role, column in fields.items():
        if role in ("user", "item"):
            found[role] = pa.chunked_array([pa.array(column, pa.string())]).dictionary_encode()
        elif role == "time" and notation is not None:
            found[role] = pa.array(column).dictionary_encode() if is_open(notation) else seconds(column, notation)
        else:
            found[role] = np.array(list(map(float, column)), np.float64)
    return found


@dataclass
class Gathered:
    """The columns so far, a piece after the other."""

    parts: dict[str, list[Any]] = field(default_factory=dict)
    rows: int = 0
    notation: str | None = None  # of the times, or several of which all rows tell which one it is

    def add(self, values: Values) -> None:
        """Take in a piece."""
        if self.notation is not None and is_open(self.notation) and isinstance(values["time"], np.ndarray):
            values = {**values, "time": _as_digits(values["time"])}  # of a column of numbers
        for role, column in values.items():
            self.parts.setdefault(role, []).extend(column.chunks if role in ("user", "item") else [column])
        self.rows += len(values["item"])

    def settle_times(self, where: str, column: str) -> str | None:
        """Make seconds of times whose notation was open; the notation, None where times are numbers.

        Args:
            where, column: what errors begin with, and what they call the column.

        Raises:
            InputError: no notation fits all, or two do; or the unit of numbers changes.
        """
        import pyarrow as pa

        parts = self.parts.get("time")
        if parts and self.notation is not None and is_open(self.notation):
            texts = pa.chunked_array(parts).unify_dictionaries()
            distinct = texts.chunk(0).dictionary.to_pylist()
            self.notation, values = settled(where, column, distinct, self.notation)
            self.parts["time"] = [values[chunk.indices.to_numpy()] for chunk in texts.chunks]
        elif parts and self.notation is None:
            times = np.concatenate(parts)
            self.parts["time"] = [times]
            check_units(times, lambda row: f"{where}, row {row + 1}")
        return self.notation

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
        parts = self.parts.pop(role, None)
        return None if parts is None else parts[0] if len(parts) == 1 else np.concatenate(parts)
