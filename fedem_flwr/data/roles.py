"""Which column is the user, the item, the rating, the time: as given, by name, by values, by position; or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from fedem_flwr.data.columns import ABSENT, RATING_SCALE, ROLES, Columns, is_other_time, rank
from fedem_flwr.data.notations import like_times
from fedem_flwr.data.parts import check_parts
from fedem_flwr.data.reading import ColumnRead, How, dates_in
from fedem_flwr.data.times import AS_NUMBERS, are_unix_times, is_number, notation_of, unit_name
from fedem_flwr.errors import InputError, suggest

_MOST_WITHOUT_NAMES: Final = 4  # columns of a table whose header says nothing: user, item, rating, time
_BEYOND_RATINGS: Final = 1e8


def shortened(text: str) -> str:
    """One printable line of at most 60 characters."""
    line = "".join(c if c.isprintable() else " " for c in text).strip()
    return line if len(line) <= 60 else line[:57] + "..."


@dataclass(frozen=True)
class Roles:
    """What was found.

    Attributes:
        at: role to column number; rating and time only where there are such columns, and user where it is optional.
        columns: all columns, for `Reading`.
        notation: of the times, or several of which all rows tell which one it is; None where they are numbers, or there
            are none.
        unit: of times that are numbers since 1970; empty where they are not.
        watched: columns of a text that are empty in the first rows, and would have a role if they were not.
    """

    at: dict[str, int]
    columns: tuple[ColumnRead, ...]
    notation: str | None
    unit: str = ""
    watched: tuple[int, ...] = ()


@dataclass
class _Search:
    """The columns of a table while their roles are looked for.

    Attributes:
        where, seen: what errors begin with, and what they call the header, or the first row.
        names: of the columns; None without a header.
        values: (width) of each column, some fields as text.
    """

    where: str
    seen: str
    names: list[str] | None
    values: list[list[str]]
    known: Columns
    at: dict[str, int] = field(default_factory=dict)
    how: dict[str, How] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    notations: dict[int, str | None] = field(default_factory=dict)

    @property
    def free(self) -> list[int]:
        """Columns without a role in which there is something."""
        return [i for i, each in enumerate(self.values) if i not in self.at.values() and any(each)]

    def filled(self, column: int) -> list[str]:
        """What is in a column."""
        return [value for value in self.values[column] if value]

    @property
    def empty(self) -> tuple[int, ...]:
        """Columns in which there is nothing yet, though rating or time is looked for there."""
        wanted = [role for role in ("rating", "time") if self.is_open(role)]
        nothing = [i for i, each in enumerate(self.values) if i not in self.at.values() and not any(each)]
        by_place = self.names is None or len(self.values) <= _MOST_WITHOUT_NAMES
        return tuple(
            i for i in nothing if wanted and (by_place or any(self.rank(role, i) is not None for role in wanted))
        )

    def called(self, column: int) -> str:
        return f"column '{self.names[column]}'" if self.names else f"column {column}"

    def rank(self, role: str, column: int) -> int | None:
        """How good a column's name is for a role; one that was told to be good is the best."""
        name = self.names[column] if self.names else ""
        return -1 if (name, role) in self.known.aliases else rank(role, name)

    def set(self, role: str, column: int, how: How) -> None:
        self.at[role], self.how[role] = column, how

    def is_open(self, role: str) -> bool:
        """Whether the role was not given, and has no column yet."""
        return (
            role not in self.at and getattr(self.known, role) is None and not (role == "time" and self.known.in_order)
        )

    def is_time(self, column: int) -> bool:
        return are_unix_times(self.filled(column)) or self.notation(column) is not None

    def is_large(self, column: int) -> bool:
        """Whether there are numbers alone, larger than ratings are on any scale."""
        values = self.filled(column)
        return bool(values) and all(is_number(value) and float(value) >= _BEYOND_RATINGS for value in values)

    def is_numeric(self, column: int) -> bool:
        values = self.filled(column)
        return bool(values) and sum(map(is_number, values)) >= len(values) / 2

    def notation(self, column: int) -> str | None:
        if column not in self.notations:
            self.notations[column] = notation_of(self.values[column], self.known.time_format)
        return self.notations[column]


def find_roles(
    where: str,
    seen: str,
    names: list[str] | None,
    rows: Sequence[Sequence[str]],
    width: int,
    columns: Columns,
    needed: tuple[str, ...] = ("user", "item"),
) -> Roles:
    """Which column is what: as given, else by the names in a header, else by values and position.

    Args:
        where: what errors begin with.
        seen: what they call the header, or the first row.
        names: of the columns; None without a header.
        rows: some, as text.
        width: how many columns there are.
        needed: roles that must be found.

    Raises:
        InputError: a needed column is not there, `columns` names one that is not there, or two would do equally well.
    """
    values = [[row[i].strip(" ") for row in rows if len(row) > i] for i in range(width)]
    search = _Search(where, seen, names, values, columns)
    _take_given(search)
    if names is not None:
        _take_names(search)
    if names is None or ("user" in needed and not {"user", "item"} & search.at.keys()):
        _take_positions(search)
    for role in needed:
        if role not in search.at:
            raise InputError(
                f"{where}: no {role} column in {seen}; say which column is the {role} (--set data.{role}_column=...)"
            )
    _look_for_a_time(search)
    _check_parts(search)
    return _found(search)


def _check_parts(search: _Search) -> None:
    """Nothing is asked where the time was given; columns of another role, or of a birth or a release, are no parts."""
    if search.known.time is not None or search.known.in_order:
        return
    time = search.at.get("time")
    others = [search.filled(i) if i == time or i in search.free else [] for i in range(len(search.values))]
    names = [n if others[i] and not is_other_time(n) else "" for i, n in enumerate(search.names or [""] * len(others))]
    check_parts(search.where, names, others, time, None if time is None else search.notation(time))


