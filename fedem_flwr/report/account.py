"""In words: how a file was read, what became of its rows, and what of the split was left to chance."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from fedem_flwr.data.times import unit_of
from fedem_flwr.protocol.account import CHANCE_AT, Account
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.protocol.split import EVALUATION_NEGATIVES
from fedem_flwr.report.sections import percent

DATA = "data"
"""Key of the account in a run's summary."""


def account_rows(account: Account, protocol: str, users: int) -> list[tuple[str, str]]:
    """All that is known, as (name, words).

    Args:
        users: kept in the split.
    """
    reading = account.reading
    rows: list[tuple[str, str]] = []
    if reading is not None:
        rows.append(("read as", reading.shape))
        rows += [(each.called, each.taken_for) for each in reading.columns]
        rows += [("note", note) for note in reading.notes]
    rows.append(("rows", rows_text(account)))
    if account.first_time is not None and account.last_time is not None:
        rows.append(("times", f"{moment(account.first_time)} to {moment(account.last_time)}"))
        rows.append(("equal times", ties_text(account, protocol, users) or "none that decide what is held out"))
    if short := short_text(account, users):
        rows.append((f"{EVALUATION_NEGATIVES} negatives", short))
    return rows


def rows_text(account: Account) -> str:
    """Where every row is: "878 read, 812 kept (92 %); dropped: ..."."""
    below = "0 or less" if account.min_rating is None else f"less than {account.min_rating:g}"
    dropped = [
        f"{count:,} ({percent(count / account.rows)}) {words}"
        for count, words in (
            (account.below_rating, f"with a rating of {below}"),
            (account.repeats, "as repeats"),
            (account.of_few, f"of {account.few:,} users with fewer than {account.min_interactions}"),
        )
        if count
    ]
    said = f"{account.rows:,} read, {account.kept:,} kept ({percent(account.kept / max(1, account.rows))})"
    return f"{said}; dropped: {', '.join(dropped)}" if dropped else said


def ties_text(account: Account, protocol: str, users: int) -> str:
    """How many held-out items have their time in common with others, and what decided; empty where none has."""
    if not account.tied_validation:
        return ""
    how = (
        "drawn among their items of the same time"
        if rules_of(protocol).distinct
        else "decided by the order of the file's rows"
    )
    test, validation = (
        f"{count:,} ({percent(count / users)})" for count in (account.tied_test, account.tied_validation)
    )
    return f"the test item of {test} and the validation item of {validation} of {users:,} users are {how}"


def short_text(account: Account, users: int) -> str:
    """How many users have fewer than 99 unseen items, with the chance level that results; empty where none has."""
    if not account.short or account.chance is None:
        return ""
    usual = CHANCE_AT / (EVALUATION_NEGATIVES + 1)
    return (
        f"{account.short:,} ({percent(account.short / users)}) of {users:,} users have fewer than "
        f"{EVALUATION_NEGATIVES} unseen items: among what there is, random scores get HR@{CHANCE_AT} = "
        f"{account.chance:.3f}, not {usual:.3f}"
    )


def moment(value: float) -> str:
    """A time of a data set: a date where the number looks like one, else the number."""
    unit = unit_of(value)
    if unit is None:
        return f"{value:g}"
    when = datetime.datetime.fromtimestamp(value / unit[0], datetime.UTC)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def recorded_rows(summary: Mapping[str, object]) -> list[tuple[str, str]]:
    """`account_rows` of a run's summary; none where it holds no account, or a damaged one."""
    record, users = summary.get(DATA), summary.get("users")
    if not isinstance(record, dict) or not isinstance(users, int) or not users:
        return []
    try:
        return account_rows(Account.of_json(record), str(summary.get("protocol")), users)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError):
        return []
