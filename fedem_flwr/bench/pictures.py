"""The picture of a measurement: ratios with their intervals, and growth curves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedem_flwr.bench.document import Document
from fedem_flwr.bench.rows import Row, times_text
from fedem_flwr.bench.statistics import median_of
from fedem_flwr.report.drawing import GREEN, GREY, INK, ORANGE, RUN_COLOURS, ImageFormat, image_bytes, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 0.28  # inches


def picture(document: Document, image_format: ImageFormat = "svg") -> bytes | None:
    """Ratios at the left, growths at the right, whichever there are; None where nothing was measured."""
    ratios = [row for row in document.rows if row.kind == "ratio"]
    growths = [row for row in document.rows if row.kind == "growth"]
    count = bool(ratios) + bool(growths)
    if not count:
        return None
    with panels(count, (3, 2) if count == 2 else None) as (figure, axes):
        figure.set_size_inches(11.5, max(3.9, 1.2 + _ROW * len(ratios)))
        if ratios:
            _ratios(axes[0], ratios)
        if growths:
            _growths(axes[-1], growths)
        return image_bytes(figure, image_format)


def _ratios(axis: Axes, rows: list[Row]) -> None:
    """A dot a row on a logarithmic axis; its colour says whether the interval is beyond 1."""
    for place, row in enumerate(reversed(rows)):
        found = row.ratio
        if found is None:
            continue
        colour = GREEN if found.low > 1 else ORANGE if found.high < 1 else GREY
        axis.plot([found.low, found.high], [place, place], color=colour, linewidth=2)
        axis.plot([found.median], [place], "o", color=colour)
        axis.annotate(
            times_text(found.median),
            (found.high, place),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=8,
        )
    axis.axvline(1, color=GREY, linewidth=1, linestyle=":")
    axis.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.set_xlim(low, high * 1.6)  # room for the numbers
    axis.xaxis.set_major_formatter("{x:g}")
    axis.tick_params(axis="y", length=0)
    axis.grid(True, axis="x")
    axis.set(title="Times as fast as the plain way", xlabel="by the clock; line: interval of the median")


def _growths(axis: Axes, rows: list[Row]) -> None:
    """Seconds and sizes, both relative to the smallest, on logarithmic axes."""
    ends: list[tuple[float, float, str, str]] = []
    for place, row in enumerate(rows):
        colour = RUN_COLOURS[place % len(RUN_COLOURS)]
        seconds = [median_of(series.cpu or series.wall).median for series in row.series]
        across, up = [size / row.sizes[0] for size in row.sizes], [one / seconds[0] for one in seconds]
        axis.plot(across, up, "o-", color=colour, markersize=4)
        power = "" if row.exponent is None else f"  ^{row.exponent.median:.2f}"
        ends.append((across[-1], up[-1], f"{row.name.partition('/')[2]}{power}", colour))
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    for which in (axis.xaxis, axis.yaxis):
        which.set_major_formatter("{x:g}")
    before = -math.inf
    low, high = (math.log2(limit) for limit in axis.get_ylim())
    gap = (high - low) * 0.055
    for across_end, up_end, words, colour in sorted(ends, key=lambda end: end[1]):
        at = max(math.log2(up_end), before + gap)  # labels do not lie on each other
        before = at
        axis.annotate(
            words,
            (across_end, 2**at),
            (7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8,
            annotation_clip=False,
        )
    axis.set_xlim(right=axis.get_xlim()[1] * 2.6)
    axis.grid(True)
    axis.set(title="Growth", xlabel="size, relative to the smallest", ylabel="seconds, relative to the smallest")
