"""Read any delimited file of user, item[, rating][, time] into `Interactions`.

Three steps: work out the layout from the first lines (layout.py); read the columns with pandas' C parser;
and, only when something looks wrong, scan line by line to name the bad line. So good files are quick and bad
files get an exact message.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from fedem_flwr.data.interactions import Float64Array, Int64Array, Interactions, first_appearance
from fedem_flwr.data.layout import (
    ABSENT,
    Columns,
    Layout,
    detect_layout,
    is_number,
    numbered_lines,
    shortened,
    split_line,
)
from fedem_flwr.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ABSENT", "Columns", "read_interactions"]

_UNIT: Final = b"\x1f"  # the C parser takes one-character separators only, so "::" becomes this control character
LONGEST_LABEL: Final = 256
"""Characters of a label: they are kept in fixed-width arrays, which one runaway field would blow up."""


def read_interactions(path: Path, columns: Columns | None = None, name: str | None = None) -> Interactions:
    """Read a delimited text file, plain or gzip-compressed; rows stay in file order, duplicates included.

    Args:
        path: the file.
        columns: what is known of its layout; the rest is detected.
        name: the data set's name; the file's stem where None.

    Raises:
        InputError: a missing, empty, truncated or malformed file; the message names the line and the remedy.
    """
    data = _read_bytes(path)
    layout = detect_layout(path, data, columns or Columns())
    frame = _parse(path, data, layout)
    numbers: dict[str, Float64Array] = {
        role: frame[layout.at[role]].to_numpy(dtype=np.float64) for role in ("rating", "time") if role in layout.at
    }
    user, user_ids = _labels(frame, layout.at["user"])
    item, item_ids = _labels(frame, layout.at["item"])
    separators = data.count(layout.separator.encode())
    if (
        separators != (layout.width - 1) * (len(frame) + layout.header)  # a row too short or too long, or quoted text
        or not all(np.isfinite(values).all() for values in numbers.values())
        or any(not 0 < len(label) <= LONGEST_LABEL for ids in (user_ids, item_ids) for label in ids)
    ):
        _raise_for_first_bad_line(path, data, layout)
    stem = name or Path(path.name.removesuffix(".gz")).stem
    return Interactions(
        name=stem,
        user=user,
        item=item,
        rating=numbers.get("rating"),
        time=numbers.get("time"),
        user_ids=np.array(user_ids, dtype=np.str_),
        item_ids=np.array(item_ids, dtype=np.str_),
    )


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name the file in it") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged or truncated gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if data[:4] == b"PK\x03\x04":
        raise InputError(f"{path} is a zip archive; unpack it and name the file in it")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise InputError(f"{path}: the file is empty; expected rows of user, item[, rating][, time]")
    return data


def _parse(path: Path, data: bytes, layout: Layout) -> pd.DataFrame:
    """The used columns by number: object (str) for labels, float64 for numbers."""
    import pandas as pd

    text, separator = data, layout.separator
    if separator == "::":
        if _UNIT in data:
            raise InputError(f"{path}: holds the control character 0x1f; remove it, or separate columns by tabs")
        text, separator = data.replace(b"::", _UNIT), _UNIT.decode()
    kinds = {number: object if role in ("user", "item") else np.float64 for role, number in layout.at.items()}
    try:
        return pd.read_csv(
            io.BytesIO(text),
            sep=r"\s+" if separator == " " else separator,
            header=None,
            skiprows=layout.skip,
            names=list(range(layout.width)),
            usecols=sorted(kinds),
            dtype=kinds,
            index_col=False,
            na_filter=False,
            skipinitialspace=True,
            quoting=csv.QUOTE_MINIMAL if separator in ",;" else csv.QUOTE_NONE,
            low_memory=False,
        )
    except ValueError as error:  # also pandas' ParserError and UnicodeDecodeError
        _raise_for_first_bad_line(path, data, layout)
        reason = shortened(str(error))
        raise InputError(f"{path}: cannot be read ({reason}); check its quotes and separators") from None


def _labels(frame: pd.DataFrame, column: int) -> tuple[Int64Array, list[str]]:
    """(rows,) codes by first appearance and their labels; blanks around a label do not count."""
    codes, distinct = first_appearance(frame[column].to_numpy())
    merged, kept = first_appearance(np.array([label.strip(" ") for label in distinct], dtype=object))
    return merged[codes], kept.tolist()


def _raise_for_first_bad_line(path: Path, data: bytes, layout: Layout) -> None:
    """Raise the InputError of the first bad line; return if every line is as it should be."""
    for number, line in numbered_lines(path, data):
        if number <= layout.skip:
            continue
        fields = split_line(line, layout.separator)
        where = f"{path}, line {number}"
        if len(fields) != layout.width:
            cause = "truncated?" if len(fields) < layout.width else "a separator inside a label needs quotes"
            raise InputError(f"{where}: {len(fields)} columns, expected {layout.width} ({cause}): '{shortened(line)}'")
        for role, column in layout.at.items():
            field = fields[column]
            if role in ("rating", "time") and not is_number(field):
                raise InputError(
                    f"{where}, column {column}: the {role} '{shortened(field)}' is not a finite number;"
                    f" mend the line, or say which column is the {role} ('{ABSENT}' for none)"
                )
            if role in ("user", "item") and not 0 < len(field) <= LONGEST_LABEL:
                fault = f"is longer than {LONGEST_LABEL} characters" if field else "is empty"
                raise InputError(f"{where}, column {column}: the {role} {fault}; mend or remove the line")
