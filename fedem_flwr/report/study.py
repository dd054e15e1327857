"""What came of `fedem tune`: a table for the terminal, a page with a picture, and a TOML for `fedem run`."""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np
import tomli_w

from fedem_flwr.report.drawing import BLUE, GREY, ORANGE, image_bytes, panels
from fedem_flwr.report.labels import setting_text
from fedem_flwr.report.run_directory import Json
from fedem_flwr.report.tables import ABSENT
from fedem_flwr.text import visible
from fedem_flwr.version import __version__

_SHOWN = 3  # settings that the picture has a panel for
Row = dict[str, object]


def trial_rows(trials: Sequence[Json], best: int) -> list[Row]:
    """A row a trial, the best values first.

    Args:
        trials: with number, value, round, seconds, params and reason. best: number of the best.
    """
    ordered = sorted(trials, key=lambda one: (one["value"] is None, -(one["value"] or 0.0), one["number"]))
    return [
        {
            "trial": f"{'> ' if one['number'] == best else ''}{one['number']}",
            "NDCG@10": one["value"],
            "round": one["round"],
            **{path: setting_text(value) for path, value in one["params"].items()},
            "seconds": None if one["seconds"] is None else f"{one['seconds']:.1f}",
            **({"what happened": one["reason"]} if any(other["reason"] for other in trials) else {}),
        }
        for one in ordered
    ]


def picture(trials: Sequence[Json], importances: Mapping[str, float]) -> bytes:
    """Values by trial with the best so far, and by the settings that matter most, as SVG."""
    scored = [one for one in trials if one["value"] is not None]
    numbers, values = [one["number"] for one in scored], [one["value"] for one in scored]
    names = [*sorted(importances, key=lambda name: -importances[name]), *(scored[0]["params"] if scored else [])]
    shown = list(dict.fromkeys(names))[: _SHOWN - 1]
    with panels(1 + len(shown)) as (figure, axes):
        axes[0].step(numbers, np.maximum.accumulate(values), where="post", color=ORANGE, label="best so far")
        axes[0].plot(numbers, values, "o", color=BLUE, label="a trial")
        axes[0].set(title="Trials", xlabel="trial", ylabel="validation NDCG@10 (0 to 1)")
        axes[0].legend()
        for axis, name in zip(axes[1:], shown, strict=True):
            at = [one["params"][name] for one in scored]
            axis.plot(at, values, "o", color=GREY)
            axis.plot(at[:1], values[:1], "o", color=ORANGE, label="the first: the preset")
            axis.legend()
            weight = f" ({importances[name]:.0%} of the differences)" if name in importances else ""
            axis.set(title=name, xlabel=f"{name}{weight}")
            if min(at) > 0 and max(at) > 20 * min(at):
                axis.set_xscale("log")
                axis.xaxis.set_major_formatter("{x:g}")
                axis.xaxis.set_minor_formatter("")
        for axis in axes:
            axis.grid(True, color="#E6E6E6")
        return image_bytes(figure, "svg")


def page(
    title: str, facts: Mapping[str, str], trials: Sequence[Json], best: int, importances: Mapping[str, float]
) -> str:
    """The report as one HTML page that loads nothing.

    Args:
        facts: name to words.
    """
    from jinja2 import Environment, StrictUndefined

    rows = trial_rows(trials, best)
    heads = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(head)) for head in heads] for row in rows]
    image = base64.b64encode(picture(trials, importances)).decode("ascii")
    text = tomllib.loads(files("fedem_flwr.report").joinpath("templates/study.toml").read_text("utf-8"))["page"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text).render(
        title=visible(title),
        facts=[(name, visible(words)) for name, words in facts.items()],
        heads=heads,
        rows=[([visible(cell) for cell in row], row[0].startswith(">")) for row in cells],
        importances=[(name, f"{share:.0%}") for name, share in importances.items()],
        image=image,
        version=__version__,
    )


def _cell(value: object) -> str:
    if value is None:
        return ABSENT
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def experiment_text(tree: Mapping[str, object], said: Sequence[str]) -> str:
    """An experiment file, with comments above it."""
    comments = [f"# {visible(line)}" for line in said]
    return "\n".join([*comments, "", tomli_w.dumps(dict(tree))])
