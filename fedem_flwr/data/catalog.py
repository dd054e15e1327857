"""Find, fetch, verify and load data sets by name, or any delimited file by path."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final, Literal

from fedem_flwr.data.columns import Columns
from fedem_flwr.data.download import Progress, checksum_mismatch, download, extract_member, file_sha256
from fedem_flwr.data.interactions import Interactions, Source, gather
from fedem_flwr.data.known import KNOWN_DATASETS, KnownDataset, dataset_entry
from fedem_flwr.data.loader import read_interactions
from fedem_flwr.data.synthetic import SyntheticConfig, SyntheticSource
from fedem_flwr.errors import InputError
from fedem_flwr.files import private_folder, write_atomically

SYNTHETIC: Final = "synthetic"
_LOCAL_FILE: Final = "ratings.dat"
_SOURCE_FILE: Final = "source.json"
_WINDOWS: Final = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_log = logging.getLogger(__name__)

Status = Literal["ok", "differs", "unverified"]


@dataclass(frozen=True)
class FoundDataset:
    """A known data set's file on disk.

    Attributes:
        entry: its catalogue entry.
        path: the rating file.
        columns: that file's layout.
        sha256: its checksum, in hex.
        status: "ok" (a known checksum), "unverified" (as downloaded, none published) or "differs".
        warning: one line for the user where the status is not "ok".
    """

    entry: KnownDataset
    path: Path
    columns: Columns
    sha256: str
    status: Status
    warning: str | None


def cache_dir(kind: str = "data") -> Path:
    """The user's cache of a kind of things: ``$XDG_CACHE_HOME/fedem-flwr/<kind>``, by default under ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "fedem-flwr" / kind


def find_dataset(
    name: str, data_dir: Path | None = None, *, fetch: bool = True, progress: Progress | None = None
) -> FoundDataset:
    """Look for a known data set in `data_dir`, `$FEDEM_DATA` and the cache, then download it into the cache.

    Raises:
        InputError: unknown name, no such `data_dir`, or a set that is nowhere and cannot be fetched.
    """
    entry = dataset_entry(name)
    if data_dir is not None and not data_dir.is_dir():
        raise InputError(f"data folder {data_dir} does not exist; create it or name another")
    from_environment = os.environ.get("FEDEM_DATA")
    folders = [data_dir, Path(from_environment) if from_environment else None, cache_dir()]
    for folder in folders:
        found = None if folder is None else _in_folder(entry, folder)
        if found is not None:
            return found
    if not fetch:
        looked = ", ".join(str(folder) for folder in folders if folder is not None)
        place = f"<folder>/{name}/{_places(entry)[0][0]}"
        raise InputError(f"data set {name} not found in {looked}; fetch it, or put it at {place}")
    return fetch_dataset(name, progress=progress)


def fetch_dataset(name: str, folder: Path | None = None, *, progress: Progress | None = None) -> FoundDataset:
    """Download a known data set's archive into `folder` (the cache by default) and unpack its rating file.

    Raises:
        InputError: no network, a wrong checksum, or a bad archive; the message says how to fetch it by hand.
    """
    entry = dataset_entry(name)
    home = (folder or private_folder(cache_dir())) / name
    if not entry.urls:
        raise InputError(
            f"{name} cannot be downloaded for you: {entry.homepage}: {entry.by_hand}; put it at "
            f"{home / entry.member}. Terms: {entry.licence}"
        )
    archive = home / _archive_name(entry)
    url, archive_sha256 = _download_first(entry, archive, progress)
    _as_before(entry, home, archive, archive_sha256)
    path = archive
    if entry.zipped:
        path = extract_member(archive, entry.member, home)
        archive.unlink()
    source = {
        "url": url,
        "archive_sha256": archive_sha256,
        "published_checksum": entry.archive_checksum,
        "member": entry.member,
        "sha256": file_sha256(path),
    }
    write_atomically(home / _SOURCE_FILE, json.dumps(source, indent=2) + "\n")
    return _inspect(entry, path, entry.member_columns)


def _as_before(entry: KnownDataset, home: Path, archive: Path, sha256: str) -> None:
    """Where its distributor publishes no checksum, a download must be what the first one was.

    Raises:
        InputError: it is not; it is deleted.
    """
    first = _recorded(home / _SOURCE_FILE, "archive_sha256")
    if entry.archive_checksum is None and first not in (None, sha256):
        archive.unlink()
        raise InputError(
            f"{entry.name}: the download differs from the first one here (sha256 {sha256}, then {first}): its "
            f"distributor has changed it. To take the new one, delete {home / _SOURCE_FILE} and fetch again"
        )


def _archive_name(entry: KnownDataset) -> str:
    return entry.urls[0].rsplit("/", 1)[-1]


