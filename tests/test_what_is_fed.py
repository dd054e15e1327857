"""What people feed a reader: nested objects, damaged members, missing ids, sizes among the rows, lists, names twice."""

from __future__ import annotations

import bz2
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedem_flwr.config.resolved import read_toml
from fedem_flwr.data import Columns, Interactions, read_interactions
from fedem_flwr.data.catalog import open_source
from fedem_flwr.data.frame import read_frame
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


# --- ids that stand for nobody, rows that are none


@pytest.mark.parametrize("word", ["NULL", "nan", "None", "\\N", "NA", "<NA>"])
def test_missing_ids_as_text(tmp_path: Path, word: str) -> None:
    said = refused(tmp_path, CSV + f"{word},1,2\n3,4,5\n{word},2,2\n")
    assert f"the user is missing in 2 of 63 rows (written '{word}', first in row 60, from 0)" in said
    assert "the item is missing" in refused(tmp_path, f'{{"user": 1, "item": {json.dumps(word)}}}\n')
    assert read(tmp_path, CSV + f"{word}_,1,2\n").users == 8


def test_missing_ids_of_parquet_and_frames(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [1.0, float("nan")], "item": [1, 2]}), tmp_path / "rows")
    with pytest.raises(InputError, match="the user is missing in 1 of 2 rows"):
        read_interactions(tmp_path / "rows")
    with pytest.raises(InputError, match="DataFrame 'dataframe': the item is missing in 1 of 2 rows"):
        read_frame(pd.DataFrame({"user": ["a", "b"], "item": ["x", "nan"]}))


def matrix(kind: str, entries: int, rows: str) -> str:
    return f"%%MatrixMarket matrix coordinate {kind} general\n% made by hand\n\n7 11 {entries}\n{rows}"


def test_matrix_market(tmp_path: Path) -> None:
    rows = ROWS.replace(",", " ")
    data = read(tmp_path, matrix("integer", 60, rows))
    assert (data.rows, data.users, data.items) == (60, 7, 11)
    assert data.rating is not None and data.rating[:3].tolist() == [1, 2, 3]
    pattern = "".join(line.rsplit(" ", 1)[0] + "\n" for line in rows.splitlines())
    assert read(tmp_path, matrix("pattern", 60, pattern)).rating is None
    assert "line 4: 61 entries are said, and 60 are there" in refused(tmp_path, matrix("real", 61, rows))
    assert "kind 'matrix coordinate complex general'" in refused(tmp_path, matrix("complex", 60, rows))
    assert "line 4: '7 11 x' is no size" in refused(tmp_path, matrix("real", 60, rows).replace("11 60", "11 x"))


@pytest.mark.parametrize("sizes", ["40,50,60", "40,50,3", "40,50"])
def test_sizes_in_the_first_line(tmp_path: Path, sizes: str) -> None:
    wide = sizes.count(",") == 2
    rows = [f"{1000 + at % 40},{2000 + at % 49}" + (f",{at % 5 + 1}" if wide else "") for at in range(60)]
    text = "\n".join([sizes, *rows, ""])
    assert "the first line ('40, 50') seems to be the table's sizes" in refused(tmp_path, text)
    assert read(tmp_path, text, Columns(header=True)).rows == 60
    assert read(tmp_path, text, Columns(header=False)).rows == 61
    assert read(tmp_path, text.replace("2000", "50")).rows == 61, "an item that is met again"


def test_a_second_header(tmp_path: Path) -> None:
    pairs = "".join(f"{at % 7},{at}\n" for at in range(30))
    said = refused(tmp_path, f"user,item\n{pairs}user,item\n{pairs}")
    assert "the header 'user, item' stands again among the rows (1, first as row 30, from 0)" in said
    assert read(tmp_path, f"user,item\n{pairs}user,9\n9,item\n").rows == 32


@pytest.mark.parametrize("pad", ["\u00a0", "\t", "\u3000", " \t"])
def test_blanks_of_any_kind_around_labels(tmp_path: Path, pad: str) -> None:
    padded = "".join(f"{pad}{line.replace(',', pad + ',', 1)}\n" for line in ROWS.splitlines())
    data = read(tmp_path, CSV + padded)
    assert (data.rows, data.users, data.items) == (120, 7, 11)
    assert "line 62, column 0: the user is empty" in refused(tmp_path, CSV + f"{pad},1,2\n")
    assert read_frame(pd.DataFrame({"user": ["a", f"a{pad}"], "item": ["x", "y"]})).users == 1


def test_whole_numbers_with_and_without_zero(tmp_path: Path) -> None:
    data = read(tmp_path, CSV + "3.0,5.0,1\n3.5,a.0,1\n7.0,1,1\n")
    assert data.user_ids.tolist() == ["0", "1", "2", "3", "4", "5", "6", "3.5", "7.0"]
    assert data.user[60:].tolist() == [3, 7, 8] and data.item_ids[data.item[60:]].tolist() == ["5", "a.0", "1"]
    assert data.reading is not None
    assert "1 users written both like '3.0' and like '3' taken as one each" in data.reading.sentence
    assert "1 items written both like '5.0'" in data.reading.sentence
    data = read(tmp_path, "user,item\n7.0,a\n7,b\n")
    assert (data.user.tolist(), data.user_ids.tolist()) == ([0, 0], ["7"])


