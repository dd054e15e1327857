"""Errors whose message is meant for a person: one line that says what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from fedem_flwr.text import visible

_SHOWN = 12  # valid names listed at most


class FedemError(Exception):
    """A failure that the program foresaw; shown as one line, never as a traceback.

    What others have written and the message quotes (ids, names, reasons) is made safe to show.
    """

    def __init__(self, message: str) -> None:
        super().__init__(visible(message, keep="\n\t"))


class Interrupted(FedemError):
    """Somebody has stopped what was going on, and is told how to go on."""


class InputError(FedemError):
    """Bad input: a file, an option or a configuration value. The command line exits with code 2."""


class NotForTheseData(InputError):
    """What was asked for cannot be had of data that are right in themselves, say an order of data without times."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest valid name, or the first few valid names if none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"; valid: {', '.join(names[:_SHOWN])}{more}" if names else ""