def _download_first(entry: KnownDataset, target: Path, progress: Progress | None) -> tuple[str, str]:
    """The first address that works, and the sha256 of what it gave."""
    *mirrors, last = entry.urls
    for url in mirrors:
        try:
            return url, download(url, target, checksum=entry.archive_checksum, progress=progress)
        except InputError as error:
            _log.warning("%s; trying the next address", error)
    return last, download(last, target, checksum=entry.archive_checksum, progress=progress)


def _in_folder(entry: KnownDataset, folder: Path) -> FoundDataset | None:
    for file, columns in _places(entry):
        path = folder / entry.name / file
        if path.is_file():
            return _inspect(entry, path, columns)
    return None


def _places(entry: KnownDataset) -> list[tuple[str, Columns]]:
    """Names that the rating file may have, with their layouts; also without the ending of compression."""
    member = entry.member.rsplit("/", 1)[-1]
    local = [] if entry.local_columns == Columns() else [(_LOCAL_FILE, entry.local_columns)]
    return [*local, *((name, entry.member_columns) for name in dict.fromkeys((member, member.removesuffix(".gz"))))]


def _inspect(entry: KnownDataset, path: Path, columns: Columns) -> FoundDataset:
    """Compare a file with the known checksums, then with what was recorded when it was downloaded."""
    sha256 = file_sha256(path)
    status: Status = "differs"
    warning: str | None = f"{path} is not a known copy of {entry.name} (sha256 {sha256}): its figures may differ"
    if any(checksum_mismatch(path, known) is None for known in entry.known_checksums):
        status, warning = "ok", None
    elif _recorded(path.with_name(_SOURCE_FILE), "sha256") == sha256:
        status, warning = "ok", None
        if entry.archive_checksum is None:
            status = "unverified"
            warning = f"{entry.name} has no published checksum to verify {path} with; its sha256 is {sha256}"
    elif not entry.known_checksums and entry.archive_checksum is None:
        status = "unverified"
        warning = f"{entry.name} has no published checksum to verify {path} with; its sha256 is {sha256}"
    return FoundDataset(entry, path, columns, sha256, status, warning)


def _recorded(source: Path, what: str) -> str | None:
    """What was written down of a download."""
    try:
        recorded = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # no or unreadable record: nothing vouches for the file
    return str(recorded[what]) if isinstance(recorded, dict) and what in recorded else None


def open_source(
    name_or_path: str,
    data_dir: Path | None = None,
    *,
    columns: Columns | None = None,
    seed: int = 0,
    synthetic: SyntheticConfig | None = None,
) -> Source:
    """Open "synthetic" in blocks of users; a known data set by name, or any delimited file by path, in memory.

    Args:
        name_or_path: a name in `KNOWN_DATASETS`, "synthetic", or a path.
        data_dir: where known data sets are looked for first.
        columns: layout of the file, where detection is not wanted.
        seed: of the synthetic data set.
        synthetic: its configuration; the default one where None.

    Raises:
        InputError: neither a name nor a file, or a file that cannot be read.
    """
    if name_or_path == SYNTHETIC:
        if columns is not None:
            raise InputError("the synthetic data set is no file: leave out what data.* says of separators and columns")
        return SyntheticSource(synthetic or SyntheticConfig(), seed)
    if name_or_path in KNOWN_DATASETS:
        found = find_dataset(name_or_path, data_dir)
        if found.warning is not None:
            _log.warning("%s", found.warning)
        return read_interactions(found.path, found.columns.but(columns or Columns()), name=name_or_path)
    path = Path(name_or_path).expanduser()
    if not path.exists():
        raise _nothing_there(name_or_path, path)
    return read_interactions(path, columns)


def _nothing_there(given: str, path: Path) -> InputError:
    """What a name that is neither a data set's nor a file's was meant to be."""
    if "://" in given:
        return InputError(f"'{given}' is an address: download the file, and name it here")
    if _WINDOWS.match(given) and os.name != "nt":
        return InputError(f"'{given}' is a path of Windows, and this is another system: no such file here")
    if path.suffix or len(path.parts) > 1 or given.startswith("~") or not given.isprintable():
        escaped = " (it holds control characters: in TOML, write a path in single quotes, or with /)"
        return InputError(f"{path}: no such file; check the path{'' if given.isprintable() else escaped}")
    near = get_close_matches(given, [*KNOWN_DATASETS, SYNTHETIC], n=1, cutoff=0.5)
    remedy = f"did you mean '{near[0]}'?" if near else "`fedem data list` has the names of data sets"
    return InputError(f"'{given}' is neither a known data set nor a file; {remedy}")


def load_dataset(
    name_or_path: str,
    data_dir: Path | None = None,
    *,
    columns: Columns | None = None,
    seed: int = 0,
    synthetic: SyntheticConfig | None = None,
) -> Interactions:
    """`open_source`, with all rows in memory also where the data set is synthetic."""
    source = open_source(name_or_path, data_dir, columns=columns, seed=seed, synthetic=synthetic)
    return source if isinstance(source, Interactions) else gather(source)
