"""A node's secret: 128 random bits that key its users' draws. It is on the node's disk and nowhere else."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from fedem_flwr.errors import FedemError
from fedem_flwr.files import close_to_others, flush_to_disk, private_folder

SECRET_FILE = "draws.key"
_BYTES = 16


def secret_of(path: Path) -> bytes:
    """The secret in a file of mode 600; made where there is none.

    Whoever comes first makes it, if several processes look for it at once.

    Raises:
        FedemError: the file cannot be written or read, or is not what was written.
    """
    try:
        if not path.exists():
            _make(path)
        close_to_others(path)
        secret = path.read_bytes()
    except OSError as error:
        raise FedemError(f"cannot keep the node's secret in {path}: {error.strerror}") from None
    if len(secret) != _BYTES:
        raise FedemError(
            f"{path} is damaged: restore it; or delete it, and what this node has uploaded until now tells its users' "
            "histories from the new decoys"
        )
    return secret


def _make(path: Path) -> None:
    private_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # nobody else may read it
    os.fchmod(handle, 0o600)  # whatever the umask is
    try:
        with open(handle, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
        flush_to_disk(Path(name))
        with suppress(FileExistsError):
            os.link(name, path)
        flush_to_disk(path.parent)
    finally:
        os.unlink(name)
