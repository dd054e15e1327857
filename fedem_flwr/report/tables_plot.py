"""The picture of `diagnostics.tables`: one user's own, received and merged item table in a plane (FedEM's Figure 5)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedem_flwr.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    ImageFormat,
    NothingToDrawError,
    image_bytes,
    numbers,
    panels,
)
from fedem_flwr.report.run_directory import Json, number_at

_SHOWN = (("local", GREEN, "As it trained it"), ("global", ORANGE, "As it received it"), ("merged", BLUE, "Merged"))
_PAIRS = {"local global": "own and received", "local merged": "own and merged", "merged global": "merged and received"}


def tables_text(diagnostics: Json) -> str:
    """What the picture shows, in words and numbers; empty where there is none."""
    section = diagnostics.get("tables")
    if not isinstance(section, Mapping):
        return ""
    items, catalogue = number_at(section, "items"), number_at(section, "catalogue")
    some = "" if items == catalogue else f" ({items:.0f} of {catalogue:.0f} items: the user's own and a sample)"
    text = (
        f"The item table of one user ({section.get('user')}, drawn by the seed) as its device trained it, as it "
        f"received it, and merged, after the last round{some}: one t-SNE of all three. Coloured: the items that the "
        "user trained on."
    )
    far = [
        f"{words} {every:.3g} ({mine:.3g})"
        for pair, words in _PAIRS.items()
        if (every := number_at(section, "apart", pair)) is not None
        and (mine := number_at(section, "apart_mine", pair)) is not None
    ]
    if not far:
        return text
    return f"{text} Mean distance of an item's rows in the tables themselves (of the user's own): {', '.join(far)}."


def tables_picture(section: object, *, image_format: ImageFormat = "svg") -> bytes:
    """Draw ``diagnostics["tables"]``: a panel for each table, in the same plane."""
    stored = section if isinstance(section, Mapping) else {}
    if stored.get("received") is False:
        raise NothingToDrawError(f"user {stored.get('user')} had received no table")
    points = stored.get("points")
    found = {
        name: numbers(points.get(name) if isinstance(points, Mapping) else None, "the tables' points", 2)
        for name, *_ in _SHOWN
    }
    mine = np.asarray(stored.get("mine"), dtype=np.bool_)
    if any(each.shape != (len(mine), 2) for each in found.values()):
        raise NothingToDrawError("the tables' points are of different items")
    every = np.concatenate(list(found.values()))
    low, high = every.min(0), every.max(0)
    edge = 0.03 * (high - low) + 1e-9
    with panels(len(_SHOWN)) as (figure, axes):
        for axis, (name, colour, title) in zip(axes, _SHOWN, strict=True):
            others, own = found[name][~mine], found[name][mine]
            axis.scatter(others[:, 0], others[:, 1], s=4, color=GREY, alpha=0.35, linewidths=0, rasterized=True)
            axis.scatter(own[:, 0], own[:, 1], s=14, color=colour, linewidths=0)
            axis.set(title=title, xticks=[], yticks=[])
            axis.set_xlim(low[0] - edge[0], high[0] + edge[0])
            axis.set_ylim(low[1] - edge[1], high[1] + edge[1])
        return image_bytes(figure, image_format)
