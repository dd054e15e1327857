"""A pandas DataFrame as `Interactions`: its columns are recognised as those of a file with a header are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedem_flwr.data.columns import ABSENT, LONGEST_LABEL, SAMPLE_ROWS, Columns
from fedem_flwr.data.gathering import check_units
from fedem_flwr.data.interactions import Float64Array, Int64Array, Interactions, StrArray, first_appearance
from fedem_flwr.data.notations import digits_in
from fedem_flwr.data.plausible import refuse_missing
from fedem_flwr.data.reading import Reading
from fedem_flwr.data.roles import find_roles, shortened
from fedem_flwr.data.sniffing import refuse_twins
from fedem_flwr.data.times import choices, seconds_in_any, settled
from fedem_flwr.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def read_frame(frame: pd.DataFrame, columns: Columns | None = None, name: str = "dataframe") -> Interactions:
    """Read a DataFrame of user, item[, rating][, time]; rows stay in their order, duplicates included.

    Ids are taken as text: 7, 7.0 and "7" are the same user. Times are numbers or dates; dates count in seconds.

    Args:
        frame: is not changed.
        columns: which column is what, by name or position; the rest is detected.
        name: the data set's name.

    Raises:
        InputError: no rows, no user or item column, or a value that is missing or no number; the message names the row
            by its position, from 0.
    """
    import pandas as pd

    where = f"DataFrame '{name}'"
    known = columns or Columns()
    of_files = [
        name for name in ("separator", "header", "form", "encoding", "comment") if getattr(known, name) is not None
    ]
    if of_files:
        setting = "format" if of_files[0] == "form" else of_files[0]
        raise InputError(f"{where}: data.{setting} is of files; leave it out")
    if frame.empty:
        raise InputError(f"{where} is empty; expected rows of user, item[, rating][, time]")
    by_position = isinstance(frame.columns, pd.RangeIndex)  # nobody named them
    names = None if by_position else [str(label) for label in frame.columns]
    seen = f"'{shortened(', '.join(map(str, frame.columns)))}'"
    sample = frame.head(SAMPLE_ROWS)
    texts = [_texts(sample.iloc[:, at]) for at in range(frame.shape[1])]
    rows = [list(row) for row in zip(*texts, strict=True)]
    refuse_twins(where, names or [], known)
    roles = find_roles(where, seen, names, rows, frame.shape[1], known)
    at = roles.at
    user, user_ids = _labels(where, "user", frame.iloc[:, at["user"]])
    item, item_ids = _labels(where, "item", frame.iloc[:, at["item"]])
    rating = _numbers(where, "rating", frame.iloc[:, at["rating"]]) if "rating" in at else None
    reading = Reading(name, "dataframe", columns=roles.columns, rows=len(frame))
    time = None
    if "time" in at:
        notation, time = _times(where, frame.iloc[:, at["time"]], roles.notation)
        reading = reading.with_notation(notation)
    data = Interactions(
        name=name,
        user=user,
        item=item,
        rating=rating,
        time=np.arange(len(frame), dtype=np.float64) if known.in_order else time,
        user_ids=user_ids,
        item_ids=item_ids,
        reading=reading,
    )
    refuse_missing(where, data)
    return data


def _texts(column: pd.Series) -> list[str]:
    """Values as text; what is missing is empty."""
    return column.astype(object).where(column.notna(), "").map(str).tolist()


def _labels(where: str, role: str, column: pd.Series) -> tuple[Int64Array, StrArray]:
    """(rows,) codes by first appearance and their labels; blanks around a label do not count."""
    missing = np.flatnonzero(column.isna())
    if len(missing):
        raise _fault(where, column, missing[0], f"the {role} is missing; drop such rows (DataFrame.dropna)")
    codes, distinct = first_appearance(column.to_numpy())
    labels = np.array([_label(value) for value in distinct], dtype=object)
    merged, kept = first_appearance(labels)
    codes = merged[codes]
    for code, label in enumerate(kept):
        if not 0 < len(label) <= LONGEST_LABEL:
            fault = f"is longer than {LONGEST_LABEL} characters" if label else "is empty"
            raise _fault(where, column, np.flatnonzero(codes == code)[0], f"the {role} {fault}; mend or drop the row")
    return codes, kept.astype(np.str_)


def _label(value: object) -> str:
    """An id as text; whole numbers lose the ".0" that a column with gaps gives them."""
    if isinstance(value, float | np.floating) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _times(where: str, column: pd.Series, notation: str | None) -> tuple[str | None, Float64Array]:
    """The notation that times turn out to be in, and their (rows,) seconds; numbers stay what they are."""
    plain = _in_seconds(column)
    dated = notation is not None and (plain.dtype.kind not in "fiu" or digits_in(choices(notation)[0]) > 0)
    if notation is None or not dated:
        times = _numbers(where, "time", plain)
        if notation is None:
            check_units(times, lambda row: f"{where}, row {row}, column '{shortened(str(column.name))}'")
        return notation, times
    codes, distinct = first_appearance(np.array(_texts(plain), dtype=object))
    bad = np.flatnonzero(~np.isfinite(seconds_in_any(distinct.tolist(), notation)))
    if len(bad):
        raise _not_finite(where, "time", column, int(np.flatnonzero(codes == bad[0])[0]))
    notation, values = settled(where, f"column '{shortened(str(column.name))}'", distinct.tolist(), notation)
    return notation, values[codes]


def _numbers(where: str, role: str, column: pd.Series) -> Float64Array:
    """(rows,) finite numbers."""
    import pandas as pd

    try:
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):  # values that pandas does not even look at
        values = np.full(len(column), np.nan)
    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
        values = np.full(len(column), np.nan)  # else counted in pandas' own unit
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise _not_finite(where, role, column, int(bad[0]))
    return values


def _not_finite(where: str, role: str, column: pd.Series, row: int) -> InputError:
    dates = ", make dates of them (pandas.to_datetime)" if role == "time" else ""
    return _fault(
        where,
        column,
        row,
        f"the {role} '{shortened(str(column.iloc[row]))}' is not a finite number; mend or drop such rows{dates}, or "
        f"say which column is the {role} (data.{role}_column, '{ABSENT}' for none)",
    )


def _in_seconds(column: pd.Series) -> pd.Series:
    """Dates as seconds since 1970 in UTC, NaN where there is none; other columns as they are."""
    import pandas as pd

    if not pd.api.types.is_datetime64_any_dtype(column):
        return column
    zone = getattr(column.dtype, "tz", None)
    seconds: pd.Series = (column - pd.Timestamp(0, tz=zone)) / pd.Timedelta(seconds=1)
    return seconds


def _fault(where: str, column: pd.Series, row: int, text: str) -> InputError:
    return InputError(f"{where}, row {row}, column '{shortened(str(column.name))}': {text}")
