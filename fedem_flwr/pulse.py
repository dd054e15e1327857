"""Signs of life of long work: whoever waits for it hears that it goes on, and may end it by raising.

Work is begun by somebody who knows what it is for (a node, between two messages) and done far below, in loops that do
not. So the listener is part of the context that they run in, and of threads that they start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[], None]
Watcher = Callable[[str, int, int], None]  # what is done, how much of it, of how much
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def beat() -> None:
    """Something was done: a batch, a block. Costs nothing where nobody listens."""
    listener = _listener.get()
    if listener is not None:
        listener()


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Let a listener hear the beats of what runs inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(what: str, done: int, total: int) -> None:
    """Say how far a step of some length is, to whoever shows progress."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(what, done, total)


@contextmanager
def watched_by(watcher: Watcher | None) -> Iterator[None]:
    """Let a watcher hear what the steps inside the block `tell`; None: nobody."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)
