"""A relay between nodes and a SuperLink: late, cutting connections, keeping what passes, where that is ordered."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

_CHUNK = 1 << 16


class Relay:
    """Passes bytes on between nodes and the SuperLink; late, or not for long, where that is ordered.

    Attributes:
        delay: seconds that every piece waits, either way.
        cuts: every so many-th connection is reset after its first bytes; 0: none.
    """

    def __init__(self, host: str, target: tuple[str, int]) -> None:
        self._listener = socket.create_server((host, 0))
        self._target = target
        self.place = f"{host}:{self._listener.getsockname()[1]}"
        self.delay, self.cuts, self._count = 0.0, 0, 0
        self._open: set[socket.socket] = set()
        self.record = False
        self.passed: list[tuple[bytearray, bytearray]] = []  # of each connection: to the SuperLink, and back
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._count += 1
            doomed = bool(self.cuts) and self._count % self.cuts == 0
            try:
                far = socket.create_connection(self._target, timeout=5)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            self._open |= {near, far}
            both = (bytearray(), bytearray())
            if self.record:
                self.passed.append(both)
            for one, other, seen in ((near, far, both[0]), (far, near, both[1])):
                threading.Thread(target=self._pass, args=(one, other, doomed, seen), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, doomed: bool, seen: bytearray) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                if self.delay:
                    time.sleep(self.delay)
                if self.record:
                    seen += data
                sink.sendall(data)
                passed += len(data)
                if doomed and passed > 4000:
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            self._open.discard(end)

    def reset_all(self) -> None:
        """Break what is open, so that new orders hold at once."""
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
