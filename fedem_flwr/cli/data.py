"""What `fedem data` does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from fedem_flwr.config import Config, Tree, resolve
from fedem_flwr.data import KNOWN_DATASETS, SYNTHETIC, Interactions, dataset_entry, fetch_dataset, find_dataset
from fedem_flwr.data.catalog import cache_dir
from fedem_flwr.data.known import KnownDataset, family_of
from fedem_flwr.errors import InputError
from fedem_flwr.locking import Lock
from fedem_flwr.protocol.account import Account
from fedem_flwr.protocol.files import removed_if_empty, replaced_folder
from fedem_flwr.protocol.shards import FEDERATION_FOLDER, SHARDS_FOLDER, Federation, write_shards
from fedem_flwr.protocol.splits import Protocol
from fedem_flwr.report.account import account_rows
from fedem_flwr.report.progress import task_progress
from fedem_flwr.report.steps import steps_shown
from fedem_flwr.report.tables import ABSENT
from fedem_flwr.runtime.inputs import account_with, check_shards, load_interactions, split_into
from fedem_flwr.terminal import console

_out = console()


def show_list(data_dir: Path | None) -> None:
    """The known data sets, and where each was found.

    Raises:
        InputError: there is no such folder.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise InputError(f"data folder {data_dir} does not exist; create it or name another")
    table = Table(title="known data sets")
    table.add_column("name", no_wrap=True)
    for column in ("users", "items", "rows", "download"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("at hand")
    table.add_row(SYNTHETIC, "600", "800", "any", ABSENT, "embedded")
    places, families, licences = list[str](), dict[str, None](), dict[str, dict[str, None]]()
    for name, entry in KNOWN_DATASETS.items():
        family = family_of(name)
        licences.setdefault(entry.licence, {})[f"{family}-…" if family else name] = None
        if family:
            families[family] = None
            continue
        try:
            found = find_dataset(name, data_dir, fetch=False)
            places.append(f"{name}: {found.path} ({found.status})")
            status: str = found.status
        except InputError:
            status = "no" if entry.urls else "no; by hand"
        sizes = (ABSENT if count is None else f"{count:,}" for count in (entry.users, entry.items, entry.rows))
        table.add_row(name, *sizes, entry.download or ABSENT, status)
    _out.print(table)
    lines = [*places, "", *(f"{family}-…: {_family_words(family)}" for family in families), "", "licences:"]
    lines += [f"{licence}: {', '.join(names)}" for licence, names in licences.items()]
    lines.append(
        "\n`fedem data fetch NAME` downloads one; `fedem data info NAME` shows homepage, checksum and what to cite."
    )
    _out.print("\n".join(lines), soft_wrap=True)


def _family_words(family: str) -> str:
    """The categories of a family."""
    names = [name for name in KNOWN_DATASETS if family_of(name) == family]
    return ", ".join(name.removeprefix(f"{family}-") for name in names)


def _about(entry: KnownDataset) -> Iterator[tuple[str, str]]:
    place = cache_dir() / entry.name / entry.member
    counts = {"users": entry.users, "items": entry.items, "rows": entry.rows}
    known = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count is not None)
    found = {
        "size": known,
        "download": entry.download,
        "licence": entry.licence,
        "cite": entry.citation,
        "homepage": entry.homepage,
        "from": entry.urls[0] if entry.urls else "",
        "by hand": f"{entry.by_hand}; put it at {place}" if entry.by_hand else "",
        "checksum": entry.archive_checksum or ("none is published: the first download's is kept" if entry.urls else ""),
        "note": entry.note,
    }
    yield from ((name, words) for name, words in found.items() if words)


