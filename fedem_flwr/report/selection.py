"""Which round of a run is reported: one rule for runs, controls and the audit."""

from __future__ import annotations

from collections.abc import Sequence

from fedem_flwr.errors import FedemError
from fedem_flwr.protocol.rules import Selected, rules_of
from fedem_flwr.report.run_directory import Json, number_at

_CHOSEN_BY = {"best_validation": ("validation", "ndcg@10"), "best_test": ("test", "hr@10")}


def reported_key(protocol: str) -> Selected:
    """The rule of a protocol: `paper` reports the round that is best on the test set, as the literature does."""
    return rules_of(protocol).selected


def best_line(lines: Sequence[Json], rule: Selected) -> Json:
    """The first best metrics line, by validation NDCG@10 or by test HR@10; rounds without an evaluation do not count.

    Where nodes fail, a round is evaluated on fewer users, whose figures do not compare with the others': only rounds
    with the most users are considered. So where rounds are evaluated on a sample of the users, only those that were
    evaluated on everybody too are; among them the sample's figures decide, by which the others fell.

    Raises:
        FedemError: no round was evaluated.
    """
    part, metric = _CHOSEN_BY[rule]
    measured = [(line, value) for line in lines if (value := number_at(compared(line), part, metric)) is not None]
    if not measured:
        raise FedemError(f"none of {len(lines)} rounds was evaluated: there is no best round; lower evaluation.every")
    most = max(evaluated_users(line) for line, _ in measured)
    comparable = [entry for entry in measured if evaluated_users(entry[0]) == most]
    return max(comparable, key=lambda entry: entry[1])[0]


def reported_line(lines: Sequence[Json], protocol: str) -> Json:
    """The metrics line that the protocol reports."""
    return best_line(lines, reported_key(protocol))


def compared(line: Json) -> Json:
    """Where a line has the figures by which rounds compare: those of the sample of users, if there are any."""
    sample = line.get("sample")
    return sample if isinstance(sample, dict) else line


def evaluated_users(line: Json) -> float:
    """Over how many users a line's metrics are; 0 where it was not evaluated or does not say."""
    return number_at(line, "evaluated_users") or 0.0


def partial_text(lines: Sequence[Json], users: float | None) -> str:
    """Say which rounds were evaluated on fewer users than the run has; empty if none was.

    Args:
        lines: metrics lines; those that were not evaluated, or do not say on how many users, are passed over.
        users: of the run; None if that is not known.
    """
    known = {int(line["round"]): evaluated_users(line) for line in lines if evaluated_users(line)}
    most = max(known.values(), default=0.0)
    asked = {int(line["round"]): number_at(line, "sampled_users") or users or most for line in lines}
    fewer = {round_: count for round_, count in known.items() if count < asked[round_]}
    if not fewer:
        return ""
    least, rounds = min(fewer.values()), ", ".join(map(str, list(fewer)[:10])) + ("" if len(fewer) <= 10 else ", …")
    return (
        f"Contributions were lost: {len(fewer)} of {len(known)} rounds ({rounds}) were evaluated on fewer users than "
        f"the run has ({least:,.0f} at least, of {users or most:,.0f}). The best rounds are chosen among those with "
        "the most users."
    )
