"""The report of a run as one HTML file that needs nothing else: no network, no scripts, images inside.

Every text that comes from a file of the run is escaped, without characters that nobody sees or that turn a line around,
and the page forbids itself to load anything. What a run lacks is named there; only a directory without a run fails.
"""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import quoted, write_atomically
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.report import plots
from fedem_flwr.report.account import recorded_rows
from fedem_flwr.report.bottleneck_plot import CAPTION, bottleneck
from fedem_flwr.report.comparison import comparison_of, signed
from fedem_flwr.report.groups import GROUP_HEADS, asked_text, column_labels, group_cells
from fedem_flwr.report.run_directory import CONFIG, Json, RunDirectory, number_at
from fedem_flwr.report.search import picture, search_text
from fedem_flwr.report.sections import guarantee_rows, lists_text, tunings_of
from fedem_flwr.report.selection import partial_text
from fedem_flwr.report.tables import (
    ABSENT,
    bytes_text,
    figure_text,
    headline_text,
    result_rows,
    selected_key,
    text_at,
    title_text,
    verdict,
)
from fedem_flwr.report.tables_plot import tables_picture, tables_text
from fedem_flwr.text import visible
from fedem_flwr.version import __version__

PAPER_WARNING = (
    "This protocol leaks: training never draws the validation and the test item as negatives, and the "
    "reported round is chosen on the test set. Its figures can be set beside published ones; they say "
    "nothing about how well a method recommends. Those of the protocol 'strict' do."
)
_FAILURES_SHOWN = 20
T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """An image of the report, or the reason why it is not there."""

    title: str
    caption: str
    data_uri: str | None
    reason: str = ""


@dataclass(frozen=True)
class _Run:
    """All that could be read of a run directory; ``gaps`` says what could not, and why."""

    directory: RunDirectory
    summary: Json = field(default_factory=dict)
    metrics: list[Json] = field(default_factory=list)
    diagnostics: Json = field(default_factory=dict)
    config: str = ""
    gaps: tuple[str, ...] = ()


