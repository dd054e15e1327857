"""Which functions are compiled, and where what was compiled is kept.

Compiling takes seconds, once: what comes of it is kept in the user's cache (`$XDG_CACHE_HOME/fedem-flwr/compiled`, else
below `~/.cache`), or where that cannot be written in a folder of this account below the system's temporary one. The
folder's name stands for the sources here and the compiler's version, so that none is ever taken for another's; the
processor's kind is in numba's own index. A cache that cannot be read or written costs time, and nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.caching import NullCache

F = TypeVar("F", bound=Callable[..., Any])

_settings: Any = numba.config
log = logging.getLogger("fedem.engine")
# Nothing is allocated, so nothing is counted: that halves what the compiler has to do.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False, "_nrt": False}
_LONG = 2.0  # seconds
_PRIVATE = 0o077  # what others may do with a folder: nothing


def inner(function: F) -> F:
    """Compile a function that others here call; it is compiled with them, and kept with them."""
    found: F = numba.njit(**_OPTIONS)(function)
    return found


def entry(function: F) -> F:
    """Compile a function that the interpreter calls, when it is first called, or take it from the cache."""
    made: F = _Entry(function)  # type: ignore[assignment]
    return made


class _Entry:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.lock = function, threading.Lock()
        self.compiled: Any = None

    def __call__(self, *args: Any) -> Any:
        found = self.compiled
        if found is None or not found.overloads.get(kinds := tuple(map(numba.typeof, args))):
            with self.lock:
                found = self.compiled = self.compiled or _kept(self.function)
                kinds = tuple(map(numba.typeof, args))
                if kinds not in found.overloads:
                    self._prepare(found, kinds)
        return found(*args)

    def _prepare(self, found: Any, kinds: tuple[Any, ...]) -> None:
        began, name = time.monotonic(), self.function.__name__
        try:
            found.compile(kinds)
        except Exception as problem:  # whatever a damaged, full or forbidden folder leads to
            log.warning("the cache of compiled functions is of no use (%s): compiling '%s' anew", problem, name)
            found._cache = NullCache()
            found.compile(kinds)
        if (seconds := time.monotonic() - began) > _LONG and not found.stats.cache_hits:
            log.info("compiled '%s' for this machine in %.0f s", name, seconds)


def _made(function: Callable[..., Any], **more: bool) -> Any:
    return numba.njit(**_OPTIONS, **more)(function)


def _kept(function: Callable[..., Any]) -> Any:
    """A function that looks for itself in the cache before it is compiled."""
    folder, before = folder_for_compiled(), _settings.CACHE_DIR
    if folder is None:
        return _made(function)
    try:
        _settings.CACHE_DIR = str(folder)  # read while the function is made
        return _made(function, cache=True)
    finally:
        _settings.CACHE_DIR = before


def folder_for_compiled() -> Path | None:
    """Where what is compiled is kept: a folder that exists and is this account's alone, or None.

    What lies there is executed, so nobody else may have made it.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    name = Path("compiled") / _version()
    account = os.getuid() if hasattr(os, "getuid") else 0
    places = [Path(tempfile.gettempdir()) / f"fedem-flwr-{account}"]
    with suppress(RuntimeError):  # no home
        places.insert(0, (Path(root) if root else Path.home() / ".cache") / "fedem-flwr")
    for place in places:
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            (place / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            if all(_own(folder) for folder in (place, place / "compiled", place / name)):
                return place / name
        except OSError:
            continue
    return None


def _own(folder: Path) -> bool:
    found = folder.lstat()
    ours = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    writable_by_others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and ours and not writable_by_others and os.access(folder, os.W_OK)


def _version() -> str:
    """Stands for the sources of this folder, and for what compiles them."""
    digest = hashlib.blake2b(numba.__version__.encode(), digest_size=8)
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
