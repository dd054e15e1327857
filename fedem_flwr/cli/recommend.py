"""What `fedem recommend` does: read histories and names, and show lists."""

from __future__ import annotations

import csv
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from fedem_flwr.errors import InputError
from fedem_flwr.serving.recommender import Recommendation, Recommender, UnknownItemsWarning
from fedem_flwr.terminal import console

_SEPARATORS = ("::", "|", "\t", ",", ";")
_USER, _ITEM = {"user", "userid"}, {"item", "itemid", "movie", "movieid", "id"}  # names in a history's header
_FILES = {".csv", ".tsv", ".txt", ".dat", ".item"}  # endings of what must be a file's name
_SHOWN = 10  # unknown items named at most

_out = console()
_err = console(stderr=True, soft_wrap=True)

Rows = list[tuple[int, list[str]]]  # a line's number and its fields


def recommend(
    run_dir: Path,
    user: str | None,
    history: str | None,
    top: int,
    *,
    exclude_seen: bool,
    names: Path | None,
    as_json: bool,
    trusted: bool,
) -> None:
    """`fedem recommend`: lists for a user of the run, for a history, or for each user of a file of histories.

    Raises:
        InputError: not exactly one of `user` and `history`, a file that cannot be read, or what `Recommender` raises.
    """
    if (user is None) == (history is None):
        raise InputError("give exactly one of --user (of the run) and --history (item ids, or a file of them)")
    histories = {} if history is None else read_histories(history)
    titles = None if names is None else read_names(names)
    recommender = Recommender.load(run_dir, trust=trusted)
    lists: dict[str | None, list[Recommendation]]
    if user is not None:
        lists = {user: recommender.recommend_user(user, top, exclude_seen)}
    else:
        lists = _of_histories(recommender, histories, top, exclude_seen)
    if titles is not None and not any(each.item in titles for found in lists.values() for each in found):
        _warn(f"{names} names none of these items: is its first column the item's id?")
    if as_json:
        records = [_record(who, found, histories.get(who), titles) for who, found in lists.items()]
        typer.echo(json.dumps(records if _of_users(histories) else records[0], indent=2))
        return
    for who, found in lists.items():
        _out.print(_table("for this history" if who is None else f"for user {who}", found, titles))


def _of_histories(
    recommender: Recommender, histories: Mapping[str | None, list[str]], top: int, exclude_seen: bool
) -> dict[str | None, list[Recommendation]]:
    labels = ["the history" if user is None else f"the history of user '{user}'" for user in histories]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownItemsWarning)  # said below, in one line
        found = recommender.recommend_many(histories.values(), top, exclude_seen, labels)
    unknown = recommender.unknown(item for history in histories.values() for item in history)
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        _warn(f"unknown items were left out: {', '.join(unknown[:_SHOWN])}{more}")
    return dict(zip(histories, found, strict=True))


def _of_users(histories: Mapping[str | None, list[str]]) -> bool:
    return bool(histories) and None not in histories


def _record(
    who: str | None, found: Sequence[Recommendation], history: list[str] | None, titles: Mapping[str, str] | None
) -> dict[str, Any]:
    items: list[dict[str, Any]] = [{"item": each.item, "score": each.score} for each in found]
    if titles is not None:
        items = [{"item": each["item"], "name": titles.get(each["item"]), "score": each["score"]} for each in items]
    return {"history": history, "items": items} if who is None else {"user": who, "items": items}


def _table(title: str, found: Sequence[Recommendation], titles: Mapping[str, str] | None) -> Table:
    table = Table(title=Text(title))  # ids and names may look like markup
    table.add_column("rank", justify="right")
    table.add_column("item", overflow="fold")
    if titles is not None:
        table.add_column("name", overflow="fold")
    table.add_column("score", justify="right")
    for rank, (item, score) in enumerate(found, 1):
        name = [] if titles is None else [Text(titles.get(item, ""))]
        table.add_row(str(rank), Text(item), *name, f"{score:.4f}")
    return table


def read_histories(given: str) -> dict[str | None, list[str]]:
    """TrainingItems by user: a list of ids, or a file of one history, belong to nobody (None).

    Args:
        given: ids separated by commas or blanks, or the path of a file with an item a line, oldest first. Where it has
            several columns, a header names them: `item`, and `user` where it holds the histories of several users.

    Raises:
        InputError: no such file, or not of that form.
    """
    path = Path(given)
    ids = [part for part in re.split(r"[,\s]+", given) if part]
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a list that is too long for a name
        there = False
    if not there and len(ids) == 1 and (path.suffix.lower() in _FILES or "/" in given):
        raise InputError(f"--history {given}: there is no such file")
    if not there:
        return {None: ids}
    rows = _rows(path)
    if not rows:
        return {None: []}
    header = [re.sub(r"[^a-z]", "", field.lower()) for field in rows[0][1]]
    item = next((at for at, name in enumerate(header) if name in _ITEM), None)
    user = next((at for at, name in enumerate(header) if name in _USER), None)
    if item is None and len(header) > 1:
        raise InputError(f"{path}, line {rows[0][0]}: several columns need a header with 'item' (and 'user') in it")
    places = [at for at in (user, item or 0) if at is not None]
    histories: dict[str | None, list[str]] = {} if user is not None else {None: []}
    for number, fields in rows if item is None else rows[1:]:
        if len(fields) <= max(places) or not all(fields[at] for at in places):
            raise InputError(f"{path}, line {number}: {'user or item' if user is not None else 'item'} is missing")
        who = None if user is None else fields[user]
        histories.setdefault(who, []).append(fields[item or 0])
    if not histories:
        raise InputError(f"{path} holds a header and no rows: write user and item below it")
    return histories


def read_names(path: Path) -> dict[str, str]:
    """Names by item id: the first two columns of a file.

    Raises:
        InputError: no such file, or one without a second column.
    """
    rows = _rows(path)
    if not rows:
        raise InputError(f"{path} is empty: write an item id and a name in each line")
    for number, fields in rows:
        if len(fields) < 2:
            raise InputError(f"{path}, line {number}: no name; write an item id and a name, as in 'id,name'")
    return {fields[0]: fields[1] for _, fields in rows}


def _rows(path: Path) -> Rows:
    """Number and fields of the lines that are not blank."""
    lines = [(number, line) for number, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
    if not lines:
        return []
    # The first field is an id, so the first line's first separator is the file's: names may hold the others.
    first = {separator: lines[0][1].find(separator) for separator in _SEPARATORS if separator in lines[0][1]}
    separator = min(first, key=lambda each: first[each]) if first else "\t"
    numbers, texts = zip(*lines, strict=True)
    fields: Iterable[list[str]]
    if separator in (",", ";"):
        fields = (next(csv.reader([text], delimiter=separator, skipinitialspace=True)) for text in texts)
    else:  # MovieLens and its like quote nothing
        fields = (text.split(separator) for text in texts)
    return [(number, [field.strip() for field in each]) for number, each in zip(numbers, fields, strict=True)]


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # any byte is a character there


def _warn(message: str) -> None:
    _err.print(f"fedem: {' '.join(message.split())}")
