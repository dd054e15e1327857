"""Pictures of a leaderboard: convergence, what the leak was worth, and accuracy against bytes and seconds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from fedem_flwr.errors import FedemError
from fedem_flwr.leaderboard.gather import Row, Table
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.report.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    RUN_COLOURS,
    NothingToDrawError,
    image_bytes,
    marker_for,
    panels,
    series,
)
from fedem_flwr.report.labels import CONTROL_LABELS
from fedem_flwr.report.plots import draw_controls
from fedem_flwr.report.run_directory import number_at
from fedem_flwr.report.selection import compared

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("-", "--", ":", "-.")  # one a round through the colours


def part_of(table: Table) -> str:
    """The held-out part that rounds have figures of: under `temporal` the test is of another training."""
    return "validation" if rules_of(table.protocol).by_instant else "test"


def convergence(table: Table) -> bytes:
    """Test figures of the headline by round, the mean over the seeds that have it; controls as levels."""
    drawn = False
    with panels(2) as (figure, axes):
        for axis, metric in zip(axes, ("hr@10", "ndcg@10"), strict=True):
            for number, (row, colour) in enumerate(zip(table.methods, cycle(RUN_COLOURS), strict=False)):
                rounds, values = _mean_curve(row, metric, part_of(table))
                drawn = drawn or bool(rounds)
                style = _STYLES[number // len(RUN_COLOURS) % len(_STYLES)]
                axis.plot(rounds, values, style, color=colour, marker=marker_for(len(rounds)), ms=3, label=row.label)
            axis.set(title=f"{metric.upper()} on the {part_of(table)} set", xlabel="round")
            if part_of(table) == "test":
                draw_controls(axis, _controls(table, metric), metric)  # which makes room for their levels
            else:
                axis.set_ylim(0, None)
            axis.grid(axis="y")
            axis.locator_params(axis="x", integer=True)
        if not drawn:
            raise NothingToDrawError("no round was evaluated")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        return image_bytes(figure, "svg")


def _mean_curve(row: Row, metric: str, part: str) -> tuple[list[int], list[float]]:
    found: dict[int, list[float]] = {}
    for record in row.records:
        try:
            lines = record.directory.read_metrics()
        except FedemError:  # taken away since, or damaged
            continue
        for round_, value in zip(*series([{**line, **compared(line)} for line in lines], part, metric), strict=True):
            found.setdefault(round_, []).append(value)
    rounds = sorted(found)
    return rounds, [statistics.mean(found[round_]) for round_ in rounds]


def _controls(table: Table, metric: str) -> dict[str, dict[str, float]]:
    """As a summary has them."""
    keys = {label: key for key, label in CONTROL_LABELS.items()}
    found = ((keys.get(row.label, row.label), row.figures.get((table.headline, metric))) for row in table.controls)
    return {key: {metric: spread.mean} for key, spread in found if spread is not None}


def leak_ledger(paper: Table, strict: Table) -> bytes:
    """For each method an arrow from its figure under `paper` to that under `strict`, both among 99 negatives.

    And for each that has been trained without federation: no other user's data can have been worth anything there.
    """
    path = ("sampled99", "hr@10")
    pairs = [
        (row.label, before.mean, after.mean)
        for row in strict.rows
        for other in paper.rows
        if other.label == row.label and (after := row.figures.get(path)) and (before := other.figures.get(path))
    ]
    pairs += [
        (f"{row.label}, each device alone", before.mean, after.mean)
        for row in strict.methods
        for other in paper.methods
        if other.label == row.label and (after := row.alone.get(path)) and (before := other.alone.get(path))
    ]
    if not pairs:
        raise NothingToDrawError("no method was measured under both protocols")
    pairs.sort(key=lambda each: each[2])
    with panels(1) as (figure, (axis,)):
        figure.set_size_inches(9, 1.5 + 0.34 * len(pairs))
        for place, (_, left, right) in enumerate(pairs):
            arrow = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.4, "shrinkA": 4, "shrinkB": 4}
            axis.annotate("", (right, place), (left, place), arrowprops=arrow)
        places = range(len(pairs))
        axis.plot([each[1] for each in pairs], places, "o", color=ORANGE, label="paper (leaks)")
        axis.plot([each[2] for each in pairs], places, "o", color=BLUE, label="strict")
        axis.set_yticks(list(places), [each[0] for each in pairs])
        axis.set(
            title=f"What the leak was worth on {strict.dataset}", xlabel="HR@10 among 99 negatives", xlim=(0, 1.02)
        )
        axis.grid(axis="x")
        figure.legend(loc="outside lower center", ncols=2)
        return image_bytes(figure, "svg")


def accuracy_and_cost(table: Table) -> bytes:
    """Headline NDCG@10 against what a user's device sends and receives in the run, and against the run's seconds."""

    def rounds(row: Row) -> float:
        return statistics.mean(number_at(record.summary, "rounds") or 0 for record in row.records)

    def sent(row: Row) -> float | None:
        up, down = row.costs.get("bytes_up"), row.costs.get("bytes_down")
        return None if up is None or down is None else rounds(row) * (up.mean + down.mean) / 1e6

    def seconds(row: Row) -> float | None:
        each = row.costs.get("seconds_per_round")
        return None if each is None else rounds(row) * each.mean

    with panels(2) as (figure, axes):
        drawn = [
            _pareto(axes[0], table, sent, "bytes", "MB up and down a user, whole run"),
            _pareto(axes[1], table, seconds, "time", "seconds of rounds, whole run"),
        ]
        if not any(drawn):
            raise NothingToDrawError("costs were not recorded")
        axes[0].set_ylabel("NDCG@10")
        return image_bytes(figure, "svg")


def _pareto(axis: Axes, table: Table, cost: Callable[[Row], float | None], what: str, unit: str) -> bool:
    """Points with their names; those that no other beats in both are joined."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    points: list[tuple[float, float, str]] = []
    for row in table.methods:
        x, y = cost(row), row.figures.get((table.headline, "ndcg@10"))
        if x is not None and x > 0 and y is not None:  # what costs nothing has no place on the scale
            points.append((x, y.mean, row.label))
    front = _front(points)
    for point in points:
        axis.plot([point[0]], [point[1]], "o", color=BLUE if point in front else GREY)
        axis.annotate(point[2], point[:2], (4, 4), textcoords="offset points", fontsize=8, color=INK)
    axis.plot([each[0] for each in front], [each[1] for each in front], "-", color=BLUE, linewidth=1, alpha=0.6)
    if points:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.15, y=0.1)  # room for the best one's name
    axis.set(title=f"Accuracy and {what}", xlabel=unit, ylim=(0, None))
    axis.grid(axis="y")
    return bool(points)


def _front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    front: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda each: (each[0], -each[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front
