"""Files whose columns have names in any case: JSON lines and Parquet."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from fedem_flwr.data.columns import ABSENT, ROLES, SAMPLE_ROWS, Columns, rank
from fedem_flwr.data.gathering import Unfit, Values, finite, labels_of, of_fields, times_of
from fedem_flwr.data.opening import Opened
from fedem_flwr.data.reading import ColumnRead
from fedem_flwr.data.records import Style
from fedem_flwr.data.roles import Roles, find_roles, shortened
from fedem_flwr.data.sniffing import NEEDED, refuse_twins
from fedem_flwr.data.text_rows import check_dates, check_field
from fedem_flwr.data.texts import Text
from fedem_flwr.errors import InputError

_PYTHON: Final = re.compile(r"\s*\{u?'")  # an object in Python's notation, as some older files have them
_BATCH_ROWS: Final = 1 << 20
_MONGO: Final = {"$oid", "$numberLong", "$numberInt", "$numberDouble", "$numberDecimal", "$date", "$uuid", "$symbol"}
_NESTED: Final = "nested values"
_FLAT: Final = "write one plain value there"
_PLAIN: Final = Style("\n")  # no quoting: a line break inside a string of JSON is written \n


def json_pieces(text: Text, columns: Columns, needed: tuple[str, ...]) -> tuple[Roles, Iterator[Values]]:
    """The roles of the keys of JSON objects, one a line, and the columns piece by piece.

    Raises:
        InputError: a line that holds no object, or something wrong in it.
    """
    if text.head.lstrip().startswith(b"["):
        raise InputError(f"{text.path} is one JSON array; write one object a line (JSON lines), and name that")
    sample: list[dict[str, Any]] = []
    for number, line in enumerate(text.head.decode(errors="replace").split("\n"), 1):
        if line.strip() and len(sample) < SAMPLE_ROWS:
            sample.append(_object(text.path, number, line))
    values = {name: [each.get(name) for each in sample] for each in sample for name in each}
    names = [name for name, column in values.items() if any(as_field(value) is not None for value in column)]
    rows = [[as_field(each.get(name)) or "" for name in names] for each in sample]
    others = {name: _why_not(column) for name, column in values.items() if name not in names}
    roles = _roles(f"{text.path}, line 1", "key", names, rows, others, columns, needed)
    keys = {role: names[column] for role, column in roles.at.items()}
    return roles, _json_values(text, keys, roles.notation)


def _json_values(text: Text, keys: dict[str, str], notation: str | None) -> Iterator[Values]:
    for first_line, piece, _ in text.pieces(_PLAIN):
        try:
            values = _fast_json(piece, keys, notation)
        except Unfit:
            values = _slow_json(text.path, piece, keys, notation, first_line)
        if len(values["item"]):
            yield values


def _fast_json(piece: bytes, keys: dict[str, str], notation: str | None) -> Values:
    import pyarrow as pa
    import pyarrow.json as pj

    found: Values = {}
    labels = piece[: piece.index(b"\n")]
    try:
        first = json.loads(labels)
        kinds = {keys[role]: pa.string() if isinstance(first[keys[role]], str) else pa.int64() for role in keys}
        for role in ("rating", "time"):
            if role in keys:
                kinds[keys[role]] = pa.string() if role == "time" and notation is not None else pa.float64()
        table = pj.read_json(
            pa.BufferReader(piece),
            parse_options=pj.ParseOptions(
                explicit_schema=pa.schema(list(kinds.items())), unexpected_field_behavior="ignore"
            ),
        )
        for role, key in keys.items():
            if table[key].null_count:
                raise Unfit
            if role in ("user", "item"):
                found[role] = labels_of(table[key].cast(pa.string()))
            elif role == "time" and notation is not None:
                found[role] = times_of(table[key], notation)
            else:
                found[role] = finite(table[key].to_numpy())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, KeyError, TypeError):
        raise Unfit from None
    return found


def _slow_json(path: Path, piece: bytes, keys: dict[str, str], notation: str | None, first_line: int) -> Values:
    fields: dict[str, list[str]] = {role: [] for role in keys}
    lines: list[int] = []
    for number, line in enumerate(piece.decode(errors="surrogateescape").split("\n"), first_line):
        if not line.strip():
            continue
        each = _object(path, number, line)
        for role, key in keys.items():
            where, value = f"{path}, line {number}, key '{shortened(key)}'", each.get(key)
            if isinstance(value, dict | list) and as_field(value) is None:
                raise InputError(f"{where}: the {role} is nested ('{shortened(str(value))}'); {_FLAT}")
            field = (as_field(value) or "").strip(" ")
            check_field(where, role, field, notation)
            fields[role].append(field)
        lines.append(number)
    check_dates(lambda row: f"{path}, line {lines[row]}", fields.get("time", []), notation)
    return of_fields(fields, notation) if fields["item"] else {"item": []}  # type: ignore[arg-type]


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = ast.literal_eval(line.strip()) if _PYTHON.match(line) else json.loads(line)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(
            f"{path}, line {number}: not JSON ({shortened(str(error))}): '{shortened(line)}'; write one object a line"
        ) from None
    if not isinstance(found, dict):
        raise InputError(f"{path}, line {number}: '{shortened(line)}' is no JSON object; expected one a line")
    return found


def as_field(value: Any) -> str | None:
    """A value as the text of a field, whole numbers without ".0"; None of what is no field: nested, missing, a truth.

    What MongoDB exports as an object of one key (extended JSON: {"$oid": ...}, {"$numberLong": ...}, {"$date": ...}) is
    the value in it; dates that are numbers count in milliseconds there.
    """
    while isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _MONGO:
        (value,) = value.values()
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return _as_text(value)


def _why_not(values: Sequence[Any]) -> str:
    """Why a key is no column."""
    if any(isinstance(value, dict | list) for value in values):
        return _NESTED
    return "true or false" if any(isinstance(value, bool) for value in values) else "empty"


def _as_text(value: Any) -> str:
    """A value as the text of a field; whole numbers lose ".0"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _roles(
    where: str,
    word: str,
    names: list[str],
    rows: Sequence[Sequence[str]],
    others: dict[str, str],
    columns: Columns,
    needed: tuple[str, ...],
) -> Roles:
    """The roles of columns; those that cannot be read are listed as not used, with why.

    Args:
        word: for a column.
        others: names of columns that cannot be read, and why.

    Raises:
        InputError: what should be a user, item, rating or time holds nested values.
    """
    for role in ROLES:
        given = columns.given().get(role)
        nested = [
            name for name, why in others.items() if why == _NESTED and (given == name or rank(role, name) is not None)
        ]
        in_its_place = given is not None or any(rank(role, name) is not None for name in names)
        if nested and (given in nested or not in_its_place):
            name = str(given) if given in nested else nested[0]
            none = "" if role in NEEDED else f", or leave it out (--set data.{role}_column={ABSENT})"
            raise InputError(f"{where}: the {word} '{shortened(name)}' holds nested values, no {role}; {_FLAT}{none}")
    seen = f"the {word}s '{shortened(', '.join(names))}'"
    if nested := [name for name, why in others.items() if why == _NESTED]:
        seen += f" (nested, so not read: '{shortened(', '.join(nested))}')"
    refuse_twins(where, names, columns)
    roles = find_roles(where, seen, names, rows, len(names), columns, needed)
    unread = (ColumnRead(at, shortened(name), note=others[name]) for at, name in enumerate(others, len(names)))
    return replace(roles, columns=(*roles.columns, *unread))


