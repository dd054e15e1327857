"""Plots of a run: convergence, rho, aggregation weights, groups of users by sparsity, popularity of what is listed.

Each function returns the bytes of an image, or raises ``NothingToDrawError`` with a reason for the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from fedem_flwr.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RHO_UNIT,
    RUN_COLOURS,
    UNITS,
    Floats,
    ImageFormat,
    NothingToDrawError,
    image_bytes,
    marker_for,
    numbers,
    panels,
    series,
)
from fedem_flwr.report.labels import control_rows
from fedem_flwr.report.run_directory import Json, number_at
from fedem_flwr.report.selection import compared

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """One run in the convergence plot: its name, its ``metrics.jsonl``, and the reported round (a dot)."""

    label: str
    lines: Sequence[Json]
    selected_round: int | None = None


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move the positions of labels up, then down, until they stand ``gap`` apart inside [low, high]."""
    placed, order = list(wanted), sorted(range(len(wanted)), key=lambda index: wanted[index])
    floor, ceiling = low, high
    for index in order:
        placed[index] = max(placed[index], floor)
        floor = placed[index] + gap
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def draw_controls(axis: Axes, controls: Mapping[str, object], metric: str) -> None:
    """Draw a level for each control, named at the right edge; names move apart where levels are close."""
    found = {row.label: number_at(row.record, metric) for row in control_rows(controls)}
    levels = {label: level for label, level in found.items() if level is not None}
    axis.update_datalim([(0, level) for level in levels.values()], updatex=False)
    axis.autoscale_view()
    high = max(axis.get_ylim()[1], 0.01)
    axis.set_ylim(0, high)
    leader = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0}
    edge = ("axes fraction", "data")
    for (label, level), place in zip(levels.items(), _spread([*levels.values()], high / 13, 0, high), strict=True):
        axis.axhline(level, color=GREY, linewidth=1, linestyle=":", zorder=1)
        name = axis.annotate(label, (1, level), (1.06, place), edge, edge, leader, annotation_clip=False)
        name.set(color=INK, fontsize=9, verticalalignment="center")


def convergence(curves: Sequence[Curve], controls: Mapping[str, object], *, image_format: ImageFormat = "svg") -> bytes:
    """Draw training loss, HR@10 and NDCG@10 by round: test solid, validation dashed, controls dotted.

    ``curves`` are the run and those it is compared with, ``controls`` is ``summary["controls"]``.
    """
    if not any(curve.lines for curve in curves):
        raise NothingToDrawError("no round was finished")
    with panels(3) as (figure, axes):
        for curve, colour in zip(curves, cycle(RUN_COLOURS), strict=False):
            name = f"{curve.label}, " if len(curves) > 1 else ""
            rounds, losses = series(curve.lines, "train_loss")
            axes[0].plot(rounds, losses, color=colour, marker=marker_for(len(rounds)), ms=3)
            for axis, metric in zip(axes[1:], UNITS, strict=True):
                for part, style, width in (("validation", "--", 1.2), ("test", "-", 1.8)):
                    rounds, values = series([{**line, **compared(line)} for line in curve.lines], part, metric)
                    label = f"{name}{part}" if rounds else "_"  # a leading underscore keeps it out of the legend
                    (drawn,) = axis.plot(rounds, values, style, color=colour, lw=width, ms=3, label=label)
                    drawn.set_marker(marker_for(len(rounds)))
                    if part == "test" and curve.selected_round in rounds:
                        place = rounds.index(curve.selected_round)
                        axis.plot(rounds[place], values[place], "o", color=colour, mec="white", ms=8, zorder=4)
        axes[0].set(title="Training loss", ylabel="mean loss per sample")
        for axis, metric in zip(axes[1:], UNITS, strict=True):
            axis.set(title=metric.upper(), ylabel=UNITS[metric])
            draw_controls(axis, controls, metric)
        for axis in axes:
            axis.set_xlabel("round")
            axis.grid(axis="y")
            axis.locator_params(axis="x", integer=True)
        figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return image_bytes(figure, image_format)


def _histograms(section: object) -> tuple[Floats, dict[int, Floats]]:
    """Return bin edges and, for at most four rounds, the share of rows (per cent) in each bin."""
    stored = section.get("histograms") if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping) or not isinstance(stored, Mapping) or not stored:
        raise NothingToDrawError("histograms of rho were not recorded")
    edges = numbers(section.get("edges"), "the bins of rho")
    rounds = sorted(int(key) for key in stored if str(key).isdigit())
    shares: dict[int, Floats] = {}
    for place in np.unique(np.linspace(0, len(rounds) - 1, num=min(4, len(rounds))).round().astype(int)):
        counts = np.nan_to_num(numbers(stored.get(str(rounds[place])), "the counts of rho"))
        if len(counts) == len(edges) - 1 and counts.sum() > 0:
            shares[rounds[place]] = 100 * counts / counts.sum()
    if not shares:
        raise NothingToDrawError("the histograms of rho are empty or do not fit their bins")
    return edges, shares


