"""Whole files, files for one's own, and what is refused: each condition of `fedem_flwr.files` by itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedem_flwr import files
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import (
    close_to_others,
    new_file,
    own_folder,
    private_folder,
    refuse_changeable,
    refuse_links,
    unlinked,
    write_atomically,
)

ELSE = 60_000  # the number of an account that is not ours


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def mask() -> Iterator[None]:
    """One that takes the owner's rights, and leaves others theirs."""
    before = os.umask(0o700)
    yield
    os.umask(before)


def of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is here belongs to somebody else from now on."""
    monkeypatch.setattr(os, "geteuid", lambda: ELSE)


@pytest.mark.usefixtures("mask")
def test_an_owner_may_whatever_the_umask_is(tmp_path: Path) -> None:
    inside = private_folder(tmp_path / "a" / "b")
    assert mode(inside) == mode(tmp_path / "a") == 0o700
    os.close(new_file(inside / "new"))
    os.close(unlinked(str(inside / "log"), os.O_WRONLY | os.O_CREAT))
    write_atomically(inside / "text", "x")
    write_atomically(inside / "own", "x", private=True)
    assert [mode(inside / name) for name in ("new", "log", "text", "own")] == [0o666, 0o666, 0o666, 0o600]


def test_who_could_not_read_a_file_cannot_read_the_next(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path, link = tmp_path / "file", tmp_path / "link"
        for old, private, now in ((0o640, False, 0o640), (0o755, False, 0o644), (0o666, True, 0o600)):
            path.write_text("old")
            path.chmod(old)
            write_atomically(path, "new", private=private)
            assert (mode(path), path.read_text()) == (now, "new")
        path.chmod(0o600)
        link.symlink_to(path)
        write_atomically(link, "other")
        assert not link.is_symlink() and mode(link) == 0o666 and path.read_text() == "new", "a link's mode says nothing"
    finally:
        os.umask(before)


def test_what_cannot_be_written_leaves_the_old_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "file", "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FedemError, match="No space left on device; free space"):
        write_atomically(tmp_path / "file", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def test_a_new_file_was_not_there(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            new_file(tmp_path / name)
    assert (tmp_path / "there").read_text() == "x" and not (tmp_path / "nowhere").exists()


def test_links_pipes_and_folders_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for name, words in (("link", "symbolic link"), ("pipe", "no ordinary file"), (".", "no ordinary file")):
        with pytest.raises(OSError, match=words):
            os.close(unlinked(str(tmp_path / name), os.O_RDONLY))
    handle = unlinked(str(tmp_path / "file"), os.O_RDONLY)
    assert os.get_blocking(handle)
    os.close(handle)


def test_a_folder_of_ones_own_is_closed_with_all_in_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """But for what a link leads to; programs stay programs."""
    folder, outside = tmp_path / "own", tmp_path / "outside"
    (folder / "inner").mkdir(parents=True)
    outside.touch()
    for name in ("data", "program"):
        (folder / "inner" / name).touch()
    (folder / "link").symlink_to(outside)
    for path, bits in ((folder, 0o755), (folder / "inner", 0o777), (outside, 0o644)):
        path.chmod(bits)
    (folder / "inner" / "program").chmod(0o755)
    assert own_folder(folder, "the folder") == folder
    assert "was open to other users (mode 755): it is closed now" in caplog.text
    modes = [mode(folder), mode(folder / "inner"), mode(folder / "inner" / "data"), mode(folder / "inner" / "program")]
    assert modes == [0o700, 0o700, 0o600, 0o700] and mode(outside) == 0o644
    assert not close_to_others(folder) and not close_to_others(folder / "link") and not close_to_others(tmp_path / "no")
    own_folder(tmp_path / "new", "the folder")
    assert mode(tmp_path / "new") == 0o700 and caplog.text.count("was open") == 1


def test_what_is_anothers_is_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir(mode=0o755)
    of_another(monkeypatch)
    with pytest.raises(InputError, match=rf"the state .*theirs belongs to another user .* chown -R {ELSE} "):
        own_folder(tmp_path / "theirs", "the state")
    assert not close_to_others(tmp_path / "theirs") and mode(tmp_path / "theirs") == 0o755


def test_what_others_can_exchange_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, folder = tmp_path / "key", tmp_path / "folder"
    key.touch(0o644)
    folder.mkdir()
    refuse_changeable(tmp_path / "no")
    for path in (key, folder):
        for bits, refused in ((0o644, False), (0o664, True), (0o646, True), (0o1777, path == key)):
            path.chmod(bits)
            if refused:
                with pytest.raises(InputError, match=f"can be changed by others .* chmod go-w {path}"):
                    refuse_changeable(path)
            else:
                refuse_changeable(path)
        path.chmod(0o700)
    if os.geteuid() == 0:
        of_another(monkeypatch)
        refuse_changeable(key)  # root's are believed by everybody
        os.chown(key, ELSE + 1, -1)
        with pytest.raises(InputError, match=f"belongs to another user .uid {ELSE + 1}."):
            refuse_changeable(key)


def test_a_strangers_folder_leads_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "inner").mkdir(parents=True)
    (folder / "within").symlink_to("inner")
    (tmp_path / "short").symlink_to(folder)
    refuse_links(folder)
    refuse_links(tmp_path / "short")  # whoever names it means what it leads to
    (folder / "inner" / "out").symlink_to("../..")
    with pytest.raises(InputError, match="out is a link that leads out of"):
        refuse_links(folder)
    (folder / "inner" / "out").unlink()
    (folder / "circle").symlink_to("circle")
    with pytest.raises(InputError, match="circle is a link that leads out of"):
        refuse_links(folder)
    (folder / "circle").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match="pipe is a pipe or a device"):
        refuse_links(folder)


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_a_device_is_no_file(kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()

    class Device:
        st_mode = kind | 0o600

    real = Path.lstat
    monkeypatch.setattr(files.Path, "lstat", lambda self: Device() if self.name == "file" else real(self))
    with pytest.raises(InputError, match="file is a pipe or a device"):
        refuse_links(tmp_path)
