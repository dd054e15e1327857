"""What `fedem recommend` does: read histories and names, and show lists."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from fedem_flwr.cli.histories import read_histories
from fedem_flwr.cli.options import options_tree
from fedem_flwr.config import load_resolved
from fedem_flwr.data.opening import opened
from fedem_flwr.data.reading import Reading
from fedem_flwr.data.texts import Style, records
from fedem_flwr.errors import InputError
from fedem_flwr.report.run_directory import CONFIG, SUMMARY
from fedem_flwr.serving.recommender import Recommendation, Recommender, UnknownItemsWarning
from fedem_flwr.terminal import console

_SEPARATORS = ("::", "|", "\t", ",", ";")
_SHOWN = 10  # unknown items named at most

_out = console()
_err = console(stderr=True, soft_wrap=True)


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
    settings: Sequence[str] = (),
) -> None:
    """`fedem recommend`: lists for a user of the run, for a history, or for each user of a file of histories.

    Raises:
        InputError: not exactly one of `user` and `history`, a file that cannot be read, or what `Recommender` raises.
    """
    if (user is None) == (history is None):
        raise InputError("give exactly one of --user (of the run) and --history (item ids, or a file of them)")
    said = _of_data(settings, with_file=history is not None)
    titles = None if names is None else read_names(names)
    recommender = Recommender.load(run_dir, trust=trusted)
    config = load_resolved(run_dir / CONFIG)
    histories = {} if history is None else read_histories(history, config, trained_on(run_dir), said)
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


def _of_data(settings: Sequence[str], *, with_file: bool) -> Mapping[str, Any]:
    tree = options_tree({}, settings)
    if wrong := [section for section in tree if section != "data"]:
        raise InputError(f"--set {wrong[0]}: the run is finished; what can be set is how --history is read (data.*)")
    if tree and not with_file:
        raise InputError("--set says how the file of --history is read; leave it out without one")
    said: Mapping[str, Any] = tree.get("data", {})
    return said


def trained_on(run_dir: Path) -> Reading | None:
    """How a run's data were read; None where they were no file, or the run says nothing of it."""
    try:
        summary = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
        return Reading.of_json(summary["data"]["reading"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_histories(
    recommender: Recommender, histories: Mapping[str | None, list[str]], top: int, exclude_seen: bool
) -> dict[str | None, list[Recommendation]]:
    unknown = recommender.unknown(item for history in histories.values() for item in history)
    nothing_known = set(unknown)
    lost = [user for user, history in histories.items() if nothing_known.issuperset(history)]
    if lost and len(lost) < len(histories):  # one user of many is no reason to leave the others without an answer
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        _warn(f"no item of these users is known, so they get no list: {', '.join(map(str, lost[:_SHOWN]))}{more}")
        histories = {user: history for user, history in histories.items() if user not in lost}
    labels = ["the history" if user is None else f"the history of user '{user}'" for user in histories]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownItemsWarning)  # said below, in one line
        found = recommender.recommend_many(histories.values(), top, exclude_seen, labels)
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


def read_names(path: Path) -> dict[str, str]:
    """Names by item id: the first two columns of a file.

    Raises:
        InputError: no such file, or one without a second column.
    """
    text = _text(path)
    first = next((line for line in text.split("\n") if line.strip()), "")
    if not first:
        raise InputError(f"{path} is empty: write an item id and a name in each line")
    # The first field is an id, so the first line's first separator is the file's: names may hold the others.
    places = {separator: first.find(separator) for separator in _SEPARATORS if separator in first}
    separator = min(places, key=lambda each: places[each]) if places else "\t"
    names = {}
    for record in records(
        path, text, Style(separator, quoting=separator in ",;")
    ):  # MovieLens and its like quote nothing
        if len(record.fields) < 2:
            raise InputError(f"{path}, line {record.line}: no name; write an item id and a name, as in 'id,name'")
        names[record.fields[0]] = record.fields[1]
    return names


def _text(path: Path) -> str:
    with opened(path) as file:
        data = b"".join(iter(partial(file.read, 1 << 20), b""))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # any byte is a character there
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _warn(message: str) -> None:
    _err.print(f"fedem: {' '.join(message.split())}")
