"""What controls are called and in which order they are shown: from the weakest to the strongest, local-only last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedem_flwr.text import visible

CONTROL_LABELS = {
    "random": "random",
    "popularity": "popularity",
    "popularity_recent": "popularity of late",
    "item_knn": "item-kNN",
    "ease": "EASE",
    "ease_recent": "EASE-recent",
    "local_only": "local-only",
}
CENTRALISED = " (centralised)"  # behind the name of what is trained where all data lie in one place
_LISTS = {"full": "whole catalogue", "sampled99": "99 negatives"}
_LAST = ("local_only",)  # the method itself, without federation; controls that are not known come before it


@dataclass(frozen=True)
class ControlRow:
    """A control as it is shown.

    Attributes:
        label: its name.
        settings: those that were chosen for it, in words; empty if there are none.
        record: its figures, None where it was not measured.
    """

    label: str
    settings: str
    record: Mapping[str, object] | None


def control_label(key: str) -> str:
    """Return a control's name; for one that is not known, its key."""
    return CONTROL_LABELS.get(key, visible(key.replace("_", "-")))


def settings_text(settings: object) -> str:
    """Return settings in words: ``{"half_life": 10, "lambda": 400.0}`` is ``half-life 10, lambda 400``.

    Where each list has its own, ``{"full": {...}, "sampled99": {...}}``, they are named if they differ.
    """
    if not isinstance(settings, Mapping):
        return ""
    if settings and all(isinstance(value, Mapping) for value in settings.values()):
        texts = {str(way): settings_text(value) for way, value in settings.items()}
        if len(set(texts.values())) == 1:
            return next(iter(texts.values()))
        return "; ".join(f"{_LISTS.get(way, way)}: {text}" for way, text in texts.items())
    return ", ".join(
        f"{str(name).replace('_', '-')} {setting_text(value)}" for name, value in settings.items() if value is not None
    )


def setting_text(value: object) -> str:
    """Return one setting as text, numbers without needless digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def left_out(controls: object) -> list[str]:
    """Return a sentence for each control that was left out, with the reason."""
    given = controls if isinstance(controls, Mapping) else {}
    skipped = {
        str(key): record["skipped"]
        for key, record in given.items()
        if isinstance(record, Mapping) and "skipped" in record
    }
    return [f"Control {visible(key)} was left out: {visible(str(why))}." for key, why in skipped.items()]


def sample_text(summary: Mapping[str, object]) -> str:
    """Say that rounds were looked at with a sample of the users, and what that means for the figures; else nothing."""
    sampled, users, controls = summary.get("sampled_users"), summary.get("users"), summary.get("controls")
    if not sampled or not isinstance(sampled, int) or not isinstance(users, int):
        return ""
    given = controls if isinstance(controls, Mapping) else {}
    on_some = [control_label(str(key)) for key, one in given.items() if isinstance(one, Mapping) and one.get("users")]
    said = (
        f"Rounds were evaluated and chosen, and settings tuned, on {sampled:,} of {users:,} users, drawn by the seed "
        "and the same in every round. What is reported of the method is measured on everybody"
    )
    return f"{said}; {', '.join(on_some)} on those {sampled:,} users." if on_some else f"{said}."


def control_rows(controls: object) -> list[ControlRow]:
    """Return all controls of a summary in the order in which they are shown."""
    given = controls if isinstance(controls, Mapping) else {}
    known = [key for key in CONTROL_LABELS if key in given and key not in _LAST]
    others = [str(key) for key in given if key not in CONTROL_LABELS]
    rows = []
    for key in (*known, *others, *(key for key in _LAST if key in given)):
        record = given[key] if isinstance(given[key], Mapping) else None
        place = CENTRALISED if (record or {}).get("centralised") is True else ""  # the fitted ones all are
        rows.append(ControlRow(control_label(key) + place, settings_text((record or {}).get("settings")), record))
    return rows
