"""What is known of a file's layout, and the names that columns of interactions go by."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Final

ABSENT: Final = "-"
"""As a column of `Columns`: the file has no such column, whatever it looks like."""

ROLES: Final = ("user", "item", "rating", "time")
SAMPLE_ROWS: Final = 200
"""How many rows are looked at to work out a layout."""
RATING_SCALE: Final = 11
"""Different values of ratings, at most, in a column that is recognised by its values."""
LONGEST_LABEL: Final = 256
"""Characters of a label: they are kept in fixed-width arrays, which one runaway field would blow up."""


@dataclass(frozen=True)
class Columns:
    """Where a file keeps what; None means "detect it".

    Attributes:
        user, item, rating, time: a column number from 0, a name in the header, or `ABSENT` ("-") for
            "there is none".
        separator: a character, "::", or a name (tab, comma, semicolon, pipe, spaces); " " is any blanks.
        header: whether the first line names the columns.
        form: "rows" (one interaction a line), "lists" (one user a line), "jsonl" or "parquet".
        encoding: of a text, by Python's name of it.
        comment: what lines to skip start with; empty: there are none.
        time_format: of dates, as of `strptime`.
        aliases: further names of columns, each with its role: better than any that is known.
        in_order: the rows are in the order of time, whatever their times say; the row's number is then its time.
    """

    user: int | str | None = None
    item: int | str | None = None
    rating: int | str | None = None
    time: int | str | None = None
    separator: str | None = None
    header: bool | None = None
    form: str | None = None
    encoding: str | None = None
    comment: str | None = None
    time_format: str | None = None
    in_order: bool = False
    aliases: tuple[tuple[str, str], ...] = ()

    def but(self, other: Columns) -> Columns:
        """These, but for what another one says."""
        said = {each.name: getattr(other, each.name) for each in fields(self)}
        unsaid = Columns()
        return replace(self, **{name: value for name, value in said.items() if value != getattr(unsaid, name)})

    def given(self) -> dict[str, int | str]:
        """The columns that need no detection, by role; digits in a string count as a number."""
        wanted = {role: getattr(self, role) for role in ROLES if getattr(self, role) is not None}
        if self.in_order:
            wanted["time"] = ABSENT
        return {role: int(at) if isinstance(at, str) and at.isdecimal() else at for role, at in wanted.items()}


def plain(name: str) -> str:
    """A header name without case, punctuation and type suffix: "user_id:token", "userId" -> "userid"."""
    return re.sub(r"[^a-z0-9]", "", name.split(":", maxsplit=1)[0].lower())


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_USERS: Final = _words("customer member reviewer visitor account person reader listener client profile buyer author")
_ITEMS: Final = _words(
    "movie film artist product book song track business game app article poi venue location place recipe course video "
    "news show anime beer content goods album restaurant hotel story listing"
)
_IDS: Final = ("id", "idx", "no", "number", "code")
# Names by role, the better ones first: a name of an earlier group wins over one of a later group.
_NAMES: Final[dict[str, tuple[frozenset[str], ...]]] = {
    "user": (
        frozenset(_words("userid useridx uid userno usernumber")),
        frozenset(word + end for word in _USERS for end in _IDS),
        frozenset(("user", *_USERS)),
        frozenset(_words("username reviewername profilename nickname login email")),
    ),
    "item": (
        frozenset(_words("itemid itemidx iid itemno itemnumber")),
        frozenset(word + end for word in _ITEMS for end in _IDS)
        | frozenset(_words("asin isbn sku stockcode barcode ean gmapid")),
        frozenset(("item", "parentasin", *_ITEMS)),
        frozenset(_words("title itemname movietitle productname booktitle")),
    ),
    "rating": (
        frozenset(_words("rating ratings stars overall userrating")),
        frozenset(_words("score preference")),
        frozenset(_words("weight playcount plays listencount listens count quantity frequency watchratio")),
    ),
    "time": (
        frozenset(_words("timestamp timestamps unixtimestamp unixtime unixreviewtime ts epoch unix timestampms")),
        frozenset(_words("time datetime createdat eventtime utc when")),
        frozenset(_words("date day reviewtime tdat reviewdate created")),
    ),
}
_RATING_END: Final = re.compile(r"(rating|ratings|stars|score)$")
_NO_RATING: Final = re.compile(r"avg|average|mean|num|count|total|critic|helpful|imdb")
_TIME_END: Final = re.compile(r"(time|timestamp|date|datetime|utc)$")
_TIME_AT: Final = re.compile(r"[a-z](_at|At|-at| at)$")
_NO_TIME: Final = re.compile(r"birth|release|publi|expir|runtime|playtime|sometime|lifetime|duration")


def rank(role: str, name: str) -> int | None:
    """How good a name is for a role, 0 the best; None where it says nothing of it."""
    bare = plain(name)
    for place, names in enumerate(_NAMES[role]):
        if bare in names:
            return place
    if role == "rating" and _RATING_END.search(bare) and not _NO_RATING.search(bare):
        return len(_NAMES[role])
    if role == "time" and (_TIME_END.search(bare) or _TIME_AT.search(name.strip())) and not is_other_time(name):
        return len(_NAMES[role])
    return None


def is_other_time(name: str) -> bool:
    """Whether a name speaks of a time, but not of that of the interaction: of birth, of release, ..."""
    return bool(_NO_TIME.search(plain(name)))


def is_known(name: str) -> bool:
    """Whether a name is a good one for a user or an item."""
    return any((place := rank(role, name)) is not None and place < 3 for role in ("user", "item"))
