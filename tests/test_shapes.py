"""Every shape that a data set comes in is read back as it was written; what is no data set is refused."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedem_flwr.data import Columns, Interactions, read_interactions
from fedem_flwr.data import texts as texts_module
from fedem_flwr.data.plausible import MISSING
from fedem_flwr.errors import InputError

Row = tuple[str, str, float, int]
HEADER = ("userId", "movieId", "rating", "timestamp")
few = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
many = settings(few, max_examples=250)

plain_labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_éß", min_size=1, max_size=6).filter(
    lambda label: label not in MISSING
)
# what only quotes can hold; a label's own blanks at its ends do not count, and line ends are all one
rich_labels = st.text("ab ,;|\"'\n\té#%", min_size=1, max_size=6).map(str.strip).filter(bool)
moments = st.integers(400_000_000, 2_000_000_000)


def rows_with(labels: st.SearchStrategy[str]) -> st.SearchStrategy[list[Row]]:
    ratings = st.integers(0, 10).map(lambda half: half / 2)
    return st.lists(st.tuples(labels, labels, ratings, moments), min_size=2, max_size=12)


def assert_holds(data: Interactions, rows: list[Row], *, rating: bool = True, time: bool = True) -> None:
    assert data.rows == len(rows) == (data.reading.rows if data.reading else -1)
    assert data.user_ids[data.user].tolist() == [row[0] for row in rows]
    assert data.item_ids[data.item].tolist() == [row[1] for row in rows]
    assert list(data.user_ids) == list(dict.fromkeys(row[0] for row in rows)), "numbered as they appear"
    assert list(data.item_ids) == list(dict.fromkeys(row[1] for row in rows))
    assert (None if data.rating is None else data.rating.tolist()) == ([row[2] for row in rows] if rating else None)
    assert (None if data.time is None else data.time.tolist()) == ([row[3] for row in rows] if time else None)


def separated(rows: list[Row], separator: str = ",", header: bool = True, newline: str = "\n") -> str:
    lines = [HEADER, *rows] if header else rows
    return "".join(separator.join(map(str, line)) + newline for line in lines)


def quoted(rows: list[Row], separator: str) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([HEADER, *rows])
    return text.getvalue()


def dated(rows: list[Row], form: Callable[[datetime.datetime], str]) -> str:
    return separated([(*row[:3], form(datetime.datetime.fromtimestamp(row[3], datetime.UTC))) for row in rows])  # type: ignore[misc]


def objects(rows: list[Row]) -> str:
    return "".join(json.dumps(dict(zip(HEADER, row, strict=True))) + "\n" for row in rows)


def zstd(data: bytes) -> bytes:
    compressed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    with pa.CompressedOutputStream(sink := pa.BufferOutputStream(), "zstd") as stream:  # a frame that can be streamed
        stream.write(data)
    assert compressed
    return bytes(sink.getvalue())


PLAIN: dict[str, Callable[[list[Row]], bytes]] = {
    "header-less": lambda rows: separated(rows, "::", header=False).encode(),
    "blanks": lambda rows: separated(rows, "  ").encode(),
    "carriage returns": lambda rows: separated(rows, newline="\r").encode(),
    "comments": lambda rows: ("# made by hand\n" + separated(rows, "\t")).encode(),
    "names in a comment": lambda rows: ("% " + separated(rows, "\t")).encode(),
    "utf-16": lambda rows: separated(rows).encode("utf-16"),
    "gzip": lambda rows: gzip.compress(separated(rows).encode()),
    "bzip2": lambda rows: bz2.compress(separated(rows).encode()),
    "xz": lambda rows: lzma.compress(separated(rows, ";").encode()),
    "zstd": lambda rows: zstd(separated(rows, "|").encode()),
    "two members": lambda rows: (
        gzip.compress(separated(rows[:1]).encode()) + gzip.compress(separated(rows[1:], header=False).encode())
    ),
    "ISO": lambda rows: dated(rows, lambda when: when.isoformat()).encode(),
    "ISO, without a zone": lambda rows: dated(rows, lambda when: f"{when:%Y-%m-%d %H:%M:%S}").encode(),
    "ISO, fractions": lambda rows: dated(rows, lambda when: f"{when:%Y-%m-%dT%H:%M:%S}.000Z").encode(),
    "another zone": lambda rows: dated(
        rows, lambda when: when.astimezone(datetime.timezone(datetime.timedelta(hours=9))).isoformat()
    ).encode(),
    "slashes": lambda rows: dated(rows, lambda when: f"{when:%Y/%m/%d %H:%M:%S}").encode(),
    "atomic file": lambda rows: (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + separated(rows, "\t", header=False)
    ).encode(),
}
RICH: dict[str, Callable[[list[Row]], bytes]] = {
    "quotes, comma": lambda rows: quoted(rows, ",").encode(),
    "quotes, semicolon": lambda rows: quoted(rows, ";").encode(),
    "quotes, tab": lambda rows: quoted(rows, "\t").encode(),
    "quotes, utf-16": lambda rows: quoted(rows, ",").encode("utf-16"),
    "JSON lines": lambda rows: objects(rows).encode(),
}


@pytest.fixture(params=[1 << 24, 7])
def piece_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read at once, and in pieces that end anywhere."""
    monkeypatch.setattr(texts_module, "PIECE_BYTES", request.param)


