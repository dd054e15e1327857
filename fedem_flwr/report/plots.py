"""Plots of a run: convergence, rho, aggregation weights, groups of users by sparsity.

Each function returns the bytes of an image, or raises ``NothingToDrawError`` with a reason for the report.
matplotlib is imported on the first call (it is slow, and most commands draw nothing) and used without pyplot,
so no figure and no style outlives a call. Colours: Okabe and Ito, safe for the colour-blind.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.errors import FedemError
from fedem_flwr.report.run_directory import Json, number_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ImageFormat: TypeAlias = Literal["svg", "png"]
Floats: TypeAlias = NDArray[np.float64]

BLUE, ORANGE, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#333333", "#777777"
RUN_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
CONTROL_LABELS = {"ease": "EASE", "popularity": "popularity", "local_only": "local-only", "random": "random"}
UNITS = {"hr@10": "HR@10 (share of users)", "ndcg@10": "NDCG@10 (0 to 1)"}
RHO_UNIT = "ρ (0 = own row, 1 = global row)"
_STYLE: dict[str, object] = {
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **{"axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    **{"axes.edgecolor": GREY, "axes.axisbelow": True, "grid.color": "#E6E6E6"},
    "svg.hashsalt": "fedem-flwr",  # the same figures give the same bytes
}


class NothingToDrawError(FedemError):
    """The run did not record what the plot shows; the message says what is missing."""


@dataclass(frozen=True)
class Curve:
    """One run in the convergence plot: its name, its ``metrics.jsonl``, and the reported round (a dot)."""

    label: str
    lines: Sequence[Json]
    selected_round: int | None = None


@contextmanager
def _panels(count: int, widths: Sequence[float] | None = None) -> Iterator[tuple[Figure, list[Axes]]]:
    """Make a figure with panels side by side in the house style."""
    import matplotlib
    from matplotlib.figure import Figure as NewFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]  # the stub lists every key as a literal
        size = (12.5 if count == 3 else 10.0, 3.9)
        figure = NewFigure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1))
        axes: list[Axes] = list(figure.subplots(1, count, squeeze=False, width_ratios=widths)[0])
        yield figure, axes


def _bytes(figure: Figure, image_format: ImageFormat) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=image_format, dpi=110, metadata={"Date": None} if image_format == "svg" else {})
    return buffer.getvalue()


def _numbers(value: object, what: str, dimensions: int = 1) -> Floats:
    """Return recorded figures as an array (null is NaN), or raise if there are none of this shape."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise NothingToDrawError(f"{what} are not numbers") from error
    if array.ndim != dimensions or not np.isfinite(array).any():
        raise NothingToDrawError(f"{what} were not recorded")
    return array


def _series(lines: Sequence[Json], *keys: str) -> tuple[list[int], list[float]]:
    """Return rounds and values of a figure, without the rounds that lack it (not evaluated or not finite)."""
    kept = [(int(line["round"]), value) for line in lines if (value := number_at(line, *keys)) is not None]
    return [number for number, _ in kept], [value for _, value in kept]


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


def _draw_controls(axis: Axes, controls: Mapping[str, object], metric: str) -> None:
    """Draw a level for each control, named at the right edge; names move apart where levels are close."""
    found = {label: number_at(controls, key, metric) for key, label in CONTROL_LABELS.items()}
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
    with _panels(3) as (figure, axes):
        for curve, colour in zip(curves, cycle(RUN_COLOURS), strict=False):
            name = f"{curve.label}, " if len(curves) > 1 else ""
            marker = "o" if len(curve.lines) < 8 else ""
            axes[0].plot(*_series(curve.lines, "train_loss"), color=colour, marker=marker, ms=3)
            for axis, metric in zip(axes[1:], UNITS, strict=True):
                for part, style, width in (("validation", "--", 1.2), ("test", "-", 1.8)):
                    rounds, values = _series(curve.lines, part, metric)
                    label = f"{name}{part}" if rounds else "_"  # a leading underscore keeps it out of the legend
                    axis.plot(rounds, values, style, color=colour, lw=width, marker=marker, ms=3, label=label)
                    if part == "test" and curve.selected_round in rounds:
                        place = rounds.index(curve.selected_round)
                        axis.plot(rounds[place], values[place], "o", color=colour, mec="white", ms=8, zorder=4)
        axes[0].set(title="Training loss", ylabel="mean loss per sample")
        for axis, metric in zip(axes[1:], UNITS, strict=True):
            axis.set(title=metric.upper(), ylabel=UNITS[metric])
            _draw_controls(axis, controls, metric)
        for axis in axes:
            axis.set_xlabel("round")
            axis.grid(axis="y")
            axis.locator_params(axis="x", integer=True)
        figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return _bytes(figure, image_format)