def parquet_pieces(file: Opened, columns: Columns, needed: tuple[str, ...]) -> tuple[Roles, Iterator[Values]]:
    """The roles of a Parquet file's columns, and the columns in batches of rows.

    Raises:
        InputError: it is damaged, or holds something wrong.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = file.path
    if file.compression:
        raise InputError(f"{path}: a Parquet file inside {file.compression}; unpack it, and name the file in it")
    try:
        parquet = pq.ParquetFile(path)
        flat = [field.name for field in parquet.schema_arrow if not pa.types.is_nested(field.type)]
        others = {field.name: _NESTED for field in parquet.schema_arrow if pa.types.is_nested(field.type)}
        head = next(parquet.iter_batches(SAMPLE_ROWS, columns=flat), None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: damaged or truncated Parquet file ({shortened(str(error))}); fetch it again"
        ) from None
    if head is None or not head.num_rows:
        raise InputError(f"{path}: no rows; expected rows of user, item[, rating][, time]")
    texts = [_texts(column) for column in head.columns]
    rows = [list(row) for row in zip(*texts, strict=True)]
    roles = _roles(str(path), "column", flat, rows, others, columns, needed)
    used = {role: flat[column] for role, column in roles.at.items()}
    return roles, _parquet_values(path, parquet, used, roles.notation)


def _parquet_values(path: Path, parquet: Any, used: dict[str, str], notation: str | None) -> Iterator[Values]:
    import pyarrow as pa

    start = 0
    try:
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(used.values()))):
            found: Values = {}
            for role, name in used.items():
                column = pa.chunked_array([batch.column(name)])
                try:
                    found[role] = _arrow_values(column, role, notation)
                except (Unfit, pa.ArrowInvalid, pa.ArrowNotImplementedError):
                    found[role] = _slow_column(path, name, role, column, notation, start)
            start += batch.num_rows
            yield found
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: damaged Parquet file ({shortened(str(error))}); fetch it again") from None


def _arrow_values(column: Any, role: str, notation: str | None) -> Any:
    """A typed column as what its role wants.

    Raises:
        Unfit: something in it is missing or wrong.
    """
    import pyarrow as pa

    if column.null_count:
        raise Unfit
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if role in ("user", "item"):
        if pa.types.is_floating(kind):
            raise Unfit
        return labels_of(column.cast(kind).cast(pa.string()))
    if pa.types.is_temporal(kind):
        if role != "time" or not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
            raise Unfit
        values = column.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(pa.int64()).to_numpy()
        return values / 1e6
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = column.cast(kind).cast(pa.string())
        if role == "time" and notation is not None:
            return times_of(column, notation)
    return finite(column.cast(pa.float64()).to_numpy())


def _slow_column(path: Path, name: str, role: str, column: Any, notation: str | None, start: int) -> Any:
    fields = [field.strip(" ") for field in _texts(column)]
    for row, field in enumerate(fields, start):
        check_field(f"{path}, row {row}, column '{shortened(name)}'", role, field, notation)
    if role == "time":
        check_dates(lambda row: f"{path}, row {start + row}", fields, notation)
    return of_fields({role: fields}, notation)[role]


def _texts(column: Any) -> Sequence[str]:
    """Values as text; what is missing is empty."""
    return ["" if value is None else _as_text(value) for value in column.to_pylist()]
