"""The catalogue of known data sets: where they are looked for, their sizes and labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedem_flwr.data import (
    ABSENT,
    Columns,
    dataset_entry,
    find_dataset,
    load_dataset,
    read_interactions,
)
from fedem_flwr.errors import InputError


@pytest.mark.parametrize("name", ["filmtrust", "ml-100k", "ml-1m", "lastfm-2k"])
def test_known_dataset_has_its_size(data_dir: Path, name: str) -> None:
    entry = dataset_entry(name)
    found = find_dataset(name, data_dir)
    assert (found.status, found.warning) == ("ok", None)
    data = load_dataset(name, data_dir)
    assert (data.name, data.users, data.items, data.rows) == (name, entry.users, entry.items, entry.rows)
    assert (data.time is not None) == entry.has_times
    assert (data.rating is None) == (name == "lastfm-2k")  # its third column is a tag
    detected = read_interactions(found.path)
    np.testing.assert_array_equal(detected.item, data.item)
    assert (detected.time is not None) == entry.has_times


def test_known_dataset_labels_and_rows(data_dir: Path) -> None:
    data = load_dataset("ml-1m", data_dir)
    with (data_dir / "ml-1m" / "ratings.dat").open(encoding="utf-8") as file:
        for row, line in zip(range(3000), file, strict=False):
            user, item, rating, time = line.strip().split("::")
            assert (data.user_ids[data.user[row]], data.item_ids[data.item[row]]) == (user, item)
            assert data.rating is not None and data.rating[row] == float(rating)
            assert data.time is not None and data.time[row] == float(time)


def test_minimum_rows_by_protocol() -> None:
    assert dataset_entry("lastfm-2k").min_interactions("paper") == 5
    assert dataset_entry("lastfm-2k").min_interactions("strict") == 10
    assert dataset_entry("ml-1m").min_interactions("paper") == 10


def test_search_order_and_differing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {key: tmp_path / key for key in ("given", "environment", "cache")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.setenv("FEDEM_DATA", str(folders["environment"]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders["cache"]))
    with pytest.raises(InputError, match=r"not found in .*given.*environment.*cache"):
        find_dataset("filmtrust", folders["given"], fetch=False)
    for key, place in (
        ("cache", "cache/fedem-flwr/data"),
        ("environment", "environment"),
        ("given", "given"),
    ):
        home = tmp_path / place / "filmtrust"
        home.mkdir(parents=True)
        (home / ("ratings.txt" if key == "cache" else "ratings.dat")).write_text("1 1 2\n1 2 3\n")
        found = find_dataset("filmtrust", folders["given"], fetch=False)
        assert found.path.is_relative_to(folders[key])
        assert found.status == "differs"
        assert found.warning is not None and "not a known copy" in found.warning and "\n" not in found.warning
    assert load_dataset("filmtrust", folders["given"]).rows == 2  # a warning, not an error


def test_a_recorded_download_without_published_checksum_is_unverified(tmp_path: Path) -> None:
    home = tmp_path / "filmtrust"
    home.mkdir()
    (home / "ratings.txt").write_text("1 1 2\n1 2 3\n")
    sha256 = find_dataset("filmtrust", tmp_path).sha256
    (home / "source.json").write_text(json.dumps({"sha256": sha256}))
    found = find_dataset("filmtrust", tmp_path)
    assert found.status == "unverified"
    assert found.warning is not None and sha256 in found.warning


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'ml-100k'"):
        load_dataset("ml-100", None)
    with pytest.raises(InputError, match="did you mean 'synthetic'"):
        load_dataset("syntetic", None)
    with pytest.raises(InputError, match="does not exist"):
        load_dataset("ml-1m", tmp_path / "nowhere")


def test_a_path_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("1,2,3\n1,3,4\n")
    assert load_dataset(str(path), None).rows == 2
    assert load_dataset(str(path), None, columns=Columns(rating=ABSENT, time=ABSENT)).rating is None