def _found(search: _Search) -> Roles:
    time = search.at.get("time")
    notation, unit = None, ""
    if time is not None:
        given = search.known.time_format
        notation = given if given not in (None, AS_NUMBERS) else search.notation(time)
        numbers = [value for value in search.filled(time) if is_number(value)]
        unit = "" if notation is not None else next(filter(None, (unit_name(float(value)) for value in numbers)), "")
    roles = {column: role for role, column in search.at.items()}
    reads = []
    for number, values in enumerate(search.values):
        name = shortened(search.names[number]) if search.names else ""
        read = ColumnRead(number, name, examples=tuple(map(shortened, values[:2])))
        if number in roles:
            read = replace(read, role=roles[number], how=search.how[roles[number]])
            if number == time and notation is not None:
                read = replace(read, note=dates_in(notation))
        else:
            read = replace(read, note=search.notes.get(number) or ("" if any(values) else "empty"))
        reads.append(read)
    return Roles(search.at, tuple(reads), notation, unit, search.empty)


def _take_given(search: _Search) -> None:
    width = len(search.values)
    for role, wanted in search.known.given().items():
        if wanted == ABSENT:
            continue
        if isinstance(wanted, int):
            if not 0 <= wanted < width:
                raise InputError(f"{search.where}: no column {wanted} for the {role}; the columns are 0 to {width - 1}")
            search.set(role, wanted, "given")
        elif search.names is None:
            raise InputError(
                f"{search.where}: no header to look up the {role} column '{wanted}' in; give a column number"
            )
        elif wanted in search.names:
            search.set(role, search.names.index(wanted), "given")
        else:
            raise InputError(f"{search.where}: no column '{wanted}' in the header{suggest(wanted, search.names)}")
    for column, count in Counter(search.at.values()).items():
        if count > 1:
            roles = " and ".join(role for role in search.at if search.at[role] == column)
            raise InputError(f"{search.where}: column {column} is given as {roles}; give each its own column")


def _take_names(search: _Search) -> None:
    """The best name for each role; two that are as good as each other are refused."""
    assert search.names is not None
    for role in ROLES:
        ranks = {i: place for i in search.free if (place := search.rank(role, i)) is not None}
        if role == "time" and any(map(search.is_time, ranks)):
            ranks = {i: place for i, place in ranks.items() if search.is_time(i)}
        if not search.is_open(role):
            for column in ranks:
                search.notes.setdefault(column, f"though it is called like a {role}")
            continue
        best = [i for i, place in ranks.items() if place == min(ranks.values())]
        if len(best) > 1:
            raise _ambiguous(search, role, best)
        for column in ranks:
            if column in best:
                search.set(role, column, "name")
            else:
                search.notes.setdefault(column, f"though it is called like a {role}")


def _ambiguous(search: _Search, role: str, columns: Sequence[int]) -> InputError:
    first, second = columns[:2]
    setting = search.names[first] if search.names else first
    none = "" if role in ("user", "item") else f", or '{ABSENT}' for none"
    return InputError(
        f"{search.where}: {search.called(first)} and {search.called(second)} could both be the {role}; say which "
        f"(--set data.{role}_column={setting}{none})"
    )


def _take_positions(search: _Search) -> None:
    """User and item in this order, then a column that looks like times, then ratings."""
    if search.names is not None and len(search.values) > _MOST_WITHOUT_NAMES:
        return  # a table of something else, for all that is known
    for role in ("user", "item"):
        if search.is_open(role) and search.free:
            column = search.free[0]
            later_times = any(search.is_time(other) for other in search.free[1:])  # then large numbers here are ids
            if len(search.values) > 2 and search.is_time(column) and not later_times:
                raise InputError(
                    f"{search.where}: {search.called(column)} looks like times, and stands where the {role} is looked "
                    f"for; say which column is the {role} (--set data.{role}_column=...)"
                )
            search.set(role, column, "position")
    timed = [column for column in search.free if search.is_time(column) or search.is_large(column)]
    if search.is_open("time") and timed:
        if len(timed) > 1:
            raise _ambiguous(search, "time", timed)
        search.set("time", timed[0], "values")
    wanted = [role for role in ("rating", "time") if search.is_open(role)]
    numeric = [column for column in search.free if search.is_numeric(column)]
    if "rating" in wanted and len(search.values) > _MOST_WITHOUT_NAMES and len(numeric) > len(wanted):
        raise _ambiguous(search, "rating", numeric)
    for role in wanted:
        if search.free:
            search.set(role, search.free[0], "position")


def _look_for_a_time(search: _Search) -> None:
    """A column of times under a name that nobody knows is not passed over in silence."""
    for column, name in enumerate(search.names or ()):
        if column not in search.free:
            continue
        if search.is_open("time"):
            like = (
                "times, under a name that does not say so"
                if search.is_time(column)
                else like_times(search.filled(column))
            )
            if like.startswith("times, ") and not is_other_time(name):
                raise InputError(
                    f"{search.where}: {search.called(column)} looks like {like}; if it is when user met item: --set "
                    f"data.time_column={name}, else --set data.time_column={ABSENT}"
                )
            if like:
                search.notes[column] = f"though it looks like {like.split(', ')[0]}"
                continue
        if search.is_open("rating") and search.is_numeric(column):
            distinct = set(search.filled(column))
            if len(distinct) <= RATING_SCALE < len(search.values[column]):
                search.notes.setdefault(column, f"if these are ratings: --set data.rating_column={name}")