@pytest.mark.usefixtures("piece_bytes")
@pytest.mark.parametrize("shape", PLAIN)
@few
@given(rows=rows_with(plain_labels))
def test_plain_labels_in_every_shape(tmp_path: Path, shape: str, rows: list[Row]) -> None:
    (tmp_path / "rows").write_bytes(PLAIN[shape](rows))
    columns = Columns(header=False) if shape == "header-less" else Columns()
    assert_holds(read_interactions(tmp_path / "rows", columns), rows)


@pytest.mark.usefixtures("piece_bytes")
@pytest.mark.parametrize("shape", RICH)
@few
@given(rows=rows_with(rich_labels))
def test_labels_with_anything_in_them(tmp_path: Path, shape: str, rows: list[Row]) -> None:
    (tmp_path / "rows").write_bytes(RICH[shape](rows))
    assert_holds(read_interactions(tmp_path / "rows"), rows)


@few
@given(rows=rows_with(rich_labels), numbers=st.booleans(), dates=st.booleans())
def test_parquet(tmp_path: Path, rows: list[Row], numbers: bool, dates: bool) -> None:
    if numbers:
        rows = [(str(len(user)), str(len(item)), rating, time) for user, item, rating, time in rows]
    frame = pd.DataFrame(rows, columns=list(HEADER))
    if numbers:
        frame = frame.astype({"userId": np.float64, "movieId": np.int32})
    if dates:
        frame["timestamp"] = pd.to_datetime(frame["timestamp"], unit="s", utc=True).dt.tz_convert("Asia/Tokyo")
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "rows.parquet", row_group_size=3)
    assert_holds(read_interactions(tmp_path / "rows.parquet"), rows)


@pytest.mark.usefixtures("piece_bytes")
@few
@given(
    histories=st.dictionaries(st.integers(0, 10**6), st.lists(st.integers(0, 50), max_size=9), min_size=5, max_size=12),
    separator=st.sampled_from([" ", "\t", ",", "  "]),
    in_order=st.booleans(),
)
def test_one_user_a_line(tmp_path: Path, histories: dict[int, list[int]], separator: str, in_order: bool) -> None:
    histories = {1000001: [1, 2, 3, 4], 1000002: [1], **histories, 1000003: [2, 1]}
    text = "".join(separator.join(map(str, [user, *items])) + "\n" for user, items in histories.items())
    (tmp_path / "lists.txt").write_text(text)
    rows = [(str(u), str(i), 0.0, 0) for u, items in histories.items() for i in items]
    rows = [(*row[:3], at) for at, row in enumerate(rows)]
    data = read_interactions(tmp_path / "lists.txt", Columns(form="lists", in_order=in_order))
    assert_holds(data, rows, rating=False, time=in_order)  # type: ignore[arg-type]
    empty = sum(not items for items in histories.values())
    assert data.reading is not None and (f"{empty} users without an item" in data.reading.notes) == bool(empty)


def test_lists_are_recognised(tmp_path: Path) -> None:
    ragged = "".join(f"{u} {' '.join(str(i * 3 + u) for i in range(3 + u % 7))}\n" for u in range(30))
    alike = "".join(f"{u} {' '.join(str((i * 31 + u) % 97) for i in range(6))}\n" for u in range(30))
    for text in (ragged, alike):
        (tmp_path / "lists.txt").write_text(text)
        data = read_interactions(tmp_path / "lists.txt")
        assert data.reading is not None and data.reading.form == "lists"
        assert data.rows == sum(len(line.split()) - 1 for line in text.splitlines())


