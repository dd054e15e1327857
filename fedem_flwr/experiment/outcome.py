"""What is written down of a finished run: summary.json and diagnostics.json."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedem_flwr.config.registry import find
from fedem_flwr.engine.device import resolve_device
from fedem_flwr.errors import FedemError
from fedem_flwr.evaluation.cohort import means_of, nested
from fedem_flwr.evaluation.sample import sample_size
from fedem_flwr.experiment.back_end import back_end
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.account import DATA
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.report.selection import best_line, reported_key
from fedem_flwr.runtime.lines import Line
from fedem_flwr.runtime.loop import Outcome
from fedem_flwr.runtime.prepared import PreparedRun

GROUPS = 5


@dataclass(frozen=True)
class Tested:
    """A second training, up to the second instant, and what is known of its model.

    Attributes:
        run: of the second training. outcome: of its rounds.
    """

    run: PreparedRun
    outcome: Outcome

    @property
    def figures(self) -> dict[str, Any]:
        """Of the test, in the form of a metrics line's."""
        figures: dict[str, Any] = self.run.directory.read_metrics()[-1]["test"]
        return figures


BYTES = ("bytes_up", "bytes_down", "node_bytes_up", "node_bytes_down")  # of a metrics line


def summarise(
    run: PreparedRun,
    lines: list[Line],
    outcome: Outcome,
    controls: dict[str, Any],
    comparison: dict[str, Any] | None,
    notes: list[str],
    tested: Tested | None = None,
) -> dict[str, Any]:
    """summary.json of a finished run.

    Args:
        lines, outcome: of its rounds; where it was trained a second time, of the first training.
        tested: what that second training gave.
    """
    config, split = run.config, run.facts if tested is None else tested.run.facts
    shown: dict[str, Line] = {
        rule: lines[-1] if rule == "last" else best_line(lines, rule) for rule in rules_of(split.protocol).rounds
    }
    test = {name: line["test"] if tested is None else tested.figures for name, line in shown.items()}
    warmed = [line["seconds"] for line in lines[1:]] or [line["seconds"] for line in lines]
    return {
        "dataset": split.dataset,
        "method": config.method.name,
        "title": config.method.title,
        "centralised": bool(getattr(find("strategies", config.method.strategy), "CENTRALISED", False)),
        "protocol": split.protocol,
        "runtime": config.run.runtime,
        "nodes": run.nodes,
        "seed": config.run.seed,
        "rounds": len(lines),
        "users": split.users,
        "sampled_users": sample_size(config, split.users),
        "items": split.items,
        "interactions": split.interactions,
        "has_times": split.has_times,
        DATA: split.account.as_json() if isinstance(split, Split) and split.account is not None else None,
        "selected": reported_key(split.protocol),
        "metrics": {name: {"round": line["round"], **test[name]} for name, line in shown.items()},
        "served_round": outcome.served_round or lines[-1]["round"],
        "controls": controls,
        "seconds_per_round": statistics.median(warmed),
        **{name: statistics.mean(line[name] for line in lines) for name in BYTES},
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "failures": len(outcome.failures),
        "device": str(resolve_device(config.run.device)),
        "engine": {**back_end(run), "uncompiled": sum(line.get("uncompiled", 0) for line in lines)},
        "command": run.directory.read_command(),
        "comparison": comparison,
        "warnings": [*outcome.caveats, *_withheld(lines), *_unmeasured(lines, outcome.final_sums)],
        "notes": notes,
    }


def _withheld(lines: list[Line]) -> list[str]:
    """Say how many participants trained nothing, because they were too few for a sum that their node sends."""
    withheld, asked = (sum(line.get(key, 0) for line in lines) for key in ("withheld", "participants"))
    if not withheld:
        return []
    return [
        f"{withheld:,} of {asked:,} participations were withheld: a networked node sends no sum over fewer users than "
        "its --smallest-sum (default: 2), so these trained nothing. Host more users a node, or let more take part"
    ]


def _unmeasured(lines: list[Line], final: Mapping[str, float]) -> list[str]:
    """Say of how many users there are no metrics, or none by activity, because their nodes do not tell them apart."""
    said = []
    if most := max((line.get("metrics_withheld", 0) for line in lines), default=0):
        said.append(
            f"no metrics came of {most:,} users: a networked node sends no metrics over fewer users than its "
            "--smallest-sum (default: 2)"
        )
    grouped = [value for name, value in final.items() if name.startswith("group-") and name.endswith("/users")]
    if grouped and (left := int(final.get("users", 0.0) - sum(grouped))):
        said.append(
            f"{left:,} of {final['users']:,.0f} users are in none of the groups of activity: their nodes do not tell "
            "them from users of another group"
        )
    return said


def diagnose(run: PreparedRun, lines: list[Line], outcome: Outcome) -> dict[str, Any]:
    """diagnostics.json: what the report draws beyond the metrics lines.

    A strategy that had no round left to carry out has no weights: those that were written before are kept.
    """
    with_rho = {line["round"]: line["rho"]["histogram"] for line in lines if line.get("rho")}
    shown = sorted({_nearest(with_rho, target) for target in (2, 10, 30, 100)}) if with_rho else []
    rho = {"edges": np.linspace(0, 1, 21).tolist(), "histograms": {str(r): with_rho[r] for r in shown}}
    groups = []
    for index in range(GROUPS):
        prefix = f"group-{index}/"
        means = means_of(outcome.final_sums, prefix)
        if means:
            users = outcome.final_sums[f"{prefix}users"]
            mean_interactions = outcome.final_sums[f"{prefix}interactions"] / users
            test = nested(means, run.facts.protocol)[run.config.parts[-1]]
            groups.append(
                {"label": str(index + 1), "users": int(users), "mean_interactions": mean_interactions, **test}
            )
    if len(groups) > 1:  # ties may leave fewer than five
        groups[0]["label"] += " (sparsest)"
        groups[-1]["label"] += " (most active)"
    return {
        "weights": None if outcome.diagnostics else _weights_before(run.directory),
        **outcome.diagnostics,
        "rho": rho if with_rho else None,
        "groups": groups or None,
        "failures": outcome.failures,
    }


def _weights_before(directory: RunDirectory) -> object:
    try:
        return directory.read_diagnostics().get("weights")
    except FedemError:  # not there, or damaged
        return None


def _nearest(rounds: Iterable[int], target: int) -> int:
    return min(rounds, key=lambda round_: abs(round_ - target))
