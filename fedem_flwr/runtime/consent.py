"""Whose configuration a run's directory holds: what one of a stranger may not do before somebody says that it may.

A directory may come from anybody. Its arrays and figures are data, which cannot do anything. Its configuration can: a
dotted path names code that is imported, `evaluation.cache_dir` a folder that is written to, `tracking.uri` a server
that is told of the run, a networked run starts processes with files of the directory, or shows keys to a SuperLink,
and a Ray cluster, whose machines take each other's code, is joined.
So a configuration that does such things is sealed when it is written, with a key of the account's, and one without that
seal asks for `--trust`.

    $XDG_STATE_HOME/fedem-flwr/runs.key, by default below ~/.local/state      128 random bits, mode 600
"""

from __future__ import annotations

import hashlib
import hmac
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedem_flwr.config import Config, build
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.nodes.secret import secret_of
from fedem_flwr.report.run_directory import CONFIG, RunDirectory

_WHAT = b"fedem-flwr run 1\n"  # what else the key may seal one day begins otherwise


def write_config(directory: RunDirectory, config: Config) -> None:
    """Store a run's configuration, as this account's own.

    Where the account has no place for its key, there is no seal, and going on with the run takes `--trust`.
    """
    text = config.to_toml()
    directory.write_config(text)
    if any(_wishes(tomllib.loads(text), resumes=True, processes=True)):
        with suppress(FedemError, OSError, RuntimeError):
            directory.write_seal(_seal(text))


def read_config(
    directory: RunDirectory, *, trusted: bool = False, resumes: bool = False, processes: bool = False
) -> Config:
    """A run's configuration, of whoever's making.

    Args:
        trusted: somebody has said that it may do what it wants.
        resumes: the run will go on, with all that this writes. processes: its own starting of processes included.

    Raises:
        InputError: it is missing or damaged, or wants what needs a word.
    """
    text = directory.read_config()
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{directory.path / CONFIG} is not valid TOML: {error}") from None
    wish = next(_wishes(tree, resumes=resumes, processes=processes), "")
    if wish and not trusted and not _is_own(directory, text):
        raise InputError(
            f"{directory.path / CONFIG} {wish}, and this account has not made that run here: look at the file, and say "
            "--trust (trust=True in Python) if you believe whoever has made it"
        )
    return build(tree, str(directory.path / CONFIG))


def _wishes(tree: Mapping[str, Any], *, resumes: bool, processes: bool) -> Iterator[str]:
    """What a configuration would do beyond its directory, in words."""
    sections = {name: keys for name, keys in tree.items() if isinstance(keys, Mapping)}
    for key in ("strategy", "client"):
        named = str(sections.get("method", {}).get(key, ""))
        if ":" in named:
            yield f"names code to import (method.{key} = '{named}')"
    folder = sections.get("evaluation", {}).get("cache_dir")
    if resumes and folder:
        yield f"names a folder to write to (evaluation.cache_dir = '{folder}')"
    tracking = sections.get("tracking", {})
    if resumes and tracking.get("to", "none") != "none":
        yield f"tells {tracking['to']} at '{tracking.get('uri') or 'its own place'}' of the run"
    run = sections.get("run", {})
    if processes and run.get("ray_address"):
        yield f"joins the Ray cluster at '{run['ray_address']}', which may run code here"
    if processes and run.get("runtime") == "network":
        where = sections.get("network", {}).get("superlink")
        yield f"shows keys to the SuperLink at '{where}'" if where else "starts processes with keys and data of its own"


def _is_own(directory: RunDirectory, text: str) -> bool:
    with suppress(FedemError, OSError, RuntimeError):
        if not _key_file().exists():
            return False
        return hmac.compare_digest(directory.read_seal().encode(), _seal(text).encode())
    return False


def _seal(text: str) -> str:
    return hmac.new(secret_of(_key_file()), _WHAT + text.encode(), hashlib.sha256).hexdigest()


def _key_file() -> Path:
    """Where the key is; RuntimeError where the account has no home."""
    root = os.environ.get("XDG_STATE_HOME")
    return (Path(root) if root else Path.home() / ".local" / "state") / "fedem-flwr" / "runs.key"
