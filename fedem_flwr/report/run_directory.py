"""A run is a directory: configuration, metrics by round, summary, diagnostics, checkpoint and report.

A process may be killed at any moment. Whole files are therefore replaced atomically (write, fsync, rename),
and ``metrics.jsonl`` grows by one flushed and synced line a round, so that at worst its last line is half
written; reading skips that line, resuming removes it. JSON has no NaN: what is not finite is ``null``.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import new_file, quoted, refuse_links, unlinked, write_atomically

Json: TypeAlias = dict[str, Any]

CONFIG, METRICS, SUMMARY, DIAGNOSTICS = "config.toml", "metrics.jsonl", "summary.json", "diagnostics.json"
REPORT, CHECKPOINT = "report.html", "checkpoint"
COMMAND = "command.txt"  # what made the run; alone it is no run yet
SEAL = "config.seal"  # says whose configuration it is (see `runtime.consent`)
USERS = "users.npz"  # test figures of each user (see `report.per_user`)
_FILES = (CONFIG, METRICS, SUMMARY, DIAGNOSTICS, REPORT, USERS)


def number_at(record: object, *keys: str) -> float | None:
    """Return the finite number under nested ``keys``, or None where there is no such number."""
    for key in keys:
        if not isinstance(record, Mapping):
            return None
        record = record.get(key)
    if isinstance(record, bool) or not isinstance(record, int | float) or not math.isfinite(record):
        return None
    return float(record)


def plain(value: object) -> Any:
    """Return ``value`` as what JSON can hold: NumPy values unwrapped, figures that are not finite as None.

    Raises:
        TypeError: a value that has no JSON form.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _parse(text: str) -> Json | None:
    """Return the JSON object in ``text``, or None if it holds none (a line cut short never parses)."""
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _is_metrics_line(value: Json | None) -> bool:
    return value is not None and isinstance(value.get("round"), int) and not isinstance(value["round"], bool)


