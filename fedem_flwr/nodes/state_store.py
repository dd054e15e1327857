"""What a node keeps between rounds: named arrays per round, on disk.

A node's state never travels in messages. It is stored under the round after which it was so, and asked for in
the same way: a node that sat out some rounds finds the state of the last one it took part in, and a round
that is repeated (after a lost reply, or on resuming) starts from the state that it started from the first
time.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import flush_to_disk, private_folder

_NODE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_STATE_FILE = re.compile(r"round-(\d{8})\.safetensors")
_TEMPORARY_FILE = re.compile(r"round-(\d{8})\..*\.tmp")
_NUMPY_TYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "F16": np.float16,
    "U32": np.uint32, "I32": np.int32, "F32": np.float32, "U64": np.uint64, "I64": np.int64,
    "F64": np.float64, "C64": np.complex64,
}  # fmt: skip


class DiskStateStore:
    """One directory a node, one safetensors file a round; a file is there in full or not at all.

    Args:
        directory: made when first written to.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, node: str, round: int) -> dict[str, np.ndarray] | None:
        """The state as it was after ``round``: that of the latest round up to it; None where there is none.

        The arrays are mapped from the file, not read: pages come in when touched. They may be written to;
        that changes them in memory only.

        Raises:
            FedemError: the file is not what was written.
        """
        directory = self._node_directory(node)
        upto = [stored for stored in _numbers(directory, _STATE_FILE) if stored <= round]
        return _map_arrays(directory / _file_name(max(upto))) if upto else None

    def holds(self, node: str, round: int) -> bool:
        """Whether a state was stored after that very round."""
        return round in _numbers(self._node_directory(node), _STATE_FILE)

    def save(self, node: str, round: int, arrays: Mapping[str, np.ndarray], *, flush: bool = True) -> None:
        """Store the state after ``round``, in place of what was stored for that round before.

        Args:
            flush: whether on return the state survives a crash of the machine, and not only of processes.

        Raises:
            FedemError: it cannot be written (a full disk, missing rights); what was stored before is
                untouched.
        """
        directory = self._node_directory(node)
        # safetensors writes the memory behind an array as it lies, so it has to lie in C order
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        shaped = {name: array.reshape(arrays[name].shape) for name, array in contiguous.items()}
        try:
            _make_directory(directory)
            _write_atomically(directory / _file_name(round), shaped, flush=flush)
        except (OSError, SafetensorError) as error:
            raise FedemError(
                f"cannot store the state of {node} after round {round} in {directory}: {_reason(error)}; "
                "free some space or choose another run directory, then resume the run"
            ) from error

    def newest(self, node: str) -> int | None:
        """The latest round that a state is stored of; None where there is none."""
        return max(_numbers(self._node_directory(node), _STATE_FILE), default=None)

    def prune(self, node: str, *rounds: int) -> None:
        """Forget what no ``load`` of one of ``rounds``, or of any after them, can need; half-written files, too."""
        directory = self._node_directory(node)
        stored = _numbers(directory, _STATE_FILE)
        needed = {max((number for number in stored if number <= round), default=round) for round in rounds}
        for number, path in stored.items():
            if number < max(needed) and number not in needed:
                path.unlink(missing_ok=True)
        for path in directory.glob("*.tmp"):
            match = _TEMPORARY_FILE.fullmatch(path.name)
            if match and int(match[1]) < max(needed):
                path.unlink(missing_ok=True)

    def drop_after(self, round: int) -> None:
        """Forget what nodes stored after ``round``: a run that goes on from there makes it anew."""
        for directory in self._directory.iterdir() if self._directory.is_dir() else ():
            for number, path in _numbers(directory, _STATE_FILE).items():
                if number > round:
                    path.unlink(missing_ok=True)

    def _node_directory(self, node: str) -> Path:
        if not _NODE_NAME.fullmatch(node):
            raise InputError(f"'{node}' cannot name a node's state: use letters, digits, '_', '-' and '.'")
        return self._directory / node


def _file_name(round: int) -> str:
    if not 0 <= round < 10**8:
        raise InputError(f"a state cannot be stored for round {round}: rounds go from 0 to 99999999")
    return f"round-{round:08d}.safetensors"


def _numbers(directory: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """The files of a directory that match, by the round in their name."""
    if not directory.is_dir():
        return {}
    matches = ((pattern.fullmatch(path.name), path) for path in directory.iterdir())
    return {int(match[1]): path for match, path in matches if match}


def _write_atomically(path: Path, arrays: Mapping[str, np.ndarray], *, flush: bool) -> None:
    """Write a file that appears under its name only once all of it is written; `flush`: on the disk."""
    handle, name = tempfile.mkstemp(prefix=f"{path.stem}.", suffix=".tmp", dir=path.parent)
    try:
        os.close(handle)
        save_file(dict(arrays), name)
        os.chmod(name, 0o600)  # whatever the umask is
        if flush:
            flush_to_disk(Path(name))
        os.replace(name, path)
    except (OSError, SafetensorError):
        with suppress(OSError):  # the first error is the one to report
            os.unlink(name)
        raise
    if flush:
        flush_to_disk(path.parent)  # the name itself


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    private_folder(directory)
    flush_to_disk(directory.parent)


def _map_arrays(path: Path) -> dict[str, np.ndarray]:
    """Map a safetensors file: 8 bytes with the header's length, the header, then array after array."""
    try:
        with safe_open(path, framework="numpy") as file:  # checks the header, and that the arrays fill the file
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            kinds = {
                name: (np.dtype(_NUMPY_TYPES[part.get_dtype()]), tuple(part.get_shape()))
                for name, part in slices.items()
            }
        memory = np.memmap(path, dtype=np.uint8, mode="c")  # copy on write
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FedemError(
            f"{path} is damaged ({_reason(error)}): the run cannot go on from here; start it again"
        ) from error
    arrays = {}
    position = 8 + int(memory[:8].view("<u8")[0])
    for name, (dtype, shape) in kinds.items():
        arrays[name] = np.ndarray(shape, dtype, buffer=memory, offset=position)
        position += arrays[name].nbytes
    return arrays


def _reason(error: BaseException) -> str:
    return " ".join(str(error.strerror if isinstance(error, OSError) and error.strerror else error).split())
