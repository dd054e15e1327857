"""Processes that this one starts: commands, logs, a watchful eye, and an end for all of them."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import private_folder, unlinked_private
from fedem_flwr.network.link import Address
from fedem_flwr.text import one_line

GRACE = 8.0  # seconds from SIGTERM to SIGKILL
START_SECONDS = 60.0  # until a SuperLink accepts connections
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_TAIL = 4000  # bytes of a log that are looked at for a reason
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # Flower's levels have some
_OWN_WORDS = "fedem: "  # what the last line of a command that failed begins with

FEDEM = (sys.executable, "-m", "fedem_flwr.cli")


@dataclass
class Child:
    """One process.

    Attributes:
        name: for people. command: what it is started with. log: where its output goes.
        environment: beside this process's own.
        starts: how often it was started.
        keeps: open files that it inherits.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None
    keeps: tuple[int, ...] = ()

    def start(self, *, outlive: bool = False) -> None:
        """Start it, or start it anew; it ends with this process, however that ends, unless it is to outlive it."""
        private_folder(self.log.parent)
        with open(self.log, "ab", opener=unlinked_private) as out:
            self.process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **process_environment(), **self.environment},
                pass_fds=self.keeps,
                start_new_session=True,  # an interrupt from the keyboard is ours to pass on
                preexec_fn=_die_with_parent if _LIBC and not outlive else None,  # noqa: PLW1509  # one call of the kernel
            )
        self.starts += 1

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def ended(self) -> int | None:
        """Its exit code, None while it runs."""
        return None if self.process is None else self.process.poll()

    def signal(self, number: int) -> None:
        """To it and whatever it has started."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def reason(self) -> str:
        """The last thing that it said."""
        return self.last_words(of_failure=True)

    def last_words(self, *, of_failure: bool) -> str:
        """See the function of that name."""
        return last_words(self.log, of_failure=of_failure, ours=tuple(self.command[: len(FEDEM)]) == FEDEM)


def stop_all(children: Sequence[Child], grace: float = GRACE) -> None:
    """End processes: asked first, then made to."""
    for child in children:
        if child.alive:
            child.signal(signal.SIGTERM)
            child.signal(signal.SIGCONT)  # one that is stopped could not hear it
    deadline = time.monotonic() + grace
    for child in children:
        if child.process is None:
            continue
        try:
            child.process.wait(timeout=max(0.05, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.signal(signal.SIGKILL)
            child.process.wait()
        child.signal(signal.SIGKILL)  # what it may have left behind


@contextmanager
def running(children: Sequence[Child]) -> Iterator[None]:
    """Let processes run inside the block; nothing is left behind, whatever happens there."""
    try:
        yield
    finally:
        with _uninterrupted():
            stop_all(children)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second interrupt must not cut the cleaning up short."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def process_environment() -> dict[str, str]:
    """What Flower's processes find in their environment."""
    here = str(Path(sys.executable).parent)  # where `flower-superlink` was installed, be it on the path or not
    path = os.pathsep.join([here, os.environ.get("PATH", "")])
    return {"PATH": path, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONUNBUFFERED": "1"}


def await_listening(child: Child, address: Address, seconds: float = START_SECONDS) -> None:
    """Wait until a process accepts connections.

    Raises:
        FedemError: it ended instead, or took too long.
    """
    deadline = time.monotonic() + seconds
    while not address.listening():
        if not child.alive:
            raise FedemError(f"the {child.name} did not start: {child.reason()} (log: {child.log})")
        if time.monotonic() > deadline:
            raise FedemError(
                f"the {child.name} does not listen at {address.place} after {seconds:.0f} s; see {child.log}"
            )
        time.sleep(0.05)


def free_port(wanted: int = 0, host: str = "127.0.0.1") -> int:
    """A port that nobody listens on, at an address of this machine.

    Raises:
        InputError: the wanted one is in use, or the address is not this machine's.
    """
    try:
        family, *_, place = socket.getaddrinfo(host, wanted, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            return int(probe.getsockname()[1])
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise InputError(
                f"'{host}' is no address of this machine ({error.strerror}): give another --host"
            ) from None
        raise InputError(f"port {wanted} cannot be used ({error.strerror}): give another with --port") from None


def require_linux() -> None:
    """Refuse to look after other processes where that is not possible.

    Raises:
        InputError: on any other system.
    """
    if sys.platform != "linux":
        raise InputError("starting and watching networked processes needs Linux; single nodes and servers do not")


def last_words(log: Path, *, of_failure: bool = False, ours: bool = True) -> str:
    """The last line of a log that says something: what a process of ours said when it failed, if it did.

    That begins its line. What others have said stands inside lines of the log, or is indented (see `SafeFormatter`).

    Args:
        of_failure: rather the last one that says what went wrong.
        ours: whether a command of ours wrote it, or Flower's, in whose log a line may begin as others please.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return "it left no log"
    said = [line for line in lines if line.strip() and not line[0].isspace()]
    own = [line for line in said if ours and line.startswith(_OWN_WORDS)]
    wrong = [line for line in said if of_failure and ("[Errno" in line or "error" in line.lower())]
    words = (own or wrong or said or ["it said nothing"])[-1]
    return one_line(_COLOUR.sub("", words).removeprefix(_OWN_WORDS if own else ""))


def wait_until(done: Callable[[], bool], seconds: float, pause: float = 0.1) -> bool:
    """Look until something holds; False if it does not in time."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def _die_with_parent() -> None:
    """In the child, before its program starts: be asked to end when the parent dies (Linux)."""
    assert _LIBC is not None
    _LIBC.prctl(_DEATH_SIGNAL, signal.SIGTERM)