def test_a_notation_that_is_none_of_numbers(tmp_path: Path) -> None:
    text = "user,item,time\n1,2,1600000000\n"
    assert "data.time_format = '%Q' is none of strptime's" in refused(tmp_path, text, Columns(time_format="%Q"))


# --- lists, headers, names, paths

HISTORIES = [(user, [user % 3 + 1, user % 4 + 9, *range(20, 20 + user % 5)]) for user in range(101, 113)]


def lists(outer: str, inner: str, item: str = "{}") -> str:
    return "".join(f"{user}{outer}{inner.join(map(item.format, items))}\n" for user, items in HISTORIES)


def test_a_tab_after_the_user_and_blanks_between_items(tmp_path: Path) -> None:
    data = read(tmp_path, lists("\t", " "))
    assert data.reading is not None and data.reading.form == "lists"
    assert data.item_ids[data.item].tolist() == [str(item) for _, items in HISTORIES for item in items]


@pytest.mark.parametrize("form", [None, "lists"])
@pytest.mark.parametrize(("outer", "inner"), [(";", ","), ("\t", ","), (": ", " "), ("|", " "), (",", " ")])
def test_lists_with_two_separators(tmp_path: Path, outer: str, inner: str, form: str | None) -> None:
    said = refused(tmp_path, lists(outer, inner), Columns(form=form))
    assert "line 1: '101" in said and "one user and its items" in said and "data.format=lists" in said


@pytest.mark.parametrize("alike", [False, True])
def test_lists_of_names(tmp_path: Path, alike: bool) -> None:
    text = lists(" ", " ", "i{}")
    if alike:
        text = "".join(" ".join((line.split() * 2)[:6]) + "\n" for line in text.splitlines())
    assert "data.format=lists" in refused(tmp_path, text)
    assert read(tmp_path, text, Columns(form="lists")).users == len(HISTORIES)
    if alike:
        told = Columns(item=5, rating="-", time="-")
        assert read(tmp_path, text, told).rows == len(HISTORIES), "a table, for who says what is where"
    reading = read(tmp_path, lists("\t", " ", "i{}")).reading
    assert reading is not None and "no user has two rows" in reading.sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"user","item","rating"\n"1",7,8,3\n"2",7,9,4\n', ["3 names, and the rows have 4 columns", "row.names=FALSE"]),
        ("user item\n1 7 8\n2 7 9\n", ["2 names, and the rows have 3 columns", "row.names=FALSE"]),
        ("user,item\n7,8,\n7,9,\n", ["the rows end with a separator"]),
    ],
)
def test_a_header_that_is_one_name_short(tmp_path: Path, text: str, words: list[str]) -> None:
    assert all(word in refused(tmp_path, text) for word in words)


@pytest.mark.parametrize("columns", [Columns(item="item"), Columns()])
def test_a_name_that_two_columns_have(tmp_path: Path, columns: Columns) -> None:
    text = "user,item,item\n1,2,3\n1,4,5\n"
    assert "called 'item' (numbers 1, 2, from 0); say which is the item by its number" in refused(
        tmp_path, text, columns
    )
    assert read(tmp_path, text, Columns(item=2)).item_ids.tolist() == ["3", "5"]
    frame = pd.DataFrame([[1, 2, 3]], columns=["user", "item", "item"])
    with pytest.raises(InputError, match="two columns are called 'item'"):
        read_frame(frame, columns)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("~/nope.csv", "home/nope.csv: no such file; check the path"),
        ("nope.csv", "nope.csv: no such file"),
        ("C:\\data\\x.csv", "is a path of Windows"),
        ("https://example.org/x.csv", "is an address: download the file"),
        ("x\temp.csv", "in TOML, write a path in single quotes"),
        ("nope", "neither a known data set nor a file; `fedem data list`"),
        ("ml-100q", "did you mean 'ml-100k'?"),
    ],
)
def test_a_path_that_leads_nowhere(name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(InputError) as caught:
        open_source(name)
    assert words in str(caught.value) and "amazon" not in str(caught.value)


@pytest.mark.parametrize("path", ["C:\\Users\\me\\x.csv", "C:\\data\\x.csv"])
def test_a_path_of_windows_in_toml(path: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f'[data]\ndataset = "{path}"\n')
    with pytest.raises(InputError, match=r"line 2, .*; write a path in single quotes, or with /"):
        read_toml(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text(f"[data]\ndataset = '{path}'\n")
    assert read_toml(tmp_path / "x.toml")["data"]["dataset"] == path
