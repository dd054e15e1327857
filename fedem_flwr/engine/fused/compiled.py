"""Which functions are compiled, and where what was compiled is kept.

Compiling takes seconds, once: what comes of it is kept in the user's cache (below `$NUMBA_CACHE_DIR`, the compiler's
own setting, else `$XDG_CACHE_HOME`, else `~/.cache`: `fedem-flwr/compiled`), or where that cannot be written in a
folder of this account below the system's temporary one. The folder's name stands for the sources here and the
compiler's version, so that none is ever taken for another's; the processor's kind is in numba's own index. A cache
that cannot be read or written costs time, and nothing else. What was compiled ahead below `$NUMBA_CACHE_DIR`, and is
only to be read (as in the image for containers), is looked at first.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from numba.core import caching, config

from fedem_flwr.locking import in_turn


def _version() -> str:
    """Stands for the sources here, for those beside that have constants of theirs, and for what compiles them how."""
    digest = hashlib.blake2b(f"{numba.__version__} {config.BOUNDSCHECK}".encode(), digest_size=8)
    for file in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


_VERSION = _version()  # now: later they could be others than those that were loaded
_ROOT = 0  # its number
F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger("fedem.engine")
# Nothing is allocated, so no references are counted; and only entries are called by the interpreter: less to compile.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False, "_nrt": False}
_INNER: dict[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def inner(function: F) -> F:
    """Compile a function that others here call; it is compiled with them, and kept with them."""
    found: F = numba.njit(**_INNER)(function)
    return found


def entry(function: F) -> F:
    """Compile a function that the interpreter calls, when it is first called, or take it from the cache."""
    made: F = _Entry(function)  # type: ignore[assignment]
    return made


def _kept_in(folder: Path, function: Callable[..., Any]) -> Any:
    """The compiler's cache of a function, in one folder wherever the sources lie, as each version of a Flower app does.

    Raises:
        AttributeError: this version of the compiler keeps it in another way.
    """

    class Locator(caching._CacheLocator):  # type: ignore[misc]
        def get_cache_path(self) -> str:
            return str(folder)

        def get_source_stamp(self) -> str:
            return _VERSION

        def get_disambiguator(self) -> str:
            return str(function.__code__.co_firstlineno)

        @classmethod
        def from_function(cls, function: Callable[..., Any], file: str) -> Locator:
            return cls()

    class Located(caching.CompileResultCacheImpl):  # type: ignore[misc]
        _locator_classes = (Locator,)

    class Cache(caching.FunctionCache):  # type: ignore[misc]
        _impl_class = Located

    return Cache(function)


class _Caches:
    """The compiler's caches of a function: `ahead` is read, `own` is written, too; either may be None."""

    def __init__(self, name: str, ahead: Any, own: Any) -> None:
        self.name, self.ahead, self.own = name, ahead, own
        self.cache_path = None if own is None else own.cache_path  # the compiler asks for it

    def load_overload(self, kinds: Any, target: Any) -> Any:
        """What was compiled for these kinds of arguments; else None, and a line: the compiler is at work next."""
        found = None
        if self.ahead is not None:
            try:
                found = self.ahead.load_overload(kinds, target)
            except Exception as problem:  # damaged; one's own is left
                log.warning("what was compiled of '%s' ahead cannot be read (%s)", self.name, problem)
        if found is None and self.own is not None:
            found = self.own.load_overload(kinds, target)
        if found is None:
            log.warning("compiling '%s' for this machine: once, ten seconds to a minute", self.name)
        return found

    def save_overload(self, kinds: Any, result: Any) -> None:
        """Keep it, where there is a place."""
        if self.own is not None:
            self.own.save_overload(kinds, result)