def _as_sampled(line: Json) -> Json:
    """Undo ``runtime.lines.measured_again``."""
    if not line.get("again"):
        return line
    return {**{key: value for key, value in line.items() if key not in ("again", "sample")}, **line["sample"]}


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run. Making the object touches nothing; ``create`` makes the directory.

    Attributes:
        path: the directory.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def checkpoint_dir(self) -> Path:
        """Where a run keeps what it needs to resume; made by whoever writes the checkpoint."""
        return self.path / CHECKPOINT

    @property
    def report_path(self) -> Path:
        """Where ``write_report`` puts its page."""
        return self.path / REPORT

    def holds_run(self) -> bool:
        """Say whether any file of a run is here."""
        return self.checkpoint_dir.exists() or any((self.path / name).exists() for name in _FILES)

    def create(self, *, overwrite: bool = False, resume: bool = False) -> RunDirectory:
        """Make the directory, or take one over.

        Args:
            overwrite: delete the files of the run that is there; files that are none of a run's stay.
            resume: keep them, to go on with that run.

        Raises:
            InputError: the directory cannot be written, or holds a run and neither option was given.
        """
        if self.holds_run() and not (overwrite or resume):
            raise InputError(
                f"{self.path} already holds a run: choose another --out, continue it with "
                f"`fedem resume {quoted(self.path)}`, or add --overwrite"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.holds_run():
                refuse_links(self.path)
            probe = self.path / f".writable.{secrets.token_hex(8)}"
            os.close(new_file(probe))  # permission bits mislead (root, network mounts): only writing tells
            probe.unlink()
            if overwrite and not resume:
                for name in (*_FILES, SEAL):
                    (self.path / name).unlink(missing_ok=True)
                if self.checkpoint_dir.exists():
                    shutil.rmtree(self.checkpoint_dir)
        except OSError as error:
            raise InputError(
                f"cannot write the run directory {self.path}: {error.strerror}; give another with --out"
            ) from error
        return self

    def open(self) -> RunDirectory:
        """Return the directory if it holds a run.

        Raises:
            InputError: there is no such directory, nothing of a run in it, or a link that leads out of it.
        """
        if not self.path.is_dir():
            raise InputError(f"{self.path} is no directory: give the one that `fedem run` named")
        if not self.holds_run():
            raise InputError(f"{self.path} holds no run (no {CONFIG}): give the one that `fedem run` named")
        refuse_links(self.path)
        return self

    def write_config(self, toml_text: str) -> None:
        """Store the fully resolved configuration."""
        write_atomically(self.path / CONFIG, toml_text)

    def read_config(self) -> str:
        """Return the text of ``config.toml``; InputError if it is missing."""
        return self._read(CONFIG)

    def write_command(self, command: str) -> None:
        """Store the command that starts the run; resuming does not change it."""
        write_atomically(self.path / COMMAND, command + "\n")

    def write_seal(self, seal: str) -> None:
        """Store what says whose the configuration is."""
        write_atomically(self.path / SEAL, seal + "\n", private=True)

    def read_seal(self) -> str:
        """Return the same; empty where there is none."""
        return self._read(SEAL).strip() if (self.path / SEAL).exists() else ""

    def read_command(self) -> str | None:
        """Return the command that started the run; None if it is not known."""
        return self._read(COMMAND).rstrip("\n") if (self.path / COMMAND).exists() else None

    def append_metrics(self, line: Mapping[str, object]) -> None:
        """Append one round's line and sync it to disk; a half-written line before it is mended first.

        Raises:
            FedemError: the file cannot be written.
        """
        path = self.path / METRICS
        text = json.dumps(plain(line), allow_nan=False) + "\n"
        try:
            with open(path, "a+b", opener=unlinked) as stream:
                end = stream.seek(0, os.SEEK_END)
                if end:
                    stream.seek(end - 1)
                if end and stream.read(1) != b"\n":
                    stream.seek(0)
                    content = stream.read()
                    tail = content[content.rfind(b"\n") + 1 :]
                    if _is_metrics_line(_parse(tail.decode("utf-8", errors="replace"))):
                        stream.write(b"\n")
                    else:
                        stream.truncate(end - len(tail))
                stream.write(text.encode("utf-8"))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise FedemError(f"cannot write {path}: {error.strerror}; free space, then resume the run") from error

    def read_metrics(self) -> list[Json]:
        """Return the lines of ``metrics.jsonl`` in file order, without a half-written last one.

        Raises:
            InputError: the file is missing.
            FedemError: a line before the last cannot be read.
        """
        rows = [row for row in enumerate(self._read(METRICS).split("\n"), start=1) if row[1].strip()]
        lines: list[Json] = []
        for number, text in rows:
            value = _parse(text)
            if value is not None and _is_metrics_line(value):
                lines.append(value)
            elif number != rows[-1][0]:
                raise FedemError(f"{self.path / METRICS} line {number} is damaged: delete that line, or resume the run")
        return lines

    def replace_metrics(self, change: Callable[[Json], Json | None]) -> int:
        """Change each line of ``metrics.jsonl``, or drop it (None), all at once.

        Returns:
            How many lines are left. A missing file is no error: nothing is left.
        """
        if not (self.path / METRICS).exists():
            return 0
        kept = [changed for line in self.read_metrics() if (changed := change(line)) is not None]
        write_atomically(self.path / METRICS, "".join(json.dumps(plain(line)) + "\n" for line in kept))
        return len(kept)

    def truncate_metrics(self, before_round: int) -> int:
        """Keep only the rounds before ``before_round``, as they first were (a resumed run writes the rest anew).

        Returns:
            How many lines are left.
        """
        return self.replace_metrics(lambda line: _as_sampled(line) if line["round"] < before_round else None)

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Store the result of the finished run."""
        self._write_json(SUMMARY, summary)

    def read_summary(self) -> Json:
        """Return ``summary.json``; InputError if it is missing, FedemError if it is damaged."""
        return self._read_json(SUMMARY)

    def write_diagnostics(self, diagnostics: Mapping[str, object]) -> None:
        """Store what the report draws beside the metrics: rho, weights, groups, failures."""
        self._write_json(DIAGNOSTICS, diagnostics)

    def read_diagnostics(self) -> Json:
        """Return ``diagnostics.json``; InputError if it is missing, FedemError if it is damaged."""
        return self._read_json(DIAGNOSTICS)

    def _write_json(self, name: str, value: Mapping[str, object]) -> None:
        write_atomically(self.path / name, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError as error:
            raise InputError(
                f"{self.path / name} is missing: is this a run directory, and has the run come that far? "
                f"`fedem resume {quoted(self.path)}` continues it"
            ) from error
        except OSError as error:
            raise InputError(f"cannot read {self.path / name}: {error.strerror}") from error

    def _read_json(self, name: str) -> Json:
        value = _parse(self._read(name))
        if value is None:
            raise FedemError(
                f"{self.path / name} is damaged (no complete JSON object): delete it and run "
                f"`fedem resume {quoted(self.path)}` to write it anew"
            )
        return value
