"""Commands of ours as forks of a process that has imported everything: they need no seconds of a core to start.

    Preloaded.popen(command, ...)        as `subprocess.Popen`, for `python -m fedem_flwr.cli` and our SuperLink

What is forked carries out the same `main` as the program, with a process, a session, an environment and files of its
own; it is asked to end when whoever forked it has died. Other commands are started as ever. Tests of the programs' own
starts, and of who dies with whom, start them really.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

SUPERLINK = (sys.executable, "-m", "fedem_flwr.network.superlink")
_EVERYTHING = (
    "flwr.superlink.cli.flower_superlink",
    *(f"fedem_flwr.{name}" for name in ("cli.run", "client_app", "server_app", "network.node", "network.server")),
    "fedem_flwr.engine.fused.backend",  # and the compiler, which most of them would import
)
_MESSAGE = 1 << 20  # bytes at the most
_FILES = 16


def known(command: Sequence[str]) -> bool:
    """Whether it can be forked."""
    from fedem_flwr.network.processes import FEDEM

    return tuple(command[:3]) in (FEDEM, SUPERLINK)


class Forked:
    """What `subprocess.Popen` would be, without pipes."""

    def __init__(self, source: Preloaded, pid: int) -> None:
        self._source, self.pid = source, pid
        self.returncode: int | None = None
        self.stdin = self.stdout = self.stderr = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._source.ended(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Preloaded:
    """Asks the process that forks; it is started when the first command is, and ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._codes: dict[int, int] = {}

    def popen(
        self,
        command: Sequence[str],
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        env: dict[str, str] | None = None,
        cwd: str | Path | None = None,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = False,
        preexec_fn: Any = None,
    ) -> Any:
        """See `subprocess.Popen`; `preexec_fn` is left out of a fork, which ends with this process anyway."""
        command = [str(word) for word in command]
        if not known(command) or subprocess.PIPE in (stdin, stdout, stderr):
            return subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=env,
                cwd=cwd,
                pass_fds=tuple(pass_fds),
                start_new_session=start_new_session,
                preexec_fn=preexec_fn,  # noqa: PLW1509  # handed on
            )
        null = os.open(os.devnull, os.O_RDWR)
        try:
            out = _number(stdout, null, 1)
            files = [_number(stdin, null, 0), out, out if stderr == subprocess.STDOUT else _number(stderr, null, 2)]
            told = {
                "command": command,
                "environment": dict(os.environ if env is None else env),
                "folder": str(cwd or Path.cwd()),
                "session": start_new_session,
                "files": list(pass_fds),
            }
            with self._lock:
                asked = self._started()
                socket.send_fds(asked, [json.dumps(told).encode()], [*files, *pass_fds])
                while "pid" not in (said := _next(asked)):
                    self._hear(said)
            return Forked(self, said["pid"])
        finally:
            os.close(null)

    def ended(self, pid: int) -> int | None:
        """A fork's exit code; None while it runs."""
        with self._lock:
            while self._socket is not None and _readable(self._socket):
                self._hear(_next(self._socket))
            return self._codes.get(pid)

    def _hear(self, said: dict[str, Any]) -> None:
        self._codes[said["ended"]] = said["code"]

    def _started(self) -> socket.socket:
        if self._socket is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
                environment |= {"FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONUNBUFFERED": "1"}
                subprocess.Popen(
                    [sys.executable, __file__, str(theirs.fileno())], pass_fds=(theirs.fileno(),), env=environment
                )
        return self._socket


def _number(file: Any, null: int, own: int) -> int:
    """The number of a file as `subprocess` is told of it."""
    if file is None:
        return own
    return null if file == subprocess.DEVNULL else file if isinstance(file, int) else file.fileno()


def _readable(source: socket.socket) -> bool:
    look = select.poll()
    look.register(source, select.POLLIN)
    return bool(look.poll(0))


def _next(source: socket.socket) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(source.recv(_MESSAGE) or b'{"pid": -1}')
    if found.get("pid") == -1:
        raise RuntimeError("the process that forks has died")
    return found


# What follows is carried out by the process that forks.


def serve(asked: socket.socket) -> list[str]:
    """Fork whenever asked to; returns in the fork, with its command."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for those who are asked; a fork has its own again
    signal.set_wakeup_fd(wake)
    looked_at = select.poll()  # as `select` knows no numbers of files above 1,023
    for number in (asked.fileno(), woken):
        looked_at.register(number, select.POLLIN)
    while True:
        ready = [number for number, _ in looked_at.poll()]
        if woken in ready:
            with suppress(BlockingIOError):
                os.read(woken, 1024)
            _tell_who_ended(asked)
        if asked.fileno() in ready:
            message, files, *_ = socket.recv_fds(asked, _MESSAGE, _FILES)
            if not message:
                sys.exit(0)
            told = json.loads(message)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for number in (woken, wake, asked.detach()):
                    os.close(number)
                return _become(told, files)
            asked.send(json.dumps({"pid": pid}).encode())
            for number in files:
                os.close(number)


def _tell_who_ended(asked: socket.socket) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(ended[1])
            asked.send(json.dumps({"ended": ended[0], "code": code}).encode())


def _become(told: dict[str, Any], files: list[int]) -> list[str]:
    """In the fork: its session, folder, environment and files."""
    from fedem_flwr.network.processes import _die_with_parent

    if told["session"]:
        os.setsid()
    _die_with_parent()
    wanted = [0, 1, 2, *told["files"]]
    high = [os.dup(number) for number in files]
    while min(high) <= max(wanted):  # a copy must not stand where another one goes
        high = [os.dup(number) for number in high]
    for number, place in zip(high, wanted, strict=True):
        os.dup2(number, place, inheritable=True)
    for number in range(3, max(high) + 1):
        if number not in wanted:
            with suppress(OSError):
                os.close(number)
    os.chdir(told["folder"])
    os.environ.clear()
    os.environ.update(told["environment"])
    for folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
            if (starting := Path(folder, "sitecustomize.py")).exists():  # which Python imports when it starts
                runpy.run_path(str(starting))
    command: list[str] = told["command"]
    return command


def carry_out(command: list[str]) -> None:
    """What `python -m` would."""
    sys.argv = [command[2], *command[3:]]
    if tuple(command[:3]) == SUPERLINK:
        from fedem_flwr.network.superlink import main
    else:
        from fedem_flwr.cli import main
    main()


def _import_everything() -> None:
    for name in _EVERYTHING:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork that collects would write to, and so copy, all of it


if __name__ == "__main__":
    _import_everything()
    carry_out(serve(socket.socket(fileno=int(sys.argv[1]))))
