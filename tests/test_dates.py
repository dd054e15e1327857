"""Times as people write them: one notation that all rows are in, or a refusal that names the setting."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedem_flwr.data import Columns, Interactions, read_interactions
from fedem_flwr.data.frame import read_frame
from fedem_flwr.data.times import notation_of, other_unit, seconds_in_any
from fedem_flwr.errors import InputError

START = datetime.datetime(2010, 1, 5, 2, 28, 54, tzinfo=datetime.UTC)
MOMENTS = [START + datetime.timedelta(days=3 * n, hours=5 * n) for n in range(12)]
DAY = 86_400


def read(folder: Path, text: str, columns: Columns | None = None) -> Interactions:
    (folder / "rows.csv").write_text(text, encoding="utf-8")
    return read_interactions(folder / "rows.csv", columns)


def refused(folder: Path, text: str, columns: Columns | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, text, columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(header: str, times: list[str]) -> str:
    return "\n".join([header, *(f'{n % 3},{n},4,"{time}"' for n, time in enumerate(times))]) + "\n"


@pytest.mark.parametrize(
    ("notation", "step"),
    [
        *((each, DAY) for each in ("%Y%m%d", "%d%m%Y", "%m%d%Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y", "%b %d %Y")),
        *((each, DAY) for each in ("%m/%d/%y", "%d.%m.%Y", "%Y.%m.%d", "%A, %B %d, %Y")),
        *((each, 1) for each in ("%Y%m%d%H%M%S", "%m/%d/%Y %I:%M:%S %p", "%Y-%m-%d %H:%M:%S UTC")),
        *((each, 1) for each in ("%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S +0000", "%a %b %d %H:%M:%S %Y")),
        *((each, 1) for each in ("%Y-%m-%d %H:%M:%S,123", "%d/%b/%Y:%H:%M:%S +0000", "%a %b %d %H:%M:%S UTC %Y")),
        ("%Y%m%d%H%M", 60),
    ],
)
def test_notations_are_recognised_under_any_name(notation: str, step: int, tmp_path: Path) -> None:
    times = [moment.strftime(notation) for moment in MOMENTS]
    wanted = [moment.timestamp() // step * step for moment in MOMENTS]
    found = read(tmp_path, table("user,item,rating,date", times)).time
    assert found is not None and np.floor(found).tolist() == wanted
    frame = read_frame(pd.DataFrame({"user": range(12), "item": range(12), "date": times})).time
    assert frame is not None and frame.tolist() == found.tolist()
    message = refused(tmp_path, table("user,item,rating,foo", times))
    assert "column 'foo' looks like times" in message and "data.time_column=foo" in message
    assert read(tmp_path, table("user,item,rating,foo", times), Columns(time="-")).time is None


def test_digits_are_dates_in_every_form(tmp_path: Path) -> None:
    """Numbers lose their first 0 in typed columns; a setting says that they are no dates."""
    numbers = [int(moment.strftime("%d%m%Y")) for moment in MOMENTS]
    wanted = [moment.timestamp() // DAY * DAY for moment in MOMENTS]
    columns = {"user": list(range(12)), "item": list(range(12)), "date": numbers}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in zip(*columns.values(), strict=True))
    )
    found = [read_interactions(tmp_path / f"rows.{end}").time for end in ("parquet", "jsonl")]
    for times in (*found, read_frame(pd.DataFrame(columns)).time):
        assert times is not None and times.tolist() == wanted
    plain = read_interactions(tmp_path / "rows.parquet", Columns(time_format="number")).time
    assert plain is not None and plain.tolist() == numbers


@pytest.mark.parametrize(
    ("head", "later", "notation"),
    [
        ("01/01/2019", ["02/01/2019", "03/01/2019"], None),
        ("01/01/2019", ["02/01/2019", "02/13/2019"], "%m/%d/%Y"),
        ("02/01/2019", ["02/01/2019", "13/02/2019"], "%d/%m/%Y"),
        ("05/05/2019", ["06/06/2019"], "%d/%m/%Y"),
        ("01012019", ["02012019", "01132019"], "%m%d%Y"),
        ("01012019", ["02012019"], None),
        ("01 May 2019", ["01 June 2019"], "%d %B %Y"),
        ("01-02-03", ["01-02-03"], None),
    ],
)
def test_all_rows_tell_the_notation(head: str, later: list[str], notation: str | None, tmp_path: Path) -> None:
    text = table("user,item,rating,date", [head] * 250 + later)
    frame = pd.DataFrame({"user": 1, "item": range(250 + len(later)), "date": [head] * 250 + later})
    if notation is None:
        message = refused(tmp_path, text)
        assert " or %" in message and later[0] in message and "data.time_format" in message
        with pytest.raises(InputError, match=r"could be .* or .*time_format"):
            read_frame(frame)
        return
    found = read(tmp_path, text)
    assert found.reading is not None and found.reading.columns[3].note == f"dates, {notation}"
    given = read(tmp_path, text, Columns(time_format=notation)).time
    assert found.time is not None and given is not None and found.time.tolist() == given.tolist()
    assert read_frame(frame).time.tolist() == given.tolist()  # type: ignore[union-attr]


def test_two_notations_in_one_column(tmp_path: Path) -> None:
    message = refused(tmp_path, table("user,item,rating,date", ["01/01/2019"] * 201 + ["13/01/2019", "01/13/2019"]))
    assert "more than one notation" in message and "'01/13/2019' is not %d/%m/%Y" in message
    message = refused(tmp_path, table("user,item,rating,date", ["01/01/2019"] * 201 + ["31/31/2019"]))
    assert "line 203" in message and "'31/31/2019' is not a date" in message


@pytest.mark.parametrize(
    ("header", "row", "words"),
    [
        ("user,item,rating,year,month,day", "{n},1,4,2010,2,{n}", ["'day' is a part of a date", "'year' and 'month'"]),
        ("user,item,year,month", "{n},1,2010,{n}", ["'year' and 'month' are parts of a date"]),
        ("user,item,rating,date,time", "{n},1,4,2010-02-0{n},02:28", ["'date' holds dates", "'time' times of day"]),
        ("user,item,rating,date,hour", "{n},1,4,2010-02-0{n},{n}", ["'date' holds dates", "'hour' times of day"]),
        ("user,item,time,date", "{n},1,02:2{n}:00,2010-02-0{n}", ["'date' holds dates", "data.time_column=date"]),
        ("1,1,4,2010-02-01,02:28", "{n},1,4,2010-02-0{n},02:28", ["column 3 holds dates", "column 4 times of day"]),
    ],
)
def test_parts_of_a_time_are_not_taken_for_it(header: str, row: str, words: list[str], tmp_path: Path) -> None:
    text = "\n".join([header, *(row.format(n=n) for n in range(1, 7))]) + "\n"
    message = refused(tmp_path, text)
    assert all(word in message for word in words), message
    assert read(tmp_path, text, Columns(time="-")).time is None


def test_whole_times_beside_parts_are_read(tmp_path: Path) -> None:
    rows = "".join(f"{n},1,2010,2,{n},978350{n}00\n" for n in range(1, 7))
    assert read(tmp_path, "user,item,year,month,day,timestamp\n" + rows).time is not None
    rows = "".join(f"{n},1,2010-02-0{n} 10:00,02:28\n" for n in range(1, 7))
    assert read(tmp_path, "user,item,date,length\n" + rows).time is not None


def test_the_unit_of_times_does_not_change(tmp_path: Path) -> None:
    times = [978_350_400 + n for n in range(300)]
    for at in (1, 250):
        mixed = [str(time * 1000 if n == at else time) for n, time in enumerate(times)]
        assert f"line {at + 2}: the time" in refused(tmp_path, table("user,item,rating,time", mixed))
        frame = pd.DataFrame({"user": 1, "item": range(300), "time": list(map(int, mixed))})
        with pytest.raises(InputError, match=rf"row {at}, .*looks like milliseconds, those before it like seconds"):
            read_frame(frame)
    pq.write_table(pa.table({"user": [1, 2], "item": [1, 2], "time": [978_350_400, 978_350_400_000]}), tmp_path / "p")
    with pytest.raises(InputError, match="row 2: the time"):
        read_interactions(tmp_path / "p")
    kept = read(tmp_path, table("user,item,rating,time", ["0", *map(str, times), "-5"])).time
    assert kept is not None and kept[0] == 0, "numbers that are no time at all are nobody's unit"
    assert other_unit(np.array([0.0, 4e12, 1e9])) == 2 and other_unit(np.array([1e9]), "milliseconds") == 0
    assert other_unit(np.array([]), "seconds") is None and other_unit(np.array([1e9, 2e9])) is None


@pytest.mark.parametrize("header", ["user,item,rating,time", ""])
@pytest.mark.parametrize("late", ["rating", "time"])
def test_a_column_that_fills_late_is_refused(header: str, late: str, tmp_path: Path) -> None:
    rows = [
        f"{n % 3},{n},{'4' if late == 'time' else ''},{n + 978_350_400 if late == 'rating' else ''}" for n in range(250)
    ]
    last = f"1,999,5,{978_350_400 + 999}"
    lines = [*([header] if header else []), *rows]
    assert read(tmp_path, "\n".join(lines) + "\n").rows == 250, "empty to the end"
    message = refused(tmp_path, "\n".join([*lines, last]) + "\n")
    assert f"line {len(lines) + 1}, column " in message and "empty in the first rows" in message
    left = read(
        tmp_path, "\n".join([*lines, last]) + "\n", Columns(time="-") if late == "time" else Columns(rating="-")
    )
    assert left.rows == 251


def test_two_columns_that_could_be_ratings(tmp_path: Path) -> None:
    rows = "".join(f"{n % 3},{n},{n % 19},{n % 5 + 1},{978_350_400 + n}\n" for n in range(40))
    assert "column 2 and column 3 could both be the rating" in refused(tmp_path, rows)
    found = read(tmp_path, rows, Columns(rating=3))
    assert found.rating is not None and found.rating[:3].tolist() == [1, 2, 3]


def test_what_no_notation_is_left_alone(tmp_path: Path) -> None:
    for values in (["Part 12"], ["1234567"], ["99999999"], ["100209"], ["2010"], []):
        assert notation_of(values) is None
    assert notation_of([f"31019{year}" for year in range(5)]) == "%d%m%y", "of six digits, from five on"
    assert np.isnan(seconds_in_any(["0001-01-01x", "20100209"], "%d%m%Y")).all()
    ancient = read(tmp_path, table("user,item,rating,date", ["0001-01-01", "2019-01-02"])).time
    assert ancient is not None and ancient[0] < -6e10
    weeks = table("user,item,rating,foo", [f"2010-W{n:02d}" for n in range(10, 20)])
    assert "in a notation that is not known, as '2010-W10'" in refused(tmp_path, weeks)
    clocks = read(tmp_path, table("user,item,rating,foo", [f"02:28:{n}" for n in range(10, 20)])).reading
    assert clocks is not None and clocks.columns[3].taken_for == "not used, though it looks like times of day"
