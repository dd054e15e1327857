"""Fetch one file over HTTP so that it is either whole and verified at its place, or not there at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, Final

from fedem_flwr.errors import InputError
from fedem_flwr.files import unlinked, write_atomically

Progress = Callable[[int, int | None], None]
"""Called with (bytes so far, bytes in all or None where the server does not say)."""

_BLOCK_BYTES: Final = 1 << 18
_PERMANENT: Final = range(400, 500)  # HTTP answers that trying again will not change
_WORTH_RETRYING: Final = {408, 416, 429}
_LARGEST_MEMBER_BYTES: Final = 4 << 30


class _Interrupted(Exception):
    """One attempt failed in a way that another attempt may mend."""


def download(
    url: str,
    target: Path,
    *,
    checksum: str | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
    attempts: int = 3,
    pause_seconds: float = 0.5,
) -> str:
    """Download `url` to `target`, through ``target.part``; a broken transfer is resumed with a Range request.

    Also one that an earlier process left: where no checksum can prove the result, only from a server that says which
    version of the file a part is of (ETag or Last-Modified, kept beside the part), and that it still is the same.

    Args:
        url: http or https address.
        target: where the file goes; one that is there (put by hand, perhaps) and matches is taken.
        checksum: "md5:<hex>" or "sha256:<hex>" of the whole file, or None where none is published.
        progress: told of every block.
        timeout: seconds without a byte before an attempt is given up.
        attempts: how often to try in all.
        pause_seconds: wait before the second attempt; doubles with each further one.

    Returns:
        The file's sha256, in hex.

    Raises:
        InputError: no network, no such file, a transfer that stays truncated, or a wrong checksum.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(f"cannot download '{url}': only http and https addresses are supported")
    by_hand = f"fetch it by hand and put it at {target}"
    if target.is_file():
        fault = None if checksum is None else checksum_mismatch(target, checksum)
        if fault is None:
            return file_sha256(target)
        by_hand += f" (the file there now is another: {fault})"
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if checksum is None and not _version_file(part).is_file():
            part.unlink(missing_ok=True)
        _transfer(url, part, progress, timeout, attempts, pause_seconds, by_hand)
    except OSError as error:
        raise InputError(
            f"cannot save {url} as {part} ({error.strerror or error}); check disk and permissions"
        ) from None
    fault = None if checksum is None else checksum_mismatch(part, checksum)
    if fault is not None:
        part.unlink()
        _version_file(part).unlink(missing_ok=True)
        raise InputError(f"{url}: wrong checksum, {fault}; the file changed or was damaged on its way: {by_hand}")
    seen = file_sha256(part)
    _move_into_place(part, target)
    _version_file(part).unlink(missing_ok=True)
    return seen


