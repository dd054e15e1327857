"""A DataFrame is read as a file with the same header and rows would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedem_flwr.data import ABSENT, Columns, Interactions, read_frame, read_interactions
from fedem_flwr.errors import InputError

NOON = 1_577_880_000  # 2020-01-01 12:00 UTC


def rows(**columns: Any) -> pd.DataFrame:
    """A good DataFrame of four rows, with some columns replaced or added; None takes one out."""
    good = {
        "userId": [7, 3, 7, 9],
        "movieId": ["b", "a", "a", "b"],
        "rating": [4, 3.5, 1, 0],
        "timestamp": [4, 3, 2, 1],
    }
    return pd.DataFrame({name: values for name, values in {**good, **columns}.items() if values is not None})


def assert_same(one: Interactions, other: Interactions) -> None:
    for name in ("user", "item", "rating", "time", "user_ids", "item_ids"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert mine.dtype.kind == theirs.dtype.kind and mine.tolist() == theirs.tolist(), name


@pytest.mark.parametrize(
    ("frame", "columns"),
    [
        (rows(), None),
        (rows(rating=None), None),
        (rows(timestamp=None), None),
        (rows(genre=["rock"] * 4), Columns(rating=ABSENT)),
        (rows(userId=None, who=["x", " y", "x ", "z"]), Columns(user="who")),
        (rows(userId=None, who=["x", "y", "x", "z"]), Columns(user=3)),
        (rows().rename(columns={"userId": "a", "movieId": "b"}), None),  # no name helps: by position
        (rows()[["timestamp", "movieId", "rating", "userId"]], None),
        (rows().iloc[[2, 1, 1]], None),  # an index of its own
        (rows(movieId=pd.Categorical(["b", "a", "a", "b"])), None),
        (rows(rating=["4", "3", "2", "1"]), None),
    ],
)
def test_as_the_file(frame: pd.DataFrame, columns: Columns | None, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    frame.to_csv(path, index=False)
    before = frame.copy()
    found = read_frame(frame, columns, "mine")
    assert_same(found, read_interactions(path, columns))
    assert found.name == "mine"
    pd.testing.assert_frame_equal(frame, before)


def test_columns_without_names_go_by_position() -> None:
    timed = read_frame(pd.DataFrame([[1, 2, NOON], [1, 3, NOON + 1]]))
    assert timed.rating is None and timed.time is not None and timed.time.tolist() == [NOON, NOON + 1]
    rated = read_frame(pd.DataFrame([[1, 2, 5], [1, 3, 4]]))
    assert rated.time is None and rated.rating is not None
    dated = read_frame(pd.DataFrame([[1, 2, pd.Timestamp(NOON, unit="s")]]))
    assert dated.rating is None and dated.time is not None and dated.time.tolist() == [NOON]


@pytest.mark.parametrize("ids", [[7, 3, 7, 9], [7.0, 3, 7, 9], ["7", "3", " 7 ", "9"], [7, "3", 7.0, "9"]])
def test_ids_are_text(ids: list[Any]) -> None:
    for values in (ids, np.array(ids, np.float32)):
        found = read_frame(rows(userId=values))
        assert found.user_ids.tolist() == ["7", "3", "9"] and found.user.tolist() == [0, 1, 0, 2]
    assert read_frame(rows(userId=[0.5, 0.5, 1, 2])).user_ids.tolist() == ["0.5", "1", "2"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_dates_count_in_seconds(unit: str, zone: str | None) -> None:
    dates = pd.Series(pd.to_datetime([NOON, NOON + 1, 0, -1], unit="s", utc=True)).dt.tz_convert(zone)
    if zone is None:
        dates = dates.dt.tz_localize(None)
    found = read_frame(rows(timestamp=dates.dt.as_unit(unit)))  # type: ignore[arg-type]
    assert found.time is not None and found.time.tolist() == [NOON, NOON + 1, 0, -1]
    if unit != "s":
        half = read_frame(rows(timestamp=dates.dt.as_unit(unit) + pd.Timedelta(milliseconds=500)))  # type: ignore[arg-type]
        assert half.time is not None and half.time[0] == NOON + 0.5


@pytest.mark.parametrize(
    ("frame", "columns", "words"),
    [
        (rows().head(0), None, ["DataFrame 'mine' is empty"]),
        (pd.DataFrame(), None, ["is empty"]),
        (rows(movieId=None), None, ["no item column in 'userId, rating, timestamp'", "data.item_column"]),
        (rows(), Columns(item="movie"), ["no column 'movie'", "did you mean 'movieId'"]),
        (rows(), Columns(item=4), ["no column 4 for the item", "0 to 3"]),
        (rows(), Columns(separator=","), ["data.separator", "leave it out"]),
        (rows(), Columns(header=True), ["data.header"]),
        (rows(userId=[1, None, 1, 1]), None, ["row 1, column 'userId'", "the user is missing", "dropna"]),
        (rows(movieId=["a", "b", pd.NA, "c"]), None, ["row 2, column 'movieId'", "the item is missing"]),
        (rows(movieId=["a", "b", "b", " "]), None, ["row 3", "the item is empty"]),
        (rows(movieId=["a", "x" * 300, "b", "c"]), None, ["row 1", "longer than 256"]),
        (rows(rating=[1, 2, np.nan, 3]), None, ["row 2, column 'rating'", "'nan' is not a finite number", "drop"]),
        (rows(rating=[1, 2, 3, np.inf]), None, ["row 3", "'inf'"]),
        (rows(rating=["good", 1, 2, 3]), None, ["row 0", "the rating 'good'", "data.rating_column, '-' for none"]),
        (rows(rating=pd.to_datetime([1, 2, 3, 4])), None, ["row 0", "the rating '1970-01-01"]),
        (rows(rating=pd.to_timedelta([1, 2, 3, 4])), None, ["row 0", "the rating"]),
        (rows(timestamp=["noon"] * 4), None, ["the time 'noon'", "pandas.to_datetime"]),
        (rows(timestamp=pd.to_datetime(["2020-01-01", None, "2021-01-01", None])), None, ["row 1", "the time 'nan'"]),
        (rows(timestamp=[{}, 1, 2, 3]), None, ["row 0", "the time '{}'"]),
    ],
)
def test_bad_frames(frame: pd.DataFrame, columns: Columns | None, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read_frame(frame, columns, "mine")
    message = str(caught.value)
    assert message.startswith("DataFrame 'mine'") and "\n" not in message
    assert all(word in message for word in words), message