def _load(directory: RunDirectory) -> _Run:
    """Read a run; a part that is missing or damaged stays empty and is named in ``gaps``."""
    directory.open()
    gaps: list[str] = []

    def attempt(read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except FedemError as error:
            gaps.append(str(error))
            return otherwise

    return _Run(
        directory=directory,
        summary=attempt(directory.read_summary, {}),
        metrics=attempt(directory.read_metrics, []),
        diagnostics=attempt(directory.read_diagnostics, {}),
        config=attempt(directory.read_config, ""),
        gaps=tuple(gaps),
    )


def _check_comparable(summary: Mapping[str, object], other: Mapping[str, object], path: Path) -> None:
    """Refuse to draw runs side by side whose figures do not measure the same."""
    for key in ("dataset", "protocol"):
        if text_at(summary, key) != text_at(other, key):
            raise InputError(
                f"{path} was measured with {key} '{text_at(other, key)}', this run with "
                f"'{text_at(summary, key)}': compare runs of the same data set and protocol"
            )


def _picture(title: str, caption: str, draw: Callable[[], bytes]) -> Picture:
    try:
        image = draw()
    except FedemError as error:
        return Picture(title, caption, None, f"Not drawn: {error}.")
    return Picture(title, caption, f"data:image/svg+xml;base64,{base64.b64encode(image).decode('ascii')}")


def _pictures(run: _Run, others: Sequence[_Run]) -> list[Picture]:
    controls, of_first = run.summary.get("controls"), _by_instant(run.summary)
    shown = controls if isinstance(controls, Mapping) and not of_first else {}
    levels = "" if of_first else " Dot: the reported round. Dotted levels: controls on the test set of the same split."
    curves = [_curve(each, with_name=bool(others)) for each in (run, *others)]
    pictures = [
        _picture(
            "Convergence",
            f"Loss and headline metrics ({headline_text(run.summary)}) by round{' of the first training' * of_first}."
            + levels,
            partial(plots.convergence, curves, shown),
        ),
        _picture(
            "Elastic merging: ρ",
            "How far a client moves its own item rows towards the global ones, over all clients and items.",
            partial(plots.rho_distribution, run.metrics, run.diagnostics),
        ),
        _picture(
            "Aggregation weights",
            "Whose item tables a client's global table is made of, in the last aggregation.",
            partial(plots.aggregation_weights, run.diagnostics),
        ),
        _picture(
            "Users by number of interactions",
            "Test metrics of up to five groups of users (ties merge groups), sparsest first, after the last round.",
            partial(plots.sparsity_groups, run.diagnostics.get("groups")),
        ),
    ]
    if section := run.diagnostics.get("bottleneck"):
        pictures.append(_picture("The aggregation bottleneck", CAPTION, partial(bottleneck, section)))
    if section := run.diagnostics.get("tables"):
        draw = partial(tables_picture, section)
        pictures.append(_picture("The tables of one user", tables_text(run.diagnostics), draw))
    if run.diagnostics.get("search"):
        caption = f"Tables with several settings, trained side by side and compared. {search_text(run.summary)}"
        pictures.append(_picture("The search for settings", caption, partial(picture, run.diagnostics)))
    if section := run.diagnostics.get("lists"):
        caption = "The items of all users' top 10, and of their training data, by how many users trained on them. "
        draw = partial(plots.popularity_histogram, section)
        pictures.append(_picture("What the lists hold", caption + lists_text(run.diagnostics), draw))
    return pictures


def _curve(run: _Run, *, with_name: bool) -> plots.Curve:
    chosen = number_at(run.summary, "metrics", selected_key(run.summary), "round")
    label = text_at(run.summary, "method", run.directory.path.name)
    seed = run.summary.get("seed")
    if with_name and seed is not None:
        label += f" (seed {seed})"
    return plots.Curve(label, run.metrics, None if chosen is None else int(chosen))


def _facts(summary: Json, metrics: Sequence[Json]) -> list[tuple[str, str]]:
    """Return the figures beside the result table, as (name, value)."""

    def count(key: str) -> str:
        value = number_at(summary, key)
        return ABSENT if value is None else f"{value:,.0f}"

    def size(key: str) -> str:
        return bytes_text(number_at(summary, key))

    seconds = number_at(summary, "seconds_per_round")
    return [
        ("data set", text_at(summary, "dataset", ABSENT)),
        ("users × items", f"{count('users')} × {count('items')}"),
        ("interactions", count("interactions")),
        ("runtime", text_at(summary, "runtime", ABSENT)),
        ("seed", text_at(summary, "seed", ABSENT)),
        ("rounds finished", f"{len(metrics)} of {count('rounds')}"),
        ("round whose model is served", count("served_round")),
        ("seconds per round (median)", ABSENT if seconds is None else f"{seconds:.3g} s"),
        ("sent up per user and round, one user a device", size("bytes_up")),
        ("sent down per user and round, one user a device", size("bytes_down")),
        ("nodes to server, per round", size("node_bytes_up")),
        ("server to nodes, per round", size("node_bytes_down")),
        ("peak memory (resident)", size("peak_rss_bytes")),
        ("failures", count("failures")),
        *guarantee_rows(summary),
    ]


def _notes(run: _Run) -> list[str]:
    """Return what a reader must know: the leak, the run's warnings, what is missing, its notes."""
    leak = [PAPER_WARNING] if _leaks(run.summary) else []
    own = [*_texts(run.summary, "warnings"), *_texts(run.summary, "notes")]
    asked = None if _by_instant(run.summary) else number_at(run.summary, "users")  # there not everybody is asked
    fewer = [partial_text(run.metrics, asked)]
    return leak + own + [note for note in fewer if note] + [f"Missing here: {gap}" for gap in run.gaps]


def _by_instant(summary: Json) -> bool:
    return rules_of(text_at(summary, "protocol")).by_instant


def _leaks(summary: Json) -> bool:
    return rules_of(text_at(summary, "protocol")).leaks


def _texts(summary: Json, key: str) -> list[str]:
    recorded = summary.get(key)
    return [str(text) for text in recorded] if isinstance(recorded, list) else []


def _failures(diagnostics: Json) -> tuple[list[tuple[str, str, str]], int]:
    """Return the first failures as (round, node, reason), and how many there are."""
    recorded = diagnostics.get("failures")
    rows = [row for row in recorded if isinstance(row, Mapping)] if isinstance(recorded, list) else []
    shown = [(text_at(row, "round"), text_at(row, "node"), text_at(row, "reason")) for row in rows[:_FAILURES_SHOWN]]
    return shown, len(rows)


def _verdict_marks(summary: Json) -> list[tuple[str, str, str]]:
    """Return the two answers as (question, answer, class of the badge)."""
    said = verdict(summary)
    # Under 'paper' a win proves nothing, so it gets no green.
    good = "unknown" if _leaks(summary) else "good"
    words = {True: ("yes", good), False: ("no", "bad"), None: ("not measured", "unknown")}
    pairs = (("beats popularity", said.beats_popularity), ("beats local-only", said.beats_local_only))
    return [(question, *words[answer]) for question, answer in pairs]


def render_report(run_dir: Path, against: Sequence[Path] = ()) -> str:
    """Return the report of a run as the text of one HTML page; see ``write_report``."""
    from jinja2 import Environment, StrictUndefined

    run = _load(RunDirectory(run_dir))
    others = [_load(RunDirectory(path)) for path in against]
    for other in others:
        _check_comparable(run.summary, other.summary, other.directory.path)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    page = tomllib.loads(files("fedem_flwr.report").joinpath("templates/report.toml").read_text("utf-8"))["page"]
    failures, failure_count = _failures(run.diagnostics)
    return environment.from_string(page).render(
        title=title_text(run.summary) if run.summary else f"{run.directory.path.name} (unfinished)",
        verdict=verdict(run.summary).sentence if run.summary else "This run has not finished: there is no result yet.",
        marks=_verdict_marks(run.summary) if run.summary else [],
        alarming=_leaks(run.summary) or bool(_texts(run.summary, "warnings")),
        notes=_notes(run),
        headline=headline_text(run.summary),
        rows=result_rows(run.summary, [other.summary for other in others]) if run.summary else [],
        comparison=comparison_of(run.summary),
        asked=asked_text(run.summary),
        group_heads=[*GROUP_HEADS, text_at(run.summary, "method"), *column_labels(run.summary)],
        groups=group_cells(run.summary),
        tunings=tunings_of(run.diagnostics),
        figure_text=figure_text,
        signed=signed,
        absent=ABSENT,
        facts=_facts(run.summary, run.metrics),
        data=recorded_rows(run.summary),
        pictures=_pictures(run, others),
        failures=failures,
        failure_count=failure_count,
        config=run.config,
        command=text_at(run.summary, "command", f"fedem run {quoted(run.directory.path / CONFIG)}"),
        against=[str(other.directory.path) for other in others],
        version=__version__,
    )


def _shown(value: object) -> object:
    """What the template puts into the page, a value at a time."""
    return visible(value, keep="\n\t") if isinstance(value, str) else value


def write_report(run_dir: Path, against: Sequence[Path] = ()) -> Path:
    """Write ``report.html`` into a run directory.

    Args:
        run_dir: the run; what it lacks (it has not finished, its method has no adapter) is named as missing.
        against: directories of other runs to draw and list beside it.

    Returns:
        The path of the report.

    Raises:
        InputError: a directory holds no run, or the runs differ in data set or protocol.
    """
    path = RunDirectory(run_dir).report_path
    write_atomically(path, render_report(run_dir, against))
    return path