def _transfer(
    url: str, part: Path, progress: Progress | None, timeout: float, attempts: int, pause: float, by_hand: str
) -> None:
    """Fill `part` completely, in at most `attempts` attempts."""
    reason = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            return _attempt(url, part, progress, timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _PERMANENT and error.code not in _WORTH_RETRYING:
                raise InputError(f"cannot download {url} (HTTP {error.code} {error.reason}); {by_hand}") from None
            reason = f"HTTP {error.code} {error.reason}"
        except (
            urllib.error.URLError,
            TimeoutError,
            ConnectionError,
            http.client.HTTPException,
            _Interrupted,
        ) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
    raise InputError(f"cannot download {url} ({reason}, tried {attempts} times); {by_hand}")


def _attempt(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    have = part.stat().st_size if part.is_file() else 0
    # "identity" keeps a server from compressing on the fly, which would make lengths and ranges meaningless
    request = urllib.request.Request(url, headers={"User-Agent": "fedem-flwr", "Accept-Encoding": "identity"})
    version = _version_file(part)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if version.is_file():
            request.add_header("If-Range", version.read_text(encoding="ascii", errors="replace").strip())
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        error.close()
        if error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
            return  # the part was complete already
        part.unlink()
        raise _Interrupted("the server has no such range") from None
    with response:
        start = _range_start(response.headers.get("Content-Range")) if response.status == 206 else 0
        if start not in (0, have):
            part.unlink()
            raise _Interrupted("the server answered with another range than asked for")
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        _require_room(part.parent, int(length or 0), f"{url} has")
        if not start:
            _note_version(version, response.headers)
        with open(part, "ab" if start else "wb", opener=unlinked) as sink:
            _copy(response, sink, start, total, progress)


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _note_version(file: Path, headers: Message) -> None:
    """Keep what tells a file's versions apart; a weak ETag does not."""
    told = [headers.get("ETag"), headers.get("Last-Modified")]
    strong = next((one for one in told if one and not one.startswith("W/") and one.isascii()), None)
    if strong is None:
        file.unlink(missing_ok=True)
    else:
        write_atomically(file, strong + "\n")


def _range_start(content_range: str | None) -> int:
    match = re.match(r"bytes (\d+)-", content_range or "")
    return int(match.group(1)) if match else -1


def _copy(source: IO[bytes], sink: IO[bytes], done: int, total: int | None, progress: Progress | None) -> None:
    """Copy to the end of the stream; what arrived is on disk even if the transfer breaks."""
    try:
        while block := source.read(_BLOCK_BYTES):
            sink.write(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    finally:
        sink.flush()
        os.fsync(sink.fileno())
    if total is not None and done != total:
        raise _Interrupted(f"truncated: {done} of {total} bytes")


def file_sha256(path: Path) -> str:
    """The file's sha256 in hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_mismatch(path: Path, checksum: str) -> str | None:
    """None where the file has the checksum, else "expected ..., found ..."."""
    kind, _, expected = checksum.partition(":")
    if kind not in ("md5", "sha256") or not expected:
        raise ValueError(f"checksum must be md5:<hex> or sha256:<hex>, not {checksum!r}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    return None if found == expected.lower() else f"expected {kind} {expected}, found {found}"


def _move_into_place(part: Path, target: Path) -> None:
    """Atomic: a reader sees no file or the whole file, also after a power cut."""
    os.replace(part, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def extract_member(archive: Path, member: str, folder: Path) -> Path:
    """Unpack one file of a zip archive into `folder`, under its base name; never anywhere else.

    Args:
        archive: the zip file.
        member: the name inside the archive; failing that, a sole member with the same base name is taken.
        folder: where the file goes; created.

    Raises:
        InputError: not a zip, no such member, a name that points outside the folder, or a damaged member.
    """
    name = PurePosixPath(member.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or not name.name or ":" in name.parts[0]:
        raise InputError(f"{archive}: refusing member '{member}': its name points outside the archive's folder")
    target = folder / name.name
    part = target.with_name(target.name + ".part")
    try:
        with zipfile.ZipFile(archive) as zipped:
            info = zipped.getinfo(_member_name(archive, zipped.namelist(), member))
            if info.file_size > _LARGEST_MEMBER_BYTES:
                raise InputError(f"{archive}: '{member}' unpacks to {info.file_size} bytes; that is no rating file")
            folder.mkdir(parents=True, exist_ok=True)
            _require_room(folder, info.file_size, f"{archive}: '{member}' unpacks to")
            with zipped.open(info) as source, open(part, "wb", opener=unlinked) as sink:
                shutil.copyfileobj(source, sink, _BLOCK_BYTES)
                sink.flush()
                os.fsync(sink.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{archive}: damaged or not a zip archive ({error}); delete it and fetch it again") from None
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{archive}: cannot unpack into {folder} ({error.strerror or error})") from None
    _move_into_place(part, target)
    return target


def _require_room(folder: Path, size: int, what: str) -> None:
    """Raise InputError where a folder's disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InputError(
            f"{what} {size / 1e6:,.0f} MB, and {folder} has {free / 1e6:,.0f} MB left: make room or name another"
        )


def _member_name(archive: Path, names: list[str], member: str) -> str:
    if member in names:
        return member
    same_base = [name for name in names if name.split("/")[-1] == PurePosixPath(member).name]
    if len(same_base) != 1:
        raise InputError(f"{archive}: no '{member}' in the archive; it holds {', '.join(names[:5]) or 'nothing'}")
    return same_base[0]
