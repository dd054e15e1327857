"""The loader: every layout of a file is detected, and a bad one is a line that names the place."""

from __future__ import annotations

import gzip
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedem_flwr.data import ABSENT, Columns, Interactions, read_interactions
from fedem_flwr.data.plausible import MISSING
from fedem_flwr.errors import InputError

SEPARATORS = ["\t", ",", "::", ";", "|", " "]
Row = tuple[str, str, float, int]

labels = st.text(string.ascii_letters + string.digits + "-_é", min_size=1, max_size=8).filter(
    lambda label: label not in MISSING
)
ratings = st.floats(0, 5, allow_nan=False).map(lambda x: round(x, 3))
rows_of_a_file = st.lists(
    st.tuples(labels, labels, ratings, st.integers(100_000_000, 4_000_000_000)), min_size=1, max_size=12
)


def write(folder: Path, text: str | bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def first_appearance_slowly(values: list[str]) -> tuple[list[int], list[str]]:
    """The slow twin of the numbering: a dictionary, one row at a time."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values], list(numbers)


def assert_holds(data: Interactions, rows: list[Row], *, rating: bool, time: bool) -> None:
    for codes, ids, column in ((data.user, data.user_ids, 0), (data.item, data.item_ids, 1)):
        expected_codes, expected_ids = first_appearance_slowly([str(row[column]) for row in rows])
        assert codes.dtype == np.int64
        assert codes.tolist() == expected_codes
        assert ids.tolist() == expected_ids
        assert ids.dtype.kind == "U"
    assert (data.rating is None) == (not rating)
    assert (data.time is None) == (not time)
    if data.rating is not None:
        np.testing.assert_allclose(data.rating, [row[2] for row in rows], rtol=1e-15)
    if data.time is not None:
        assert data.time.tolist() == [row[3] for row in rows]


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("numbers", ["", "rating", "time", "rating time"])
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows_of_a_file, newline=st.sampled_from(["\n", "\r\n"]), last_newline=st.booleans())
@example(rows=[("007", "Na", 1.0, 10**9), ("7", "nil", 2.0, 10**9)], newline="\n", last_newline=False)
def test_every_layout_is_detected(
    tmp_path: Path,
    separator: str,
    header: bool,
    numbers: str,
    rows: list[Row],
    newline: str,
    last_newline: bool,
) -> None:
    rating, time = "rating" in numbers, "time" in numbers
    names = ["userId", "movieId"] + ["rating"] * rating + ["timestamp"] * time
    lines = [separator.join(names)] if header else []
    lines += [
        separator.join([user, item] + [str(stars)] * rating + [str(when)] * time) for user, item, stars, when in rows
    ]
    path = write(tmp_path, newline.join(lines) + newline * last_newline)
    # labels that look like header names are ambiguous without it
    columns = Columns(header=header)
    assert_holds(read_interactions(path, columns), rows, rating=rating, time=time)


@pytest.mark.parametrize("separator", SEPARATORS)
def test_header_is_detected(tmp_path: Path, separator: str) -> None:
    rows: list[Row] = [("a", "x", 1.5, 10**9), ("b", "x", 2.0, 10**9 + 1)]
    body = "\n".join(separator.join(map(str, row)) for row in rows)
    shuffled = "\n".join(separator.join(map(str, (row[3], row[1], row[2], row[0]))) for row in rows)
    for text in (
        body,
        separator.join(["user_id", "item_id", "rating", "time"]) + "\n" + body,
        separator.join(["who", "what", "much", "when"]) + "\n" + body,
        separator.join(["timestamp", "movieId", "rating", "userId"]) + "\n" + shuffled,
    ):
        assert_holds(read_interactions(write(tmp_path, text)), rows, rating=True, time=True)


def test_atomic_file_header_with_types(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id:token\titem_id:token\ttimestamp:float\n1\t2\t5\n3\t2\t6\n", "x.inter")
    data = read_interactions(path)
    assert (data.name, data.rating, data.users, data.items, data.rows) == ("x", None, 2, 1, 2)
    assert data.time is not None and data.time.tolist() == [5, 6]


def test_given_columns_by_name_and_number(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b,c,d\n9,u1,i1,4\n8,u2,i1,3\n")
    by_name = read_interactions(path, Columns(user="b", item="c", rating="d", time=ABSENT))
    by_number = read_interactions(path, Columns(user=1, item="2", rating=3, time=ABSENT, header=True))
    for data in (by_name, by_number):
        assert data.user_ids.tolist() == ["u1", "u2"]
        assert data.item.tolist() == [0, 0]
        assert data.rating is not None and data.rating.tolist() == [4, 3]
        assert data.time is None


def test_absent_columns_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, "1,2,rock,1200000000000\n1,3,jazz,1200000000001\n")
    data = read_interactions(path, Columns(rating=ABSENT, time=3))
    assert data.rating is None
    assert data.time is not None and data.time.tolist() == [1200000000000, 1200000000001]


def test_a_lone_third_column_is_a_time_only_where_it_looks_like_one(tmp_path: Path) -> None:
    timed = read_interactions(write(tmp_path, "1,2,978300760\n1,3,978300761\n"))
    rated = read_interactions(write(tmp_path, "1,2,5\n1,3,978300761\n"))
    assert timed.rating is None and timed.time is not None
    assert rated.time is None and rated.rating is not None


def test_gzip_quotes_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    text = '\ufeffuser,item,rating\n\n"a, b",x,1\n   \nc," y ",2\n'
    path = write(tmp_path, gzip.compress(text.encode()), "name.csv.gz")
    data = read_interactions(path)
    assert data.name == "name"
    assert data.user_ids.tolist() == ["a, b", "c"]
    assert data.item_ids.tolist() == ["x", "y"]


BAD_FILES = {
    "empty": (b"", None, "empty"),
    "blank": (b" \n\n", None, "empty"),
    "one column": (b"1\n2\n", None, "line 1: one column"),
    "header only": (b"user,item,rating\n", None, "no rows"),
    "short last row": (b"1,2,3,4\n5,6,7,8\n9,1,2\n", None, "line 3: 3 columns"),
    "short row, unused columns": (
        b"1,2,3,4\n5,6\n1,2,3,4\n",
        Columns(rating=ABSENT, time=ABSENT),
        "line 2: 2",
    ),
    "short and long row": (b"1,2,3\n5,6\n1,2,3,4\n", None, "line 2: 2 columns"),
    "long row": (b"1,2,3,4\n1,2,3,4,5\n1,2,3,4\n", None, "line 2: 5 columns"),
    "long first row": (b"1,2,3,4,5\n1,2,3,4\n1,2,3,4\n", None, "line 1: 5 columns"),
    "letters in rating": (b"1 2 3\n\n1 3 good\n1 4 4\n", None, "line 3, column 2: the rating 'good'"),
    "letters in time": (b"1::2::3::9\n1::2::3::noon\n", None, "line 2, column 3: the time 'noon'"),
    "empty number": (b"1,2,3\n1,2,\n", None, "line 2, column 2"),
    "nan": (b"1,2,3\n1,2,nan\n", None, "line 2, column 2: the rating 'nan' is not a finite number"),
    "infinite": (b"1\t2\t3\t4\n1\t2\t3\t-inf\n", None, "line 2, column 3: the time '-inf'"),
    "overflow": (b"1;2;3\n1;2;1e999\n", None, "line 2, column 2"),
    "empty user": (b"1,2,3\n,2,3\n", None, "line 2, column 0: the user is empty"),
    "long label": (b"1,2,3\n1," + b"x" * 300 + b",3\n", None, "line 2, column 1: the item is longer"),
    "not text": (b"1,2,3\n\xff\xfe,2,3\n", None, "line 2, column 0: not UTF-8"),
    "unknown column": (b"userId,film,rating\n1,2,3\n", Columns(item="flim"), "did you mean 'film'?"),
    "unnamed item": (b"userId,what,rating\n1,2,3\n", None, "no item column in header 'userId,what,rating'"),
    "name without header": (b"1,2,3\n", Columns(user="u", header=False), "no header"),
    "column out of range": (b"1,2,3\n", Columns(time=7), "no column 7 for the time; the columns are 0 to 2"),
    "column twice": (b"1,2,3\n", Columns(user=1, item=1), "column 1 is given as user and item"),
    "bad separator": (b"1,2,3\n", Columns(separator="coma"), "did you mean 'comma'?"),
    "broken gzip": (gzip.compress(b"1,2,3\n" * 99)[:-9], None, "gzip"),
    "zip": (b"PK\x03\x04rest", None, "zip archive"),
    "open quote": (b'1,2,3\n"1,2,3\n1,2,3\n', None, "line 2: a quote is opened and not closed"),
    "control character": (b"1::2\n1\x1f::2\n", None, "0x1f"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_one_line_that_names_the_place(tmp_path: Path, case: str) -> None:
    content, columns, expected = BAD_FILES[case]
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_interactions(path, columns)
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert str(path) in message or case == "bad separator"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_interactions(tmp_path / "none.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_interactions(tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60))
def test_any_bytes_give_interactions_or_an_input_error(tmp_path: Path, content: bytes) -> None:
    try:
        data = read_interactions(write(tmp_path, content))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert data.rows >= 1
        assert data.user.max() == data.users - 1


def test_take_renumbers_by_first_appearance(tmp_path: Path) -> None:
    data = read_interactions(write(tmp_path, "a,x,1\nb,y,2\nc,x,3\nb,z,4\n"))
    part = data.take(np.array([3, 2, 1]))
    assert part.user_ids[part.user].tolist() == ["b", "c", "b"]
    assert part.item_ids[part.item].tolist() == ["z", "x", "y"]
    assert part.user.tolist() == [0, 1, 0]
    assert part.rating is not None and part.rating.tolist() == [4, 3, 2]
    assert data.take(data.user == 0).rows == 1


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Interactions("x", np.zeros(2, np.int64), np.zeros(3, np.int64), None, None, np.array(["a"]), np.array(["b"]))