def rho_distribution(
    lines: Sequence[Json], diagnostics: Mapping[str, object], *, image_format: ImageFormat = "svg"
) -> bytes:
    """Draw mean and spread of rho by round, and its histogram at up to four rounds, light to dark."""
    rounds, means = series(lines, "rho", "mean")
    try:
        edges, shares = _histograms(diagnostics.get("rho"))
    except NothingToDrawError as error:
        if not rounds:
            raise NothingToDrawError(
                f"this method has no adapter and merges nothing: no mean of rho in any round, and {error}"
            ) from error
        edges, shares = np.zeros(0), {}
    with panels(bool(rounds) + bool(shares)) as (figure, axes):
        if rounds:
            spreads = {int(line["round"]): number_at(line, "rho", "std") or 0.0 for line in lines}
            mean, spread = np.array(means), np.array([spreads[number] for number in rounds])
            low, high = np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1)
            axes[0].fill_between(rounds, low, high, color=BLUE, alpha=0.18, lw=0, label="± one standard deviation")
            axes[0].plot(rounds, mean, color=BLUE, marker=marker_for(len(rounds)), ms=3, label="mean")
            axes[0].set(title="ρ by round", xlabel="round", ylabel=RHO_UNIT, ylim=(0, 1))
            axes[0].locator_params(axis="x", integer=True)
        if shares:
            for (number, share), tone in zip(shares.items(), np.linspace(0.72, 0, len(shares)), strict=True):
                axes[-1].stairs(share, edges, color=str(tone), linewidth=1.8, label=f"round {number}")
            axes[-1].stairs(shares[max(shares)], edges, color=BLUE, fill=True, alpha=0.18)
            axes[-1].set(title="Distribution of ρ", xlabel=RHO_UNIT, ylabel="% of item rows")
            axes[-1].set(xlim=(float(edges[0]), float(edges[-1])), ylim=(0, None))
        for axis in axes:
            axis.grid(axis="y")
            axis.legend(loc="best")
        return image_bytes(figure, image_format)


def aggregation_weights(diagnostics: Mapping[str, object], *, image_format: ImageFormat = "svg") -> bytes:
    """Draw a sample of the weight matrix (log colours), own weights, and how many weights are not zero."""
    section = diagnostics.get("weights")
    found: dict[str, Floats] = {}
    for name, dimensions in (("sample", 2), ("own", 1), ("nonzero", 1)):
        value = section.get(name) if isinstance(section, Mapping) else None
        with suppress(NothingToDrawError):  # the others are still worth seeing
            found[name] = numbers(value, name, dimensions)
    if not found:
        raise NothingToDrawError("this method does not weight single clients: aggregation weights were not recorded")
    with panels(len(found), [1.25 if name == "sample" else 1 for name in found]) as (figure, axes):
        for (name, values), axis in zip(found.items(), axes, strict=True):
            if name == "sample":
                _draw_matrix(figure, axis, values)
                continue
            _draw_counts(axis, values[np.isfinite(values)], whole=name == "nonzero")
            words = ("Own weight", "own weight w_uu") if name == "own" else ("Weights above zero", "weights above zero")
            axis.set(title=words[0], xlabel=words[1], ylabel="number of clients")
        return image_bytes(figure, image_format)


def _draw_counts(axis: Axes, values: Floats, *, whole: bool) -> None:
    """Draw a histogram with the median marked; bins of whole numbers are centred on them."""
    low, high = float(values.min()), float(values.max())
    if whole:
        step = max(1, round((high - low) / 25))
        bins = np.arange(low - 0.5, high + step + 0.5, step)
    else:  # the margin keeps the bins apart where all values are equal (plain averaging)
        margin = 0.02 * (high - low) + 1e-3 * max(abs(high), 0.1)
        bins = np.linspace(low - margin, high + margin, 26)
    axis.hist(values, bins=bins.tolist(), color=BLUE, alpha=0.85)
    median = float(np.median(values))
    axis.axvline(median, color=ORANGE, linewidth=1.5, label=f"median {median:.3g}")
    axis.margins(y=0.22)
    axis.legend(loc="upper right", handlelength=1.2)
    axis.grid(axis="y")
    axis.locator_params(axis="y", integer=True)


