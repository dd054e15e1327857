"""What local differential privacy gives the users of a run, in numbers and in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fedem_flwr.config import Config
from fedem_flwr.config.ldp_section import LdpConfig
from fedem_flwr.nodes.ledger import most, reached
from fedem_flwr.privacy.accounting import Spent, allowed, spent
from fedem_flwr.protocol.split import Split, SplitFacts
from fedem_flwr.runtime.prepared import PreparedRun

MEANING = (
    "It holds for a user's whole history of a given length, whoever else colludes, over every round that the user took "
    "part in: the server draws who does, so sampling earns nothing. Not covered: metrics and losses, how many "
    "interactions a user has, settings chosen on these data, controls (item popularity)."
)


def largest_share(facts: SplitFacts) -> float | None:
    """p_u of the user with the most interactions; None where the data are elsewhere."""
    if not isinstance(facts, Split):
        return None
    counts = np.diff(np.asarray(facts.train_offsets))
    return float(counts.max() / counts.sum())


def promised(run: PreparedRun) -> str:
    """What a run will cost its users at most, before it begins; empty without noise."""
    may, rounds = allowed(run.config.ldp), run.config.run.rounds
    found = spent(run.config, rounds if may is None else min(rounds, may), largest_share(run.facts))
    if found is None:
        return ""
    if may is None:
        return f"{words(run.config, found)}, unless rounds are repeated. {MEANING}"
    ends = f"of the {rounds:,} rounds, a user takes part in no more" if may < rounds else "enough for all rounds"
    return f"{words(run.config, found)}; {_limit(run.config.ldp, may)}: {ends}. {MEANING}"


def kept(run: PreparedRun) -> tuple[dict[str, Any] | None, str]:
    """What the run has cost the user who sent the most: for summary.json, and in words; nothing without noise."""
    sent = most(run.directory.path)
    found = spent(run.config, run.config.run.rounds if sent is None else sent, largest_share(run.facts))
    if found is None:
        return None, ""
    ldp = run.config.ldp
    unseen = " Rounds that were repeated are not counted: each node counts its own." if sent is None else ""
    numbers = {"noise": ldp.noise, "clip": ldp.clip, "multiplier": ldp.multiplier, **dataclasses.asdict(found)}
    capped, ended = _capped(run)
    said = f"{words(run.config, found)}.{ended}{unseen} {MEANING}"
    return {**numbers, **capped, "counted": sent is not None, "words": said}, said


def _capped(run: PreparedRun) -> tuple[dict[str, Any], str]:
    """What `ldp.epsilon_limit` came to: for summary.json, and in words; nothing without it."""
    ldp = run.config.ldp
    if (may := allowed(ldp)) is None:
        return {}, ""
    held, ended = sum(line.get("spent", 0) for line in run.directory.read_metrics()), reached(run.directory.path, may)
    numbers = {"limit": ldp.epsilon_limit, "allowed": may, "held_back": held, "ended": ended[0] if ended else None}
    who = f"{ended[0]:,} of {ended[1]:,} users have sent all of them" if ended else "nodes keep count"
    return numbers, f" {_limit(ldp, may)}: {who}, and {held:,} further uploads were held back on their devices."


def _limit(ldp: LdpConfig, may: int) -> str:
    return f"ldp.epsilon_limit = {ldp.epsilon_limit:g} lets {may:,} uploads of a user go"


def words(config: Config, found: Spent) -> str:
    """Both ε in a sentence without its stop."""
    ldp = config.ldp
    seeded = " (seeded: it hides nothing)" if ldp.seeded else ""
    paper = "" if found.paper is None else f"; the paper's S / δ = {found.paper:.3g} a round, for one step of sgd"
    delta = f", δ = {found.delta:g}" if found.delta else ""
    return (
        f"Local differential privacy, {ldp.noise} noise{seeded}: ε = {found.round:.4g} for one upload, "
        f"ε = {found.composed:.4g}{delta} for the {found.releases:,} of the user who sends the most{paper}"
    )
