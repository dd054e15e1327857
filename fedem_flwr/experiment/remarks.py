"""What is said in words about a run: before it, and beside its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedem_flwr.config import Config, resolve
from fedem_flwr.data import KNOWN_DATASETS, SYNTHETIC
from fedem_flwr.evaluation.sample import sample_size
from fedem_flwr.experiment.back_end import back_end_said
from fedem_flwr.experiment.guarantee import promised
from fedem_flwr.network import NETWORK_FOLDER
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.account import rows_text, short_text, ties_text
from fedem_flwr.report.labels import left_out, sample_text
from fedem_flwr.runtime.prepared import PreparedRun


def opening(run: PreparedRun) -> str:
    """What is said before the first round."""
    config, split = run.config, run.facts
    lines = [
        f"{config.method.name} on {split.dataset} ({split.users:,} users, {split.items:,} items, "
        f"{split.interactions:,} interactions), protocol {split.protocol}, {config.run.rounds} rounds, "
        f"{config.run.runtime}{_where(config)}",
        *_data_lines(run),
        *back_end_said(run),
        *([_default_note(config)] if _is_default(config) else []),
        *([_sample_line(sampled, split.users)] if (sampled := sample_size(config, split.users)) else []),
        *filter(None, [promised(run)]),
        f"into {run.directory.path}",
    ]
    return "\n".join(lines)


def _sample_line(sampled: int, users: int) -> str:
    return (
        f"rounds are evaluated and settings tuned on {sampled:,} of {users:,} users (evaluation.sample_users), the "
        "reported round on everybody"
    )


def _data_lines(run: PreparedRun) -> list[str]:
    """How the data were read, and what became of their rows, where they are here."""
    account = run.facts.account if isinstance(run.facts, Split) else None
    if account is None:
        return []
    users, protocol = run.facts.users, run.facts.protocol
    said = [f"rows: {rows_text(account)}", ties_text(account, protocol, users), short_text(account, users)]
    read = [] if account.reading is None else [f"read {account.reading.sentence}"]
    return [*read, "; ".join(filter(None, said))]


def _where(config: Config) -> str:
    """What a networked run starts, as the first round takes some seconds to come."""
    if config.run.runtime != "network":
        return ""
    elsewhere = config.network.superlink
    started = f"a server for {elsewhere}" if elsewhere else "SuperLink, nodes and server"
    return f" (starting {started}; logs in {NETWORK_FOLDER}/logs)"


def _is_default(config: Config) -> bool:
    """Whether a known data set is run with its own method and settings, under strict."""
    data = config.data.dataset
    if config.data.protocol != "strict" or data not in (SYNTHETIC, *KNOWN_DATASETS):
        return False
    sections = {"method", "model", "ials", "order"}
    default = resolve({}, {"data": {"dataset": data}})
    return default.model_dump(include=sections) == config.model_dump(include=sections)


def _default_note(config: Config) -> str:
    return (
        f"{config.method.name} is the default on this data set: the best of what was measured under strict. "
        "--against fedem puts the published method beside it."
    )


def notes_of(run: PreparedRun, controls: Mapping[str, Any]) -> list[str]:
    """What a reader of the results should know."""
    notes = []
    if run.config.data.dataset == SYNTHETIC:
        notes.append("Synthetic data: use it to see that everything works, not to compare methods.")
    if _is_default(run.config):
        notes.append(_default_note(run.config))
    if not run.has_data:
        notes.append("The data are on the nodes: controls, and the comparison with them, need them in one place.")
    if not run.facts.has_times:
        notes.append(
            "This data set has no times: under strict the held-out items are drawn at random, and nothing uses order, "
            "neither recency nor an encoder."
        )
    account = run.facts.account if isinstance(run.facts, Split) else None
    if account is not None and (short := short_text(account, run.facts.users)):
        notes.append(f"Figures among 99 negatives: {short}.")
    sampled = sample_size(run.config, run.facts.users)
    said = sample_text({"sampled_users": sampled, "users": run.facts.users, "controls": controls})
    return [*notes, *filter(None, [said]), *left_out(controls)]