class _Entry:
    """A function that is compiled, or loaded, for the kinds of arguments that it is first called with."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.lock = function, threading.Lock()
        self.folder: Path | None = None
        self.compiled: Any = None
        self.met: set[Any] = set()  # of what kinds of arguments it is there

    def __call__(self, *args: Any) -> Any:
        if (looks := _looks(args)) not in self.met:  # the compiler's own look at them takes many times as long
            with self.lock:
                self._prepare(tuple(map(numba.typeof, args)))
                self.met.add(looks)
        return self.compiled(*args)

    def _prepare(self, kinds: tuple[Any, ...]) -> None:
        name = self.function.__name__
        if self.compiled is None:
            self.folder = folder_for_compiled()
            self.compiled = self._made()
        if kinds in self.compiled.overloads:
            return
        try:
            # Of several processes that want it at once, one compiles; to the others it is there then.
            with nullcontext() if self.folder is None else in_turn(self.folder / f"{name}.lock"):
                self.compiled.compile(kinds)
        except Exception as problem:  # whatever a damaged, full or forbidden folder leads to
            log.warning("what was compiled of '%s' cannot be kept or read (%s): compiling it anew", name, problem)
            for file in self._files():
                with suppress(OSError):
                    file.unlink()
            self.folder = None
            self.compiled = numba.njit(**_OPTIONS)(self.function)
            self.compiled.compile(kinds)

    def _files(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.rglob(f"*.{self.function.__name__}-*.nb?"))

    def _made(self) -> Any:
        made, places = numba.njit(**_OPTIONS)(self.function), (folder_compiled_ahead(), self.folder)
        caches: list[Any] = [None, None]
        try:
            caches = [None if folder is None else _kept_in(folder, self.function) for folder in places]
        except AttributeError as unlike:
            log.warning(
                "this numba keeps what it compiles in a way of its own (%s): each process compiles anew", unlike
            )
            self.folder = None
        made._cache = _Caches(self.function.__name__, *caches)
        return made


def _looks(value: Any) -> Any:
    """What the compiler's type of a value depends on."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.ndim, value.flags.num
    return (type(value), *map(_looks, value)) if isinstance(value, tuple) else type(value)


def folder_for_compiled() -> Path | None:
    """Where what is compiled is kept: a folder that exists and is this account's alone, or None.

    What lies there is executed, so nobody else may have made it.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    name = Path("compiled") / _VERSION
    places = [Path(tempfile.gettempdir()) / f"fedem-flwr-{_account()}"]
    with suppress(RuntimeError):  # no home
        places.insert(0, (Path(root) if root else Path.home() / ".cache") / "fedem-flwr")
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        places.insert(0, Path(chosen) / "fedem-flwr")
    for place in places:
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            (place / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            if all(_own(folder) for folder in (place, place / "compiled", place / name)):
                return place / name
        except OSError:
            continue
    return None


def folder_compiled_ahead() -> Path | None:
    """The one below `$NUMBA_CACHE_DIR` for these sources that root, or this account, has filled, and nobody else can.

    Folders and files are looked at from `$NUMBA_CACHE_DIR` on; who may write above it could put another in its place.

    None where there is none, and where it is what `folder_for_compiled` finds.
    """
    if not (chosen := os.environ.get("NUMBA_CACHE_DIR")):
        return None
    place = Path(chosen) / "fedem-flwr"
    folders = (Path(chosen), place, place / "compiled", place / "compiled" / _VERSION)
    with suppress(OSError):
        closed = all(_closed(folder, _ROOT, _account()) for folder in folders)
        if closed and not all(map(_own, folders[1:])):
            files = folders[-1].glob("*.nb?")  # what is in them is executed
            return folders[-1] if all(_closed(file, _ROOT, _account(), kind=stat.S_ISREG) for file in files) else None
    return None


def _own(folder: Path) -> bool:
    return _closed(folder, _account()) and os.access(folder, os.W_OK)


def _closed(path: Path, *accounts: int, kind: Callable[[int], bool] = stat.S_ISDIR) -> bool:
    """Whether it is a folder, or what `kind` says, of one of the accounts, that others cannot write to."""
    found = path.lstat()
    ours = not hasattr(os, "getuid") or found.st_uid in accounts
    return kind(found.st_mode) and ours and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _account() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0