def _draw_matrix(figure: Figure, axis: Axes, weights: Floats) -> None:
    """Draw (clients, clients) weights on a logarithmic scale; zeros stay light grey."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    drawn = np.isfinite(weights) & (weights > 0)
    top = float(weights[drawn].max()) if drawn.any() else 1.0
    # At most eight decades (a stray 1e-20 must not use up the scale), at least one (weights may be equal).
    bottom = min(max(float(weights[drawn].min()), top * 1e-8), top / 10) if drawn.any() else 0.1
    palette = colormaps["viridis_r"].with_extremes(bad="#EFEFEF")
    shown = np.ma.masked_where(~drawn, np.clip(np.nan_to_num(weights), bottom, top))
    image = axis.imshow(shown, norm=LogNorm(bottom, top), cmap=palette, interpolation="nearest")
    axis.set(title="Weights (sample)", xlabel="client v", ylabel="client u (row: its weights)")
    axis.spines[:].set_visible(True)
    figure.colorbar(image, ax=axis, shrink=0.9, label="weight w_uv (grey = 0)")


def sparsity_groups(groups: object, *, image_format: ImageFormat = "svg") -> bytes:
    """Draw HR@10 and NDCG@10 of ``diagnostics["groups"]``, from the sparsest users to the densest."""
    rows = [group for group in groups if isinstance(group, Mapping)] if isinstance(groups, list) else []
    if not rows:
        raise NothingToDrawError("groups of users were not recorded")
    sizes = [(number_at(row, "users") or 0, number_at(row, "mean_interactions") or 0) for row in rows]
    ticks = [f"{row.get('label')}\n{n:.0f} users\n∅ {mean:.0f}" for row, (n, mean) in zip(rows, sizes, strict=True)]
    with panels(2) as (figure, axes):
        for axis, metric, colour in zip(axes, UNITS, (BLUE, GREEN), strict=True):
            values = [number_at(row, metric) for row in rows]
            bars = axis.bar(range(len(rows)), [value or 0.0 for value in values], color=colour, width=0.7)
            axis.bar_label(bars, ["none" if value is None else f"{value:.3f}" for value in values], padding=2)
            axis.set_xticks(range(len(rows)), ticks, fontsize=9)
            axis.set(title=metric.upper(), ylabel=UNITS[metric], xlabel="group (users, mean interactions ∅)")
            axis.margins(y=0.12)
            axis.set_ylim(0, None if any(values) else 1)
            axis.grid(axis="y")
        return image_bytes(figure, image_format)


def popularity_histogram(lists: object, *, image_format: ImageFormat = "svg") -> bytes:
    """Draw how recommended and consumed items spread over the deciles of item popularity, as paired bars.

    ``lists`` is ``diagnostics["lists"]``.
    """
    section = lists.get("popularity_histogram") if isinstance(lists, Mapping) else None
    stored = section if isinstance(section, Mapping) else {}
    shares = {name: 100 * numbers(stored.get(name), f"shares of {name} items") for name in ("recommended", "consumed")}
    groups = len(shares["recommended"])
    ticks = [str(place) for place in range(1, groups + 1)]
    if len(shares["consumed"]) != groups:
        raise NothingToDrawError("recommended and consumed items were counted in different groups of popularity")
    with suppress(NothingToDrawError):  # ticks without their bounds are still worth seeing
        edges = numbers(stored.get("edges"), "bounds of popularity")
        if len(edges) == groups + 1:
            ticks = [f"{tick}\n≤ {100 * edge:.2g} %" for tick, edge in zip(ticks, edges[1:], strict=True)]
    with panels(1) as (figure, (axis,)):
        places = np.arange(groups)
        for (name, share), colour, side in zip(shares.items(), (BLUE, ORANGE), (-0.2, 0.2), strict=True):
            words = "in the lists" if name == "recommended" else "in the users' training items"
            bars = axis.bar(places + side, share, width=0.38, color=colour, label=words)
            axis.bar_label(bars, [f"{value:.0f}" if value >= 0.5 else "" for value in share], padding=2, fontsize=8)
        axis.set_xticks(places, ticks)
        axis.set(title="Popularity of items", ylabel="% of items in lists, or of interactions")
        part = "tenth" if groups == 10 else "part"
        axis.set_xlabel(f"{part} of the catalogue, least popular first (largest share of users with such an item)")
        axis.margins(y=0.12)
        axis.grid(axis="y")
        axis.legend(loc="upper left")
        return image_bytes(figure, image_format)
