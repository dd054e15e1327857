"""Parts of the report that not every run has: what the lists hold, and how settings were tuned.

All is read from ``diagnostics.json``; what is missing or not of the right form gives nothing to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedem_flwr.report.labels import setting_text, settings_text
from fedem_flwr.report.run_directory import number_at
from fedem_flwr.report.tables import ABSENT

_GRIDS = ("search", "tuning", "mixing")  # of tables, of the fold-in, and of what is added to its scores
_HEADS = {"ndcg@10": "NDCG@10", "hr@10": "HR@10"}


def lists_text(diagnostics: Mapping[str, object]) -> str:
    """Say how much of the catalogue the lists cover and how popular their items are; empty if that is not recorded."""
    section = diagnostics.get("lists")
    coverage = number_at(section, "coverage")
    listed, own = (number_at(section, f"popularity_{name}") for name in ("recommended", "consumed"))
    gini, novelty, tail = (number_at(section, name) for name in ("gini", "novelty", "long_tail"))
    said = []
    if coverage is not None:
        said.append(f"{percent(coverage)} of the catalogue is in at least one user's top 10.")
    if listed is not None and own is not None:
        said.append(
            f"An item in a list was used by {percent(listed)} of the users in training, "
            f"one of the users' own training items by {percent(own)}."
        )
    if gini is not None and novelty is not None and tail is not None:
        said.append(
            f"{percent(tail)} of what is listed is among the least popular four fifths of the catalogue; the Gini of "
            f"exposure is {gini:.3g} (0: every item is in as many lists), novelty {novelty:.3g} bits."
        )
    return " ".join(said)


def guarantee_rows(summary: Mapping[str, object]) -> list[tuple[str, str]]:
    """Say what local differential privacy came to, as (name, words); nothing for a run without noise."""
    section = summary.get("ldp")
    each, composed, releases = (number_at(section, name) for name in ("round", "composed", "releases"))
    if each is None or composed is None or releases is None:
        return []
    delta, paper = number_at(section, "delta"), number_at(section, "paper")
    rows = [
        ("ε of one upload", f"{each:.4g}"),
        (f"ε of a user's {releases:,.0f} uploads", f"{composed:.4g}" + (f" (δ = {delta:g})" if delta else "")),
    ]
    rows += [] if paper is None else [("the paper's S / δ, a round", f"{paper:.3g}")]
    limit, may, held, ended = (number_at(section, name) for name in ("limit", "allowed", "held_back", "ended"))
    if limit is None or may is None or held is None:
        return rows
    who = "" if ended is None else f"; {ended:,.0f} users have sent all of them"
    return [*rows, ("limit of ε", f"{limit:g}: {may:,.0f} uploads of a user{who}; {held:,.0f} were held back")]


def percent(share: float) -> str:
    """Return a share as per cent, with three significant digits below ten."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


@dataclass(frozen=True)
class Tuning:
    """The grid that settings were chosen from.

    Attributes:
        heads: what the columns are called.
        rows: the cells of each row, and whether it is the chosen one.
        sentence: what was chosen, and where it was measured.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], bool], ...]
    sentence: str


def tunings_of(diagnostics: Mapping[str, object]) -> list[Tuning]:
    """Read the grids that settings were chosen from; none if nothing was tuned."""
    return [grid for name in _GRIDS if (grid := _tuning_of(diagnostics.get(name))) is not None]


def _tuning_of(section: object) -> Tuning | None:
    stored = section.get("rows") if isinstance(section, Mapping) else None
    rows = [row for row in stored if isinstance(row, Mapping)] if isinstance(stored, Sequence) else []
    if not isinstance(section, Mapping) or not rows:
        return None
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    given = section.get("chosen")
    chosen = {name: value for name, value in given.items() if name not in _HEADS} if isinstance(given, Mapping) else {}
    settings = {name: value for name, value in chosen.items() if name in names and name != "users"}
    marked = [bool(settings) and all(row.get(name) == value for name, value in settings.items()) for row in rows]
    number = number_at(section, "round")
    sentence = f"Chosen: {settings_text(chosen)}." if chosen else "Nothing was chosen."
    if number is not None:
        sentence += f" Measured in round {number:.0f}."
    return Tuning(
        heads=tuple(_HEADS.get(name, name.replace("_", "-")) for name in names),
        rows=tuple(
            (tuple(_cell(name, row.get(name)) for name in names), mark) for row, mark in zip(rows, marked, strict=True)
        ),
        sentence=sentence,
    )


def _cell(name: str, value: object) -> str:
    if value is None:
        return ABSENT
    if name == "users" and isinstance(value, int | float):
        return f"{value:,.0f}"
    return f"{value:.4f}" if name in _HEADS and isinstance(value, float) else setting_text(value)
