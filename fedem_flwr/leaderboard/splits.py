"""The splits of a leaderboard's folder: made once for all methods, and known by their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedem_flwr.config import Config
from fedem_flwr.data import KNOWN_DATASETS, SYNTHETIC, find_dataset
from fedem_flwr.data.download import file_sha256
from fedem_flwr.data.opening import stem
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.evaluation.control_cache import split_hash
from fedem_flwr.files import private_folder, write_atomically
from fedem_flwr.leaderboard.keys import DATA_ROOMS, sources
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.protocol.split import Split
from fedem_flwr.protocol.temporal import SECOND
from fedem_flwr.runtime.inputs import split_into

_CONTENT = "content.txt"  # beside a split's folder: the digest of what is in it


@dataclass
class Splits:
    """The splits below a folder.

    A split is a function of the data, the protocol, the seed and the code that makes it: by these it is found again
    without being made.
    """

    folder: Path
    _content: dict[str, str] = field(default_factory=dict)  # of data sets, by name: read once

    def place_of(self, config: Config) -> Path:
        """The folder of a configuration's split, whether it is there or not.

        Raises:
            InputError: the data cannot be had.
        """
        return self.folder / self._name(config)

    def content_of(self, config: Config, on_progress: Callable[[int, int], None] | None = None) -> str:
        """The digest of what is in the split, which is made where it is not there yet.

        Raises:
            InputError: the data cannot be had, or cannot be split like this.
        """
        place = self.place_of(config)
        content = place.with_name(f"{place.name}.{_CONTENT}")
        with suppress(OSError):
            return _checked(content.read_text(encoding="ascii").strip(), place)
        private_folder(self.folder)
        try:
            split = split_into(place, config, on_progress)
        except OSError as error:
            raise FedemError(f"cannot write {place}: {error.strerror}; free space, then say the same again") from error
        digest = split_hash(split)
        if (second := place / SECOND).is_dir():
            digest = hashlib.sha256((digest + split_hash(Split.load(second))).encode()).hexdigest()
        write_atomically(content, digest + "\n", private=True)  # last: now all is there
        return digest

    def _name(self, config: Config) -> str:
        data = config.data.model_dump(mode="json", exclude={"data_dir"})
        if config.data.dataset != SYNTHETIC:
            data.pop("synthetic")
        what = [data, config.run.seed, self._data(config), sources(DATA_ROOMS)]
        if rules_of(config.data.protocol).by_instant:
            what.append(config.temporal.model_dump(mode="json", include={"instants", "target"}))
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
        return f"{stem(Path(config.data.dataset))}-{config.data.protocol}-{config.run.seed}-{digest}"

    def _data(self, config: Config) -> str:
        """Digest of the data set's file; empty where it is generated."""
        name = config.data.dataset
        if name == SYNTHETIC:
            return ""
        if name not in self._content:
            if name in KNOWN_DATASETS:
                self._content[name] = find_dataset(
                    name, Path(folder) if (folder := config.data.data_dir) else None
                ).sha256
            else:
                try:
                    self._content[name] = file_sha256(Path(name).expanduser())
                except OSError as error:
                    raise InputError(f"cannot read {name}: {error.strerror}") from error
        return self._content[name]


def _checked(digest: str, place: Path) -> str:
    if not place.is_dir():
        raise FileNotFoundError(place)
    return digest


def lay_out(split: Path, place: Path) -> Split:
    """Give a run the split: linked, where the file system can, as nothing writes into a split that is there."""

    def link(source: str, target: str) -> str:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
        return target

    shutil.rmtree(place, ignore_errors=True)
    fresh = private_folder(place.with_name(f"{place.name}.new"))
    shutil.copytree(split, fresh, copy_function=link, dirs_exist_ok=True)
    fresh.rename(place)
    return Split.load(place)
