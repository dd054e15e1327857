"""What people feed a reader: nested objects, damaged members, missing ids, sizes among the rows, lists, names twice."""

from __future__ import annotations

import bz2
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedem_flwr.data import Columns, Interactions, read_interactions
from fedem_flwr.errors import InputError

ROWS = "".join(f"{at % 7},{at % 11},{at % 5 + 1}\n" for at in range(60))
CSV = f"user,item,rating\n{ROWS}"


def read(tmp_path: Path, content: str | bytes, columns: Columns | None = None) -> Interactions:
    path = tmp_path / "rows"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_interactions(path, columns)


def refused(tmp_path: Path, content: str | bytes, columns: Columns | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, content, columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- nested values


def test_what_mongodb_exports(tmp_path: Path) -> None:
    lines = [
        {
            "_id": {"$oid": f"5f{at}"},
            "user": {"$oid": f"6a{at % 2}"},
            "item": {"$numberInt": str(at)},
            "rating": {"$numberDouble": "3.5"},
            "timestamp": {"$date": {"$numberLong": str(1_600_000_000_000 + at)}},
        }
        for at in range(3)
    ]
    data = read(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))
    assert data.user_ids.tolist() == ["6a0", "6a1"] and data.item_ids.tolist() == ["0", "1", "2"]
    assert data.time is not None and data.time.tolist() == [1_600_000_000_000 + at for at in range(3)]
    assert data.rating is not None and data.rating.tolist() == [3.5] * 3
    day = '{"user": 1, "item": 2, "date": {"$date": "2019-03-01T00:00:00.5Z"}}\n'
    data = read(tmp_path, day)
    assert data.time is not None and data.time.tolist() == [1_551_398_400.5]


def test_other_nested_keys_are_named(tmp_path: Path) -> None:
    line = '{"user": 1, "item": 2, "rating": 3, "tags": ["a"], "who": {"id": 1}, "seen": true, "x": null}\n'
    reading = read(tmp_path, line).reading
    assert reading is not None
    unused = {column.name: column.note for column in reading.columns if not column.role}
    assert unused == {"tags": "nested values", "who": "nested values", "seen": "true or false", "x": "empty"}


@pytest.mark.parametrize(
    ("line", "columns", "words"),
    [
        ('{"user": {"id": 1}, "item": 2}', Columns(), "the key 'user' holds nested values, no user"),
        ('{"user": 1, "item": 2, "timestamp": {"t": 3}}', Columns(), "data.time_column=-"),
        ('{"user": 1, "item": 2, "x": [3]}', Columns(rating="x"), "'x' holds nested values, no rating"),
        ('{"user": 1, "items": [2]}', Columns(), "no item column in the keys 'user' (nested, so not read: 'items')"),
        ('{"user": 1, "item": 2}\n{"user": 1, "item": {"id": 2}}', Columns(), "line 2, key 'item': the item is nested"),
        ('{"user": "\\ud800", "item": 2}', Columns(), "half a character"),
    ],
)
def test_nested_roles_are_refused(tmp_path: Path, line: str, columns: Columns, words: str) -> None:
    assert words in refused(tmp_path, line + "\n", columns)


def test_nested_columns_of_parquet(tmp_path: Path) -> None:
    table = pa.table({"user": [1, 2], "item": [1, 2], "rating": [{"a": 1}, {"a": 2}], "tags": [["x"], []]})
    pq.write_table(table, tmp_path / "rows")
    with pytest.raises(InputError, match="the column 'rating' holds nested values, no rating"):
        read_interactions(tmp_path / "rows")
    reading = read_interactions(tmp_path / "rows", Columns(rating="-")).reading
    assert reading is not None and "not used: 'rating', 'tags'" in reading.sentence


# --- damaged members

PACKED: dict[str, Callable[[bytes], bytes]] = {"bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("codec", PACKED)
def test_members_after_the_first(tmp_path: Path, codec: str) -> None:
    one, two = PACKED[codec](CSV.encode()), PACKED[codec](ROWS.encode())
    assert read(tmp_path, one + two + b"\0" * 8 + two + b"\0" * 4).rows == 180
    damaged = two[:30] + bytes([two[30] ^ 255]) + two[31:]
    for below in (damaged, damaged + two, b"garbage", two + b"garbage", two[:-3], two[:4]):
        assert f"damaged or truncated {codec} file" in refused(tmp_path, one + below)
