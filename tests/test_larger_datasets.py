"""Known data sets that come compressed, without a published checksum, or not at all; from a loopback server."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_download import BODY, Server, fetch, serving
from zipped import leftovers, zipped

from fedem_flwr.cli import main
from fedem_flwr.data import KNOWN_DATASETS, fetch_dataset, find_dataset, load_dataset
from fedem_flwr.data import known as known_module
from fedem_flwr.data.known import FAMILIES, family_of
from fedem_flwr.errors import InputError


class Disk(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDEM_DATA", raising=False)
    yield


def serve(name: str, body: bytes, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.body = body
    entry = dataclasses.replace(KNOWN_DATASETS[name], urls=(server.url,), archive_checksum=None)
    monkeypatch.setitem(known_module.KNOWN_DATASETS, name, entry)


def test_every_entry_says_what_its_owner_asks_for() -> None:
    for name, entry in KNOWN_DATASETS.items():
        assert entry.licence and entry.citation and entry.name == name and (entry.urls or entry.by_hand)
        assert entry.homepage.startswith("http") or name == "filmtrust"
        assert all(url.startswith("http") for url in entry.urls) and entry.member
        kind, _, hexadecimal = (entry.archive_checksum or "md5:" + "0" * 32).partition(":")
        assert {"md5": 32, "sha256": 64}[kind] == len(hexadecimal)
    assert [sum(family_of(name) == family for name in KNOWN_DATASETS) for family in FAMILIES] == [24, 29]


AMAZON = [
    {"reviewerID": "A1", "asin": "B01", "overall": 5.0, "unixReviewTime": 1_400_000_000, "helpful": [0, 1]},
    {"reviewerID": "A2", "asin": "B01", "overall": 1.0, "unixReviewTime": 1_500_000_000, "style": {"Size:": "L"}},
]
SHAPES: dict[str, tuple[bytes, list[tuple[str, str, float]]]] = {
    "amazon-2018-all-beauty": (
        "\n".join(map(json.dumps, AMAZON)).encode(),
        [("A1", "B01", 1.4e9), ("A2", "B01", 1.5e9)],
    ),
    "steam": (
        b"{u'username': u'Ann \\xe9', u'hours': 4.5, u'product_id': u'10', u'date': u'2017-11-28', u'early': False}\n"
        b"{u'username': u'Bob', u'hours': 1.0, u'product_id': u'20', u'date': u'2017-11-29', u'early': True}\n",
        [("Ann é", "10", 1_511_827_200.0), ("Bob", "20", 1_511_913_600.0)],
    ),
    "gowalla": (
        b"0\t2010-10-19T23:55:27Z\t30.2\t-97.7\t22847\n1\t2010-10-18T22:17:43Z\t30.2\t-97.7\t420315\n",
        [("0", "22847", 1_287_532_527.0), ("1", "420315", 1_287_440_263.0)],
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_compressed_file_is_read_as_it_was_downloaded(
    name: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, rows = SHAPES[name]
    serve(name, gzip.compress(body), server, monkeypatch)
    data = load_dataset(name, None)
    assert data.time is not None
    users, items = data.user_ids[data.user].tolist(), data.item_ids[data.item].tolist()
    assert list(zip(users, items, data.time.tolist(), strict=True)) == rows
    assert (data.rating is None) == (not name.startswith("amazon"))
    found = find_dataset(name)
    assert found.status == "unverified" and leftovers(found.path.parent) == [found.path.name, "source.json"]
    found.path.with_suffix("").write_bytes(body)
    found.path.unlink()
    assert find_dataset(name).path.suffix != ".gz", "somebody has unpacked it"


def test_a_csv_in_a_zip_archive(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n1,306,3.5,1147868817\n"
    archive = zipped(tmp_path / "served.zip", {"ml-25m/README.txt": b"", "ml-25m/ratings.csv": content})
    serve("ml-25m", archive.read_bytes(), server, monkeypatch)
    data = load_dataset("ml-25m", None)
    assert (data.users, data.items, data.rows) == (1, 2, 2)


def test_a_later_download_must_equal_the_first_where_no_checksum_is_published(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("gowalla", gzip.compress(SHAPES["gowalla"][0], mtime=0), server, monkeypatch)
    first = fetch_dataset("gowalla")
    first.path.unlink()
    assert fetch_dataset("gowalla").sha256 == first.sha256
    first.path.unlink()
    server.body = gzip.compress(SHAPES["gowalla"][0] + b"2\t2010-10-18T22:17:43Z\t0\t0\t1\n")
    with pytest.raises(InputError, match=r"differs from the first one.*delete .*source\.json") as caught:
        fetch_dataset("gowalla")
    assert "\n" not in str(caught.value) and leftovers(first.path.parent) == ["source.json"]
    (first.path.parent / "source.json").unlink()
    assert fetch_dataset("gowalla").sha256 != first.sha256


@pytest.mark.parametrize("changed", [False, True])
def test_a_part_without_a_checksum_goes_on_if_the_server_has_the_same_version(
    server: Server, tmp_path: Path, changed: bool
) -> None:
    server.version, server.cut_first = '"one"', 3
    with pytest.raises(InputError, match="truncated"):
        fetch(server, tmp_path / "file.bin")
    assert leftovers(tmp_path) == ["file.bin.part", "file.bin.part.version"]
    if changed:
        server.version, server.body = '"two"', BODY[::-1]
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == server.body and leftovers(tmp_path) == ["file.bin"]
    assert server.asked[-1] == f"bytes={len(BODY) * 7 // 8}-"


def test_no_room_is_said_before_anything_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(10, 10, 1000))
    with pytest.raises(InputError, match=r"1 MB, and .* has 0 MB left"):
        fetch(server, tmp_path / "file.bin")
    assert "file.bin" not in leftovers(tmp_path)


@pytest.mark.parametrize("words", [("fetch",), ("info",)])
def test_what_must_be_fetched_by_hand_says_how(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as stopped:
        main(["data", *words, "yelp"])
    said: Any = capsys.readouterr()
    assert stopped.value.code == (2 if words == ("fetch",) else 0)
    for part in (
        "https://www.yelp.com/dataset",
        "accept the terms",
        "yelp_academic_dataset_review.json",
        "non-commercial",
    ):
        assert part in said.out + said.err


def test_the_list_has_licences_and_categories(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["data", "list"])
    said = capsys.readouterr().out
    for words in (
        "ml-32m",
        "239 MB",
        "no redistribution",
        "fedem data fetch NAME",
        "steam",
        "amazon-2014-",
        "prime-pantry",
    ):
        assert words in said


@pytest.mark.parametrize("line", ["{u'username': __import__('os').getcwd()}", "{'user': 'a', 'item': }", "{'a', 'b'}"])
def test_python_notation_is_read_and_never_run(line: str, tmp_path: Path) -> None:
    path = tmp_path / "lines.json"
    path.write_text("{'user': 'a', 'item': 'b'}\n" + line + "\n")
    with pytest.raises(InputError, match=r"line 2"):
        load_dataset(str(path))