words = st.text(st.characters(codec="latin-1", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=4)


@few
@given(
    rows=rows_with(words.map(lambda word: f"éa{word}".replace(",", "").replace('"', ""))),
    encoding=st.sampled_from(["latin-1", "cp1252"]),
)
def test_another_encoding_is_asked_for(tmp_path: Path, rows: list[Row], encoding: str) -> None:
    (tmp_path / "rows.csv").write_bytes(separated(rows).encode("latin-1"))
    with pytest.raises(InputError, match=r"line 2, column 0: not UTF-8 text; .*data\.encoding"):
        read_interactions(tmp_path / "rows.csv")
    try:
        expected = [
            (user.encode("latin-1").decode(encoding), item.encode("latin-1").decode(encoding), *rest)
            for user, item, *rest in rows
        ]
    except UnicodeDecodeError:  # cp1252 does not use all bytes
        with pytest.raises(InputError, match="not CP1252 text"):
            read_interactions(tmp_path / "rows.csv", Columns(encoding=encoding))
        return
    assert_holds(read_interactions(tmp_path / "rows.csv", Columns(encoding=encoding)), expected)  # type: ignore[arg-type]


def test_what_looks_like_a_comment_inside_quotes_is_none(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('# made by hand\nuser,item\n# half of it\n"a\n# b\nd",x\nc,"y\n\nz"\n')
    data = read_interactions(tmp_path / "rows.csv")
    assert data.user_ids.tolist() == ["a\n# b\nd", "c"] and data.item_ids.tolist() == ["x", "y\n\nz"]


@pytest.mark.usefixtures("piece_bytes")
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_wrong_line_is_named_wherever_it_is(tmp_path: Path, newline: str, encoding: str) -> None:
    """Blank lines, comments and lines inside quotes count."""
    good = ["# made by hand", "user,item,rating", "", *[f'u{i},"i\n{i}",3' for i in range(20)], "   ", "# half"]
    text = newline.join([*good, "u,i,many", "u,i,few", ""]).replace("i\n", f"i{newline}")
    (tmp_path / "rows.csv").write_bytes(text.encode(encoding))
    with pytest.raises(InputError, match=r"line 46, column 2: the rating 'many'"):
        read_interactions(tmp_path / "rows.csv")


# --- garbage


@many
@given(data=st.binary(min_size=40, max_size=400))
def test_random_bytes_are_no_data_set(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bytes").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_interactions(tmp_path / "bytes")
    assert "\n" not in str(caught.value)


GOOD = separated([(f"u{i % 4}", f"i{i}", i % 6, 10**9 + i) for i in range(30)]).encode()  # type: ignore[misc]


@many
@given(
    at=st.integers(0, len(GOOD)),
    drop=st.integers(0, 6),
    put=st.binary(max_size=4) | st.sampled_from([b'"', b",", b"\n", b"\r", b"#"]),
)
def test_a_damaged_file_is_refused_or_read_in_full(tmp_path: Path, at: int, drop: int, put: bytes) -> None:
    """Whatever was accepted holds the file's fields, each in its place, and no line went missing."""
    data = GOOD[:at] + put + GOOD[at + drop :]
    (tmp_path / "rows.csv").write_bytes(data)
    try:
        found = read_interactions(tmp_path / "rows.csv")
    except InputError as error:
        assert "\n" not in str(error)
        return
    reading = found.reading
    assert reading is not None
    text = data.decode(errors="surrogateescape").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    lines = [
        line for line in csv.reader(io.StringIO(text, newline="\n"), skipinitialspace=True) if any(map(str.strip, line))
    ]
    lines = [line for line in lines if not (reading.comment and line[0].startswith(reading.comment))]
    rows = lines[1:] if reading.header else lines
    assert found.rows == len(rows)
    roles = {column.role: column.number for column in reading.columns}
    assert found.user_ids[found.user].tolist() == [row[roles["user"]].strip(" ") for row in rows]
    assert found.item_ids[found.item].tolist() == [row[roles["item"]].strip(" ") for row in rows]


@settings(few, max_examples=60)
@given(cut=st.integers(1, 200), shape=st.sampled_from(["gzip", "bzip2", "xz", "zstd", "parquet"]))
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int, shape: str) -> None:
    rows: list[Row] = [(f"u{i % 9}", f"i{i}", 1.0, 10**9 + i) for i in range(60)]
    path = tmp_path / "rows"
    if shape == "parquet":
        pd.DataFrame(rows, columns=list(HEADER)).to_parquet(path)
        data = path.read_bytes()
    else:
        data = PLAIN[shape](rows)
    path.write_bytes(data[: len(data) - min(cut, len(data) - 12)])
    with pytest.raises(InputError, match=r"damaged|truncated|not a"):
        read_interactions(path)
