"""Which notations a text that looks like a date could be in, by its shape; nothing is parsed here."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Final

# Of dates, each before the clock; a later one is as good as an earlier one.
_DATES: Final = (
    *("%Y/%m/%d", "%Y.%m.%d", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y-%m-%d"),
    *("%d/%m/%y", "%m/%d/%y", "%y/%m/%d", "%d.%m.%y", "%d-%m-%y", "%m-%d-%y", "%y-%m-%d"),
    *("%d %b %Y", "%d %B %Y", "%b %d %Y", "%B %d %Y", "%b %d, %Y", "%B %d, %Y", "%m %d, %Y"),
    *("%d-%b-%Y", "%d-%B-%Y", "%d-%b-%y", "%d/%b/%Y", "%Y-%b-%d", "%Y %b %d"),
)
_YEAR_LAST: Final = ("%b %d %H:%M:%S %Y", "%b %d %H:%M:%S %z %Y", "%b %d %H:%M:%S UTC %Y", "%b %d %H:%M:%S GMT %Y")
_DIGITS: Final = {
    **dict.fromkeys(("%Y%m%d", "%d%m%Y", "%m%d%Y"), 8),
    **dict.fromkeys(("%y%m%d", "%d%m%y", "%m%d%y"), 6),
    **{"%Y%m%d%H%M": 12, "%Y%m%d%H%M%S": 14},
}
_FEWEST_SHORT: Final = 5  # different values of six digits: one in twenty is a date by chance
_PATTERNS: Final = {
    "Y": r"\d{4}",
    "y": r"\d{2}",
    "b": r"[^\W\d_]{3}",
    "B": r"[^\W\d_]{3,}",
    "z": r"(?:Z|[+-]\d{2}:?\d{2})",
    **dict.fromkeys("dmHMS", r"\d{1,2}"),
}
_WEEKDAY: Final = re.compile(r"(?:(?P<short>[^\W\d_]{3})|[^\W\d_]{6,9})(?P<comma>,?) ")
_CLOCK: Final = re.compile(
    r"(?P<gap>[ :T]|, )(?P<hour>\d{1,2}):\d{2}(?P<second>:\d{2})?(?:(?P<point>[.,])\d{1,9})?"
    r"(?:(?P<blank> ?)(?P<half>[AaPp][Mm]))?(?:(?P<before> ?)(?P<zone>UTC|GMT|Z|[+-]\d{2}:?\d{2}))?"
)
_HINT: Final = re.compile(
    r"\d{1,2}:\d{2}|\d{4}-W\d|\d{1,4}[-/.]\d{1,2}[-/.]\d{2,4}|\d{4}[-/]\d{2}\b|[^\W\d_]{3}\D+\d{4}\b"
)
_HOURS: Final = re.compile(r"\d{1,2}:\d{2}(:\d{2}([.,]\d{1,9})?)?( ?[AaPp][Mm])?")


def notations_like(texts: Sequence[str]) -> tuple[str, ...]:
    """Notations of `strptime` that have the shape of one of some texts."""
    shapes = {re.sub(r"\d", "0", text): text for text in texts}
    return tuple(dict.fromkeys(each for text in shapes.values() for each in _of_shape(text)))


def notations_of_digits(texts: Sequence[str]) -> tuple[str, ...]:
    """Notations without separators in which numbers of so many digits could be dates.

    Six digits count from a few different ones on, and seven as eight whose first is 0.
    """
    widths = {len(text) for text in texts}
    if not texts or not all(text.isascii() and text.isdigit() for text in texts):
        return ()
    if widths == {7} or (widths == {6} and len(set(texts)) < _FEWEST_SHORT):
        return ()
    return tuple(
        notation for notation, width in _DIGITS.items() if widths == {width} or (widths == {7, 8} and width == 8)
    )


def digits_in(notation: str) -> int:
    """How many digits a date has in a notation without separators; 0 for others."""
    return _DIGITS.get(notation, 0)


def is_clock(text: str) -> bool:
    """Whether a text is a time of day, without a date."""
    return _HOURS.fullmatch(text) is not None


def like_times(texts: Sequence[str]) -> str:
    """What times some texts look like that are in no notation; empty where they look like none."""
    if all(map(is_clock, texts)):
        return "times of day"
    if all(len(text) <= 40 and _HINT.search(text) for text in texts):
        return f"times, in a notation that is not known, as '{texts[0]}' (data.time_format)"
    return ""


def _of_shape(text: str) -> Iterator[str]:
    weekday = _WEEKDAY.match(text)
    prefix = "" if weekday is None else f"{'%a' if weekday['short'] else '%A'}{weekday['comma']} "
    rests = [("", text)] if weekday is None else [("", text), (prefix, text[weekday.end() :])]
    for before, rest in rests:
        for notation in _YEAR_LAST:
            if _pattern(notation).fullmatch(rest):
                yield before + notation
        clocks = [(rest, "")] + [
            (rest[: at.start()], _clock(at)) for at in _CLOCK.finditer(rest) if at.end() == len(rest)
        ]
        for date, clock in clocks:
            yield from (before + notation + clock for notation in _DATES if _pattern(notation).fullmatch(date))


def _clock(found: re.Match[str]) -> str:
    hour = "%I" if found["half"] else "%H"
    second = "" if not found["second"] else ":%S"
    point = "" if not found["point"] else f"{found['point']}%f"
    half = "" if not found["half"] else f"{found['blank']}%p"
    zone = found["zone"] or ""
    zone = "" if not zone else found["before"] + (zone if zone in ("UTC", "GMT") else "%z")
    return f"{found['gap']}{hour}:%M{second}{point}{half}{zone}"


@functools.cache
def _pattern(notation: str) -> re.Pattern[str]:
    """What a notation's dates look like."""
    return re.compile(
        re.sub(r"%(\w)", lambda directive: _PATTERNS[directive[1]], re.escape(notation).replace("\\%", "%"))
    )
