"""bench.json: what was asked for, where, and every sample; written anew after each row, so that a kill loses one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedem_flwr.bench.machine import Machine
from fedem_flwr.bench.rows import Row
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import write_atomically

FILE = "bench.json"
_MOST_BYTES = 64 << 20


class Request(BaseModel):
    """What was asked for; rows of equal requests can stand beside each other.

    Attributes:
        quick: whether the sizes are the small ones.
        threads: of each side.
        turns: samples of each side.
        names: of the benchmarks, in order.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    quick: bool
    threads: int = Field(ge=1)
    turns: int = Field(ge=1)
    names: tuple[str, ...]


class Document(BaseModel):
    """A whole measurement.

    Attributes:
        format: of this file.
        version: of the program that was measured.
        command: that measured it.
        began: when, local time in ISO 8601.
        finished: whether all benchmarks had their turn.
        rows: what was measured, in order.
        left_out: name of a benchmark to the reason why it was not measured.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    version: str
    command: str
    began: str
    finished: bool = False
    request: Request
    machine: Machine
    rows: tuple[Row, ...] = ()
    left_out: dict[str, str] = {}

    @model_validator(mode="after")
    def _each_once(self) -> Document:
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError("a benchmark is there twice")
        return self

    def with_row(self, row: Row) -> Document:
        """With one more row."""
        return self.model_copy(update={"rows": (*self.rows, row)})

    def without(self, name: str, why: str) -> Document:
        """With one more benchmark that was left out."""
        return self.model_copy(update={"left_out": {**self.left_out, name: why}})

    @property
    def done(self) -> frozenset[str]:
        """Benchmarks that have had their turn."""
        return frozenset({row.name for row in self.rows} | set(self.left_out))

    def write(self, folder: Path) -> Path:
        """Write bench.json, whole or not at all.

        Raises:
            FedemError: it cannot be written.
        """
        tree = self.model_dump(mode="json")
        for row, kept in zip(self.rows, tree["rows"], strict=True):
            kept["figures"] = row.figures()
        path = folder / FILE
        write_atomically(path, json.dumps(tree, indent=1, allow_nan=False) + "\n")
        return path


def read_document(path: Path) -> Document:
    """Read a bench.json, or that of a folder.

    Raises:
        InputError: it is not there, is none, or is damaged.
    """
    place = path / FILE if path.is_dir() else path
    try:
        if place.stat().st_size > _MOST_BYTES:
            raise InputError(f"{place} is too large to be a {FILE} of `fedem bench`: give one")
        tree = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {place}: {error.strerror}; give the {FILE} of a `fedem bench`") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is no JSON, or cut short: give the {FILE} of a `fedem bench`") from error
    if not isinstance(tree, dict) or "rows" not in tree or "machine" not in tree:
        raise InputError(f"{place} is no {FILE} of `fedem bench`: it lacks rows and a machine")
    if tree.get("format") != 1:
        raise InputError(f"{place} has format {tree.get('format')!r}, and this version reads 1: measure anew")
    try:
        return Document.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(f"{place} is damaged: {where}: {first['msg']}") from error


def begin(folder: Path, document: Document) -> Document:
    """A new measurement in a folder, or the one that was cut short there, if it was the same one on the same machine.

    Raises:
        InputError: the folder holds another measurement, which is not overwritten.
        FedemError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FedemError(f"cannot make {folder}: {error.strerror}; choose another --out") from error
    if not (folder / FILE).exists():
        return document
    old = read_document(folder)
    same = old.request == document.request and old.version == document.version and old.machine.same_as(document.machine)
    if old.finished or not same:
        state = "is finished" if old.finished else "is another one (options, version or machine)"
        raise InputError(f"{folder / FILE} is there, and {state}: choose another --out, or remove it")
    # What was left out for a reason of the moment gets another chance.
    return old.model_copy(update={"left_out": {}, "command": document.command})