def _histograms(section: object) -> tuple[Floats, dict[int, Floats]]:
    """Return bin edges and, for at most four rounds, the share of rows (per cent) in each bin."""
    stored = section.get("histograms") if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping) or not isinstance(stored, Mapping) or not stored:
        raise NothingToDrawError("histograms of rho were not recorded")
    edges = _numbers(section.get("edges"), "the bins of rho")
    rounds = sorted(int(key) for key in stored if str(key).isdigit())
    shares: dict[int, Floats] = {}
    for place in np.unique(np.linspace(0, len(rounds) - 1, num=min(4, len(rounds))).round().astype(int)):
        counts = np.nan_to_num(_numbers(stored.get(str(rounds[place])), "the counts of rho"))
        if len(counts) == len(edges) - 1 and counts.sum() > 0:
            shares[rounds[place]] = 100 * counts / counts.sum()
    if not shares:
        raise NothingToDrawError("the histograms of rho are empty or do not fit their bins")
    return edges, shares


def rho_distribution(
    lines: Sequence[Json], diagnostics: Mapping[str, object], *, image_format: ImageFormat = "svg"
) -> bytes:
    """Draw mean and spread of rho by round, and its histogram at up to four rounds, light to dark."""
    rounds, means = _series(lines, "rho", "mean")
    try:
        edges, shares = _histograms(diagnostics.get("rho"))
    except NothingToDrawError as error:
        if not rounds:
            raise NothingToDrawError(
                f"this method has no adapter and merges nothing: no mean of rho in any round, and {error}"
            ) from error
        edges, shares = np.zeros(0), {}
    with _panels(bool(rounds) + bool(shares)) as (figure, axes):
        if rounds:
            spreads = {int(line["round"]): number_at(line, "rho", "std") or 0.0 for line in lines}
            mean, spread = np.array(means), np.array([spreads[number] for number in rounds])
            low, high = np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1)
            axes[0].fill_between(rounds, low, high, color=BLUE, alpha=0.18, lw=0, label="± one standard deviation")
            axes[0].plot(rounds, mean, color=BLUE, marker="o" if len(rounds) < 8 else "", ms=3, label="mean")
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
        return _bytes(figure, image_format)


def aggregation_weights(diagnostics: Mapping[str, object], *, image_format: ImageFormat = "svg") -> bytes:
    """Draw a sample of the weight matrix (log colours), own weights, and how many weights are not zero."""
    section = diagnostics.get("weights")
    found: dict[str, Floats] = {}
    for name, dimensions in (("sample", 2), ("own", 1), ("nonzero", 1)):
        value = section.get(name) if isinstance(section, Mapping) else None
        with suppress(NothingToDrawError):  # the others are still worth seeing
            found[name] = _numbers(value, name, dimensions)
    if not found:
        raise NothingToDrawError("this method does not weight single clients: aggregation weights were not recorded")
    with _panels(len(found), [1.25 if name == "sample" else 1 for name in found]) as (figure, axes):
        for (name, values), axis in zip(found.items(), axes, strict=True):
            if name == "sample":
                _draw_matrix(figure, axis, values)
                continue
            _draw_counts(axis, values[np.isfinite(values)], whole=name == "nonzero")
            words = ("Own weight", "own weight w_uu") if name == "own" else ("Weights above zero", "weights above zero")
            axis.set(title=words[0], xlabel=words[1], ylabel="number of clients")
        return _bytes(figure, image_format)


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
    with _panels(2) as (figure, axes):
        for axis, metric, colour in zip(axes, UNITS, (BLUE, GREEN), strict=True):
            values = [number_at(row, metric) for row in rows]
            bars = axis.bar(range(len(rows)), [value or 0.0 for value in values], color=colour, width=0.7)
            axis.bar_label(bars, ["none" if value is None else f"{value:.3f}" for value in values], padding=2)
            axis.set_xticks(range(len(rows)), ticks, fontsize=9)
            axis.set(title=metric.upper(), ylabel=UNITS[metric], xlabel="group (users, mean interactions ∅)")
            axis.margins(y=0.12)
            axis.set_ylim(0, None if any(values) else 1)
            axis.grid(axis="y")
        return _bytes(figure, image_format)