def show_info(options: Tree) -> None:
    """Sizes of a data set, and what each protocol keeps of it; of a known one that is not here what its owner says."""
    config = resolve({}, options, "options")
    name = config.data.dataset
    table = Table(title=Text(name), show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    if name in KNOWN_DATASETS and not _at_hand(name, config.data.data_dir):
        entry = dataset_entry(name)
        for what, words in (*_about(entry), ("at hand", f"no; fedem data fetch {name}" if entry.urls else "no")):
            table.add_row(what, Text(words))
        _out.print(table)
        return
    with steps_shown():
        interactions = load_interactions(config)
    kept, strict = _kept(config, interactions)
    for name, value in (*_as_read(interactions), *_facts(interactions, strict), *kept):
        table.add_row(Text(name), Text(value))
    if name in KNOWN_DATASETS:
        for what, words in _about(dataset_entry(name)):
            if what not in ("size", "by hand"):
                table.add_row(what, Text(words))
    _out.print(table)


def _at_hand(name: str, data_dir: str | None) -> bool:
    try:
        find_dataset(name, Path(data_dir) if data_dir else None, fetch=False)
    except InputError:
        return False
    return True


def _as_read(interactions: Interactions) -> Iterator[tuple[str, str]]:
    """How the file was read, a line a column with the values of its first two rows."""
    reading = interactions.reading
    if reading is None:
        return
    yield "read as", reading.shape
    for column in reading.columns:
        examples = f": {', '.join(column.examples)}, ..." if any(column.examples) else ""
        yield column.called, column.taken_for + examples
    for note in reading.notes:
        yield "note", note


def _kept(config: Config, interactions: Interactions) -> tuple[list[tuple[str, str]], Account | None]:
    """What each protocol keeps, and what became of the rest under strict; with the account of that."""
    found: list[tuple[str, str]] = []
    of_strict: Account | None = None
    protocols: tuple[Protocol, ...] = ("strict", "paper")
    for protocol in protocols:
        try:
            facts, account = account_with(config.changed("data", protocol=protocol), interactions)
        except InputError as error:
            found.append((f"protocol {protocol} keeps", str(error)))
            continue
        counts = f"{facts['users']:,} users, {facts['items']:,} items, {facts['interactions']:,} interactions"
        found.append((f"protocol {protocol} keeps", counts))
        if account is not None:
            of_strict = account
            described = account_rows(replace(account, reading=None), protocol, facts["users"])
            found += [(f"{protocol}: {name}", words) for name, words in described]
    return found, of_strict


def _facts(interactions: Interactions, account: Account | None) -> Iterator[tuple[str, str]]:
    """Sizes, before any filter; where an account of all rows is there, it knows the repeats."""
    if account is not None and not account.below_rating:
        pairs = account.rows - account.repeats
    else:
        ordered = np.sort(interactions.user * interactions.items + interactions.item)  # np.unique: ten times as long
        pairs = int((ordered[1:] != ordered[:-1]).sum()) + 1
    share = pairs / max(1, interactions.users * interactions.items)
    counts = np.bincount(interactions.user, minlength=interactions.users)
    yield "users", f"{interactions.users:,}"
    yield "items", f"{interactions.items:,}"
    yield "rows", f"{interactions.rows:,}"
    yield "distinct (user, item) pairs", f"{pairs:,}"
    yield "sparsity", f"{1 - share:.2%}"
    yield "rows a user", f"median {np.median(counts):.0f}, {counts.min()} to {counts.max()}"
    yield "times", "yes" if interactions.time is not None else "no"
    yield "ratings", "yes" if interactions.rating is not None else "no"


def fetch(name: str, data_dir: Path | None, *, quiet: bool) -> None:
    """Download a known data set and say what was found."""
    entry = dataset_entry(name)
    if not entry.urls:
        fetch_dataset(name, data_dir)  # says what to do by hand
    with task_progress(f"downloading {name}", None, quiet=quiet) as advance:
        so_far = 0

        def progress(done: int, total: int | None) -> None:
            nonlocal so_far
            advance(done - so_far)
            so_far = done

        found = fetch_dataset(name, data_dir, progress=progress)
    _out.print(f"{found.path}: {found.status}", soft_wrap=True)
    if found.warning:
        _out.print(found.warning, soft_wrap=True)
    _out.print(f"licence: {entry.licence}", soft_wrap=True)


def shard(options: Tree, nodes: int, out: Path, *, quiet: bool) -> Federation:
    """Write a folder with one shard a node, and what the server may know."""
    config = resolve({}, options, "options")
    check_shards(config)
    with ExitStack() as held:
        held.enter_context(removed_if_empty(out))
        held.enter_context(Lock.take(out / "shard.lock", str(out)))
        if any((out / name).exists() for name in (FEDERATION_FOLDER, SHARDS_FOLDER)):
            raise InputError(f"{out} holds shards already: give another --out, or delete them")
        work = held.enter_context(replaced_folder(out / SHARDS_FOLDER))  # on the same disk, and gone whatever happens
        whole = split_into(work / "whole", config)
        with task_progress("writing shards", nodes, in_bytes=False, quiet=quiet) as advance:
            federation = write_shards(whole, nodes, work, lambda: advance(1))
        shutil.rmtree(work / "whole")
        for made in sorted((work / SHARDS_FOLDER).iterdir()):
            made.rename(work / made.name)
        (work / SHARDS_FOLDER).rmdir()
        (work / FEDERATION_FOLDER).rename(out / FEDERATION_FOLDER)  # last: whatever stops us before leaves nothing
    each = federation.shards[0]
    facts = federation.facts
    _out.print(
        f"{out}: {facts.users:,} users of {facts.dataset} in {nodes} shards of up to {each[1] - each[0]:,}, protocol "
        f"{facts.protocol}",
        soft_wrap=True,
    )
    return federation
