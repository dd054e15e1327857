"""What became of every row of a data set, and what of a split was left to chance."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from fedem_flwr.data.reading import Reading

CHANCE_AT: Final = 10
"""The length of list that the chance level is of."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """The rows of a data set, each in one of four places, and figures of the split that was made of those kept.

    Attributes:
        rows: of the data set.
        below_rating: rows dropped for their rating: 0 or less, or less than `min_rating`.
        repeats: rows dropped (``strict``) as later ones of a (user, item) pair.
        of_few: rows dropped because their user had fewer than `min_interactions` left; `few` counts these users.
        kept: rows in the split.
        min_rating: what counts as positive where that was set.
        min_interactions: rows that a kept user has at least.
        first_time, last_time: of the kept rows, in the data set's own unit; None without times.
        tied_test, tied_validation: users whose held-out item has its time in common with one that it could have changed
            places with. ``strict`` drew among them, ``paper`` took the file's order.
        short: users with fewer than 99 items left for evaluation negatives.
        chance: what random scores get on the average as hit rate of 10 among a user's evaluation negatives; 0.1 where
            everybody has 99. None where it was not counted.
        reading: how the file was read; None where there was none.
    """

    rows: int
    below_rating: int
    repeats: int
    of_few: int
    few: int
    kept: int
    min_rating: float | None
    min_interactions: int
    first_time: float | None
    last_time: float | None
    tied_test: int
    tied_validation: int
    short: int | None = None
    chance: float | None = None
    reading: Reading | None = None

    def as_json(self) -> dict[str, Any]:
        """What goes into a file: no row of the data is in it."""
        record = asdict(self)
        record["reading"] = None if self.reading is None else self.reading.as_json()
        return record

    @classmethod
    def of_json(cls, record: dict[str, Any]) -> Account:
        """The account that a file holds; unknown keys, of a later version, are left out.

        Raises:
            KeyError, TypeError: it is not of that form.
        """
        known = {each.name: record[each.name] for each in fields(cls) if each.name in record}
        reading = known.pop("reading", None)
        return cls(**known, reading=None if reading is None else Reading.of_json(reading))
