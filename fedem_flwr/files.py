"""Files that are there in full or not at all, whatever happens to the process or the machine; and files for one's own.

Private data (interactions, private state, keys, what crosses a SuperLink) lie in folders of mode 700 and files of mode
600, whatever the umask is. Nothing is written through a symbolic link that somebody may have put in a file's place.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fedem_flwr.errors import FedemError, InputError

_OTHERS = 0o077
_FILE, _FOLDER = 0o600, 0o700

log = logging.getLogger("fedem.files")


def write_atomically(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Replace ``path`` by a text, or bytes, so that a reader, or a crash, finds the old file or the new one whole.

    A link in the file's place is replaced, and what it leads to stays as it is. Who could not read the old file cannot
    read the new one.

    Args:
        private: for nobody else's eyes.

    Raises:
        FedemError: the file cannot be written (permissions, disk full).
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(new_file(temporary, _FILE if private else _mode_of(path)), "wb") as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        flush_to_disk(path.parent)  # the name: what older files say may be deleted next
    except OSError as error:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise FedemError(f"cannot write {path}: {error.strerror}; free space or choose another --out") from error


def _mode_of(path: Path) -> int:
    """What a file's successor may be at most: as open as it is, where it is one."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return 0o666
    return stat.S_IMODE(mode) & 0o666 if stat.S_ISREG(mode) else 0o666


def new_file(path: Path, mode: int = 0o666) -> int:
    """A descriptor to write a file that was not there, no link nor anything else; its owner may read it, too.

    Args:
        mode: at most; the umask takes from it what is others'.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    _let_owner(handle, _FILE)
    return handle


def unlinked(path: str, flags: int) -> int:
    """An opener for `open` that refuses links, and pipes and devices.

    Raises:
        OSError: it is one, or it cannot be opened.
    """
    return _open_plain(path, flags, 0o666)


def unlinked_private(path: str, flags: int) -> int:
    """The same; a file that it makes is for nobody else's eyes."""
    return _open_plain(path, flags, _FILE)


def _open_plain(path: str, flags: int, mode: int) -> int:
    try:  # not blocking: a pipe would let us wait for its other end
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, and nothing is written through one", path) from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no ordinary file", path)
    os.set_blocking(handle, True)
    with suppress(PermissionError):  # a file of somebody else's that we may write
        _let_owner(handle, _FILE)
    return handle


def _let_owner(handle: int, mode: int) -> None:
    """Give the owner what a strange umask took."""
    now = stat.S_IMODE(os.fstat(handle).st_mode)
    if now & mode != mode:
        os.fchmod(handle, now | mode)


def private_folder(path: Path) -> Path:
    """Make a folder that nobody else can enter, and those that are missing on the way; what is there stays as it is."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=_FOLDER, exist_ok=True)
        each.chmod(_FOLDER)  # whatever the umask is
    return path


def own_folder(path: Path, what: str) -> Path:
    """The same, and one that is there is closed to others; they may not own it.

    Args:
        what: what the folder is called in messages.

    Raises:
        InputError: it is somebody else's, who could read and change what lies in it. OSError: it cannot be made.
    """
    owner = private_folder(path).stat().st_uid
    if owner != os.geteuid():
        raise InputError(
            f"{what} {path} belongs to another user (uid {owner}), who can read and change what lies in it: give a "
            f"folder of your own, or take this one over with chown -R {os.geteuid()} {quoted(path)}"
        )
    close_to_others(path.resolve())
    return path


def close_to_others(path: Path) -> bool:
    """Close a folder, or a file, that others may enter or read, with all that lies in it; says so.

    Returns:
        whether that was done: not where it was closed, is not there, is somebody else's, or cannot be changed.
    """
    try:
        info = path.lstat()
    except OSError:
        return False
    if info.st_uid != os.geteuid() or not info.st_mode & _OTHERS or stat.S_ISLNK(info.st_mode):
        return False
    close_all(path)
    closed = not path.lstat().st_mode & _OTHERS
    said = "it is closed now" if closed else "it cannot be changed, so see to it that they cannot come there"
    log.warning("%s was open to other users (mode %o): %s", path, stat.S_IMODE(info.st_mode), said)
    return closed


def close_all(path: Path) -> None:
    """Make a folder and all that lies in it, or a file, its owner's and nobody else's; links are left alone."""
    for each in _below(path):
        with suppress(OSError):  # somebody else's, or gone meanwhile
            handle = os.open(each, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                mode = os.fstat(handle).st_mode
                os.fchmod(handle, _FOLDER if stat.S_ISDIR(mode) else stat.S_IMODE(mode) & 0o100 | _FILE)
            finally:
                os.close(handle)


def _below(path: Path) -> Iterator[str]:
    """A path, then what lies in it."""
    yield str(path)
    for folder, folders, names in os.walk(path):
        yield from (os.path.join(folder, name) for name in (*folders, *names))


def refuse_changeable(path: Path) -> None:
    """Refuse what is to be believed (a certificate, a public key, a roster) where other users could put another there.

    Raises:
        InputError: they could. A path that is not there is none of theirs.
    """
    try:
        info = path.stat()
    except OSError:
        return
    if info.st_uid not in (0, os.geteuid()):
        raise InputError(f"{path} belongs to another user (uid {info.st_uid}), who can change it: take a copy")
    sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX  # others cannot replace what is not theirs
    if info.st_mode & 0o022 and not sticky:
        mode = stat.S_IMODE(info.st_mode)
        raise InputError(f"{path} can be changed by others (mode {mode:o}): chmod go-w {quoted(path)}")


def refuse_links(folder: Path) -> None:
    """Refuse a folder, of a stranger's making perhaps, with links out of it, or what is no file; else all lies in it.

    Raises:
        InputError: a link leads elsewhere, or something is a pipe or a device.
    """
    inside = folder.resolve()
    for path in map(Path, _below(folder)):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:  # of a run that goes on meanwhile
            continue
        if stat.S_ISLNK(mode):
            if not _leads(path).is_relative_to(inside):
                raise InputError(f"{path} is a link that leads out of {folder}: put what it means in its place")
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise InputError(f"{path} is a pipe or a device, which no folder of ours holds: remove it")


def _leads(link: Path) -> Path:
    """Where a link leads in the end; to the root where it leads in a circle."""
    try:
        return link.resolve()
    except (OSError, RuntimeError):
        return Path(link.absolute().anchor)


def remove_if_empty(folder: Path) -> None:
    """Delete a folder unless there is something in it, or it cannot be deleted."""
    with suppress(OSError):
        folder.rmdir()


def quoted(path: Path | str) -> str:
    """A path as a word of a shell's command line, for commands that a message advises."""
    return shlex.quote(str(path))


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
