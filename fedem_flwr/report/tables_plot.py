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

_SHOWN = (("local", GREEN, "its own"), ("global", ORANGE, "received"), ("merged", BLUE, "merged"))


def tables_text(diagnostics: Json) -> str:
    """What the picture shows, in words and numbers; empty where there is none."""
    section = diagnostics.get("tables")
    if not isinstance(section, Mapping):
        return ""
    items, catalogue = number_at(section, "items"), number_at(section, "catalogue")
    far = {name: number_at(section, "apart", name) for name in ("local global", "local merged", "merged global")}
    some = "" if items == catalogue else f" ({items:.0f} of {catalogue:.0f} items: the user's own and a sample)"
    text = (
        f"The item table of one user ({section.get('user')}, drawn by the seed) as its device trained it, as it "
        f"received it, and merged, after the last round{some}: t-SNE of all three together. Right: the items that the "
        "user trained on."
    )
    if any(each is None for each in far.values()):
        return text
    return (
        f"{text} Mean distance of an item's rows in the tables themselves: own and received "
        f"{far['local global']:.3g}, own and merged {far['local merged']:.3g}, merged and received "
        f"{far['merged global']:.3g}."
    )


def tables_picture(section: object, *, image_format: ImageFormat = "svg") -> bytes:
    """Draw ``diagnostics["tables"]``: left by table, right the user's own items alone."""
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
    with panels(2) as (figure, axes):
        for name, colour, label in _SHOWN:
            x, y = found[name].T
            axes[0].scatter(x, y, s=4, color=colour, alpha=0.35, linewidths=0, label=label)
            axes[1].scatter(x[~mine], y[~mine], s=2, color=GREY, alpha=0.12, linewidths=0)
            axes[1].scatter(x[mine], y[mine], s=12, color=colour, alpha=0.8, linewidths=0, label=label)
        axes[0].set_title(f"All {len(mine)} items")
        axes[1].set_title(f"The user's own {int(mine.sum())} items")
        for axis in axes:
            axis.set(xticks=[], yticks=[])
        handles, labels = axes[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return image_bytes(figure, image_format)
