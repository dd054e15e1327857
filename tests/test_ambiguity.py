"""What a file could be in two ways is refused, with both and the setting that decides; else it is read."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pandas as pd
import pytest

from fedem_flwr.data import Columns, read_interactions
from fedem_flwr.errors import InputError

NOON = 978_350_400


def table(header: str, *rows: str) -> str:
    return "\n".join([*([header] if header else []), *rows]) + "\n"


def timed(name: str) -> str:
    return table(f"userId,movieId,rating,{name}", f"1,2,3,{NOON}", f"2,2,4,{NOON + 9}")


REFUSED: dict[str, tuple[str, Columns, list[str], Columns]] = {
    "two separators": (
        table("", "a|b,c|d", "e|f,g|h"),
        Columns(),
        ["3 columns separated by pipe, or 2 by comma", 'data.separator="|"'],
        Columns(separator="|", rating="-", time="-"),
    ),
    "lists or a table": (
        table("", "1 98 59", "2 31 47", "3 12 98"),
        Columns(),
        ["one interaction (user, item, rating) or one user and 2 items", "data.format=rows, or lists"],
        Columns(form="lists"),
    ),
    "day or month": (
        table("user,item,date", "1,2,03/04/2019", "1,3,05/06/2019"),
        Columns(),
        ["column 'date'", "'03/04/2019'", "%d/%m/%Y or %m/%d/%Y", "data.time_format"],
        Columns(time_format="%d/%m/%Y"),
    ),
    "two items": (
        table("userid,artistid,trackid", "1,2,3"),
        Columns(),
        ["'artistid' and column 'trackid' could both be the item", "data.item_column=artistid"],
        Columns(item="trackid"),
    ),
    "two times": (
        table("user,item,viewed_at,bought_at", f"1,2,{NOON},{NOON + 1}", f"1,3,{NOON},{NOON + 1}"),
        Columns(),
        ["'viewed_at' and column 'bought_at' could both be the time", "'-' for none"],
        Columns(time="bought_at"),
    ),
    "two columns of times, no names": (
        table("", f"1,2,{NOON},{NOON + 1}", f"1,3,{NOON},{NOON + 1}"),
        Columns(),
        ["column 2 and column 3 could both be the time", "data.time_column=2"],
        Columns(time=3, rating="-"),
    ),
    "times under a name that says nothing": (
        timed("foo"),
        Columns(),
        ["column 'foo' looks like times", "data.time_column=foo", "data.time_column=-"],
        Columns(time="foo"),
    ),
    "times first": (
        table("", f"{NOON},a,b", f"{NOON + 5},a,c"),
        Columns(),
        ["column 0 looks like times, and stands where the user is looked for"],
        Columns(time=0),
    ),
    "a comment or a row": (
        table("", "#1,2,3", "4,5,6", "4,8,7"),
        Columns(),
        ["line 1", "'#1,2,3'", 'data.comment="#"', 'data.comment=""'],
        Columns(comment=""),
    ),
    "a header of many columns without a known name": (
        table("a,b,c,d,e", "x,y,z,1,2", "x,y,z,1,2"),
        Columns(),
        ["no user column", "data.user_column"],
        Columns(user="a", item="b"),
    ),
    "another encoding": (
        "user,item\n1,2\n3,4\n",
        Columns(encoding="utf8x"),
        ["unknown encoding 'utf8x'", "latin-1"],
        Columns(encoding="latin-1"),
    ),
    "a comment below": (
        table("user,item,rating", "1,2,3", "# half of it", "2,2,3", *["3,3,3"] * 9),
        Columns(),
        ["line 3: 1 columns, expected 3", "a comment? --set data.comment="],
        Columns(comment="#"),
    ),
    "a decimal comma": (
        table("user;item;rating", "1;2;3,5", "1;3;4,0"),
        Columns(),
        ["line 2, column 2", "'3,5'", "decimal comma"],
        Columns(rating="-"),
    ),
    "an unknown form": (
        "1,2\n",
        Columns(form="parquets"),
        ["data.format", "did you mean 'parquet'"],
        Columns(form="rows"),
    ),
    "no notation": (
        table("user,item,date", "1,2,x"),
        Columns(time_format="%!"),
        ["none of strptime's"],
        Columns(time="-"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_both_ways_and_the_setting_are_named(case: str, tmp_path: Path) -> None:
    text, columns, words, remedy = REFUSED[case]
    (tmp_path / "rows").write_text(text)
    with pytest.raises(InputError) as caught:
        read_interactions(tmp_path / "rows", columns)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert read_interactions(tmp_path / "rows", remedy).rows >= 1, "the remedy helps"


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        *(
            (timed(name), f"userId movieId rating {name}")
            for name in ("date", "utc", "created_at", "reviewTime", "t_dat")
        ),
        *((timed(name), f"userId movieId rating {name}") for name in ("ratedAt", "watch_time", "lastDate:float", "ts")),
        (timed("release_date"), "userId movieId rating -"),
        (table("user,userId,item,movieId", "x,1,a,b"), "userId movieId - -"),
        (table("item_id,artist_id,user_id", "1,2,3"), "user_id item_id - -"),
        (table('"User-ID";"ISBN";"Book-Rating"', '"1";"2";"0"'), "User-ID ISBN Book-Rating -"),
        (table("userID,artistID,weight", "1,2,3"), "userID artistID weight -"),
        (table("user,item,average_rating", "1,2,3"), "user item - -"),
        (table("user,item,score,rating", "1,2,3,4"), "user item rating -"),
        (
            table("reviewerID,asin,overall,reviewTime,unixReviewTime", f'A,B,5,"09 13, 2009",{NOON}'),
            "reviewerID asin overall unixReviewTime",
        ),
        (table("user,item,date", "1,2,13/04/2019", "1,3,05/06/2019"), "user item - date"),
        (table("user,item,time", "1,2,Tue Apr 03 18:00:06 +0900 2012"), "user item - time"),
        (table("# user,item,note", "1,2,x", "1,3,y"), "user item - -"),
    ],
)
def test_the_better_name_wins(text: str, roles: str, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text(text)
    reading = read_interactions(tmp_path / "rows").reading
    assert reading is not None
    found = {column.role: column.name for column in reading.columns if column.role}
    assert " ".join(found.get(role, "-") for role in ("user", "item", "rating", "time")) == roles
    unused = [column for column in reading.columns if not column.role]
    assert all(f"'{column.name}'" in reading.sentence.partition("not used: ")[2] for column in unused)


def test_values_tell_times_from_ratings_without_names(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text(table("", f"1,2,{NOON},4", f"1,3,{NOON + 1},5"))
    data = read_interactions(tmp_path / "rows")
    assert data.time is not None and data.time.tolist() == [NOON, NOON + 1]
    assert data.rating is not None and data.rating.tolist() == [4, 5]
    (tmp_path / "rows").write_text(table("", "a,b,2019-01-02T03:04:05.5+01:00", "a,c,2019-01-02"))
    data = read_interactions(tmp_path / "rows")
    assert data.time is not None and data.time.tolist() == [1_546_394_645.5, 1_546_387_200]


def test_settings_of_a_known_data_set_can_be_changed_one_by_one() -> None:
    known = Columns(0, 1, "-", 3, ",", False)
    assert known.but(Columns()) == known
    assert known.but(Columns(in_order=True)) == Columns(0, 1, "-", 3, ",", False, in_order=True)
    assert known.but(Columns(header=True, comment="")) == Columns(0, 1, "-", 3, ",", True, comment="")


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("[user],[item]\n1,2\n1,3\n"))
    writer.start()
    data = read_interactions(tmp_path / "pipe")
    writer.join()
    assert (data.user_ids.tolist(), data.item_ids.tolist()) == (["1"], ["2", "3"])


def test_rows_in_order_need_no_times(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text(timed("timestamp"))
    data = read_interactions(tmp_path / "rows", Columns(in_order=True))
    assert data.time is not None and data.time.tolist() == [0, 1]
    assert data.reading is not None and "data.order" in data.reading.sentence
    assert "not used: 'timestamp'" in data.reading.sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + b"\0" * 26 + b"[Content_Types].xml", "Excel workbook; save it as CSV"),
        (b"\xd0\xcf\x11\xe0" + b"\0" * 9, "old Excel workbook"),
        (b"SQLite format 3\0" + b"\0" * 99, "SQLite database"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\n<!DOCTYPE html><html>\n", "web page"),
        (b"x" * 257 + b"ustar" + b"0" * 99, "tar archive"),
        (b'[{"user": 1, "item": 2}]', "JSON array; write one object a line"),
        (b'{"user": 1, "item": 2}\n{"user": 1}\n', "line 2, key 'item': the item is empty"),
        (b'{"user": 1, "item": 2}\n{"user": 1,\n', "line 2: not JSON"),
        (b'{"user": 1, "item": 2}\n7\n', "line 2: '7' is no JSON object"),
        ("user,item\n1,2\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (b"PAR1 and no more", "damaged or truncated Parquet"),
        (b"# nothing\n# at all\n", "line 2: 3 columns, expected 2"),
        (b"user,item\n1,\x002\n", "line 2: holds the control character 0x00"),
    ],
)
def test_what_it_is_instead_is_said(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=re.escape(words)):
        read_interactions(tmp_path / "file")


@pytest.mark.parametrize("form", ["text", "jsonl", "parquet"])
def test_a_wrong_date_is_named_before_what_is_wrong_below_it(form: str, tmp_path: Path) -> None:
    dates = ["2019-01-02"] * 9 + ["2019-13-02"]
    frame = pd.DataFrame({"user": "u", "item": [f"i{at}" for at in range(10)], "date": dates})
    path = tmp_path / "rows"
    if form == "parquet":
        frame.to_parquet(path)
    elif form == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        path.write_text(frame.to_csv(index=False) + "u,i99\n")
    place = {"text": "line 11", "jsonl": "line 10", "parquet": "row 9"}[form]
    with pytest.raises(InputError, match=f"{place}: the time '2019-13-02' is not a date in the notation ISO8601"):
        read_interactions(path)
