"""Unpacking: a member by name, never outside the folder, never from a damaged archive."""

from __future__ import annotations

from pathlib import Path

import pytest
from zipped import leftovers, zipped

from fedem_flwr.data.download import extract_member
from fedem_flwr.errors import InputError


def test_extract_by_name_and_by_base_name(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"set/u.data": b"1 2\n", "set/README": b"no"})
    for member in ("set/u.data", "u.data"):
        target = extract_member(archive, member, tmp_path / "out")
        assert target == tmp_path / "out" / "u.data"
        assert target.read_bytes() == b"1 2\n"
    with pytest.raises(InputError, match=r"no 'x\.dat' in the archive; it holds set/u\.data"):
        extract_member(archive, "x.dat", tmp_path / "out")


@pytest.mark.parametrize("evil", ["../evil", "/etc/evil", "set/../../evil", "..\\evil", "C:\\evil"])
def test_extract_refuses_names_that_leave_the_folder(tmp_path: Path, evil: str) -> None:
    archive = zipped(tmp_path / "a.zip", {evil: b"x"})
    with pytest.raises(InputError, match="refusing"):
        extract_member(archive, evil, tmp_path / "deep" / "out")
    assert leftovers(tmp_path) == ["a.zip"]


def test_extract_puts_a_hostile_member_under_its_base_name(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"../../ratings.txt": b"x"})
    target = extract_member(archive, "ratings.txt", tmp_path / "deep" / "out")
    assert target == tmp_path / "deep" / "out" / "ratings.txt"
    assert leftovers(tmp_path) == ["a.zip", "deep"]


def test_extract_damaged_archives(tmp_path: Path) -> None:
    page = tmp_path / "page.zip"
    page.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="not a zip archive"):
        extract_member(page, "x", tmp_path / "out")
    archive = zipped(tmp_path / "a.zip", {"x": bytes(range(256)) * 4096})
    content = bytearray(archive.read_bytes())
    content[200] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        extract_member(archive, "x", tmp_path / "out")
    assert leftovers(tmp_path / "out") == []
