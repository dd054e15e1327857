"""One writer at a time: a lock of the kernel's on a file, which ends with the process that holds it, however that ends.

The file says who holds it. It may stay behind where a process was killed, and means nothing then: what counts is the
lock, and that is gone. Libraries for locks have none that a process hands on to one it starts, as `fedem run` does to
the server of a networked run; so `flock` is called here.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from fedem_flwr.errors import InputError
from fedem_flwr.files import unlinked
from fedem_flwr.text import one_line

RUN_LOCK = "run.lock"  # in a run's directory, while something writes there
WAIT = "wait until it has ended, or stop it"
WRITABLE = "give a folder that you may write to"
_HANDED_ON = "FEDEM_LOCK"  # environment: the number of the file that the parent holds locked
_PATIENCE = 15.0  # seconds for what a dead process has started, which ends with it, if not at once
_PAUSE = 0.05
_TRIES = 20
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

log = logging.getLogger("fedem.locking")


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    pid: int
    host: str
    since: str

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        return cls(os.getpid(), socket.gethostname(), datetime.now().astimezone().isoformat(" ", "seconds"))

    @classmethod
    def written_in(cls, handle: int) -> Holder | None:
        """What a locked file says; None where nothing is written yet, or something else."""
        try:
            told = json.loads(os.pread(handle, 4096, 0))
            return cls(int(told["pid"]), str(told["host"]), str(told["since"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def gone(self) -> bool:
        """Whether it was a process of this machine that is no more."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
        return False

    def __str__(self) -> str:
        return one_line(f"process {self.pid} on {self.host}, since {self.since}")


class Lock:
    """A lock that is held, until the block ends or the process does."""

    def __init__(self, file: Path, handle: int, *, handed_on: bool = False) -> None:
        self._file = file
        self._handle = handle
        self._handed_on = handed_on

    @classmethod
    def take(cls, file: Path, subject: str, mend: str = WAIT, elsewhere: str = WRITABLE) -> Lock:
        """Take a lock, or say who has it. The folder of the file is made.

        Args:
            subject: what is written to, in messages.
            mend: what somebody can do who does not get it. elsewhere: what, where nothing can be written.

        Raises:
            InputError: another process has it, or the file cannot be written.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            handle = _opened(file, subject, elsewhere)
            if _locks(handle, file):
                if _is_still(handle, file):
                    os.truncate(handle, 0)
                    os.pwrite(handle, json.dumps(asdict(Holder.here())).encode(), 0)
                    return cls(file, handle)
                os.close(handle)  # who had it has given it back, and deleted the file, just now
                continue
            holder = _holder(handle)
            os.close(handle)
            if holder is None or not holder.gone or time.monotonic() > deadline:
                raise InputError(f"{subject} is in use by {holder or 'another process'}: {mend}; nothing was changed")
            time.sleep(_PAUSE)

    @classmethod
    def of_parent_or(cls, file: Path, subject: str) -> Lock:
        """The lock that the process holds which has started this one, and else one of our own.

        Raises:
            InputError: see `take`.
        """
        told = os.environ.pop(_HANDED_ON, "")
        with suppress(OSError, ValueError):
            handle = int(told)
            if _is_still(handle, file):
                os.set_inheritable(handle, False)
                return cls(file, handle, handed_on=True)
        return cls.take(file, subject)

    def hand_on(self) -> tuple[dict[str, str], tuple[int, ...]]:
        """What a process that is started needs to hold the lock, too: environment, and files that stay open."""
        return {_HANDED_ON: str(self._handle)}, (self._handle,)

    def release(self) -> None:
        """Give it back; the file is deleted by whoever took the lock."""
        handle, self._handle = self._handle, -1
        if handle < 0:
            return
        if not self._handed_on:
            with suppress(OSError):
                if _is_still(handle, self._file):
                    self._file.unlink()  # before the lock ends: nobody else's file is deleted
        os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_run(folder: Path, mend: str = WAIT, elsewhere: str = WRITABLE) -> Lock:
    """Hold a run's directory: one process at a time writes there.

    Raises:
        InputError: see `Lock.take`.
    """
    return Lock.take(folder / RUN_LOCK, f"the run directory {folder}", mend, elsewhere)


def run_of_parent(folder: Path) -> Lock:
    """The same, of a process whose parent may hold the directory already and have handed that on.

    Raises:
        InputError: see `Lock.take`.
    """
    return Lock.of_parent_or(folder / RUN_LOCK, f"the run directory {folder}")


def lock_beside(folder: Path) -> Lock:
    """Hold a folder that is replaced as a whole; the file lies beside it.

    Raises:
        InputError: see `Lock.take`.
    """
    whole = folder.absolute()
    return Lock.take(whole.with_name(f".{whole.name}.lock"), str(folder))


@contextmanager
def in_turn(file: Path) -> Iterator[None]:
    """Wait for the others who do the same; where the file system keeps no locks, nobody waits.

    Raises:
        OSError: the file cannot be written.
    """
    handle = unlinked(str(file), os.O_RDWR | os.O_CREAT)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _opened(file: Path, subject: str, elsewhere: str) -> int:
    try:
        for _ in range(_TRIES):
            file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the folder was deleted just now by who had made it
                return unlinked(str(file), os.O_RDWR | os.O_CREAT)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    except OSError as error:
        raise InputError(f"cannot write {subject}: {error.strerror}; {elsewhere}") from error


def _locks(handle: int, file: Path) -> bool:
    """Whether the lock could be had."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            return False
        log.warning(
            "the file system of %s keeps no locks (%s): see to it that nothing else writes there",
            file.parent,
            error.strerror,
        )
    return True


def _is_still(handle: int, file: Path) -> bool:
    """Whether a name still is that of an open file."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _holder(handle: int) -> Holder | None:
    """Who holds it; whoever has just taken it needs a moment to write that down."""
    for _ in range(_TRIES):
        if holder := Holder.written_in(handle):
            return holder
        time.sleep(_PAUSE)
    return None


def born(pid: int) -> str | None:
    """When a process started, in the kernel's words; None if it does not run (or is a zombie), or nobody can say.

    With it a process is told from a later one that was given its number.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
