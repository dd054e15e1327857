"""A round's metrics line, and what is counted of the messages as they pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord

from fedem_flwr.evaluation.cohort import SAMPLE, means_of, nested, rho_statistics
from fedem_flwr.messages.wire import number, payload_bytes
from fedem_flwr.pulse import tell

Line = dict[str, Any]
Sums = dict[str, float]
Failure = dict[str, Any]


class Meter:
    """Counts the array bytes of a phase's messages as they pass, and the examples behind its replies."""

    def __init__(self) -> None:
        self.down = self.up = self.messages = self.replies = 0
        self.examples = 0.0

    def sent(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Count messages on their way down."""
        for message in messages:
            self.down += payload_bytes(message)
            self.messages += 1
            yield message

    def received(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Count replies on their way up; errors weigh nothing."""
        for reply in replies:
            if not reply.has_error():
                self.up += payload_bytes(reply)
                self.replies += 1
                told = reply.content.metric_records.get("metrics", MetricRecord()).get("num-examples", 0)
                examples = number(told) if isinstance(told, int | float) else 0.0
                self.examples += np.nan_to_num(examples, posinf=0.0, neginf=0.0)
            if self.messages > 1:
                tell("answers of nodes", self.replies, self.messages)
            yield reply

    def each(self) -> tuple[float, float]:
        """Mean bytes up and down of a node's messages."""
        return self.up / max(1, self.replies), self.down / max(1, self.messages)


def trained_line(round_: int, sums: Sums, participants: int, seconds: float) -> Line:
    """The part of a metrics line that is known when training ends; see `weigh` for the bytes."""
    known = "loss-total" in sums
    loss = sums["loss-total"] / max(1.0, sums.get("num-examples", 0.0)) if known else sums.get("train-loss")
    counted = {name: int(sums[name]) for name in ("withheld", "spent", "uncompiled") if sums.get(name)}
    return {
        **counted,
        "round": round_,
        "train_loss": loss,
        "seconds": seconds,
        "participants": participants,
        "bytes_up": 0.0,
        "bytes_down": 0.0,
        "node_bytes_up": 0,
        "node_bytes_down": 0,
    }


def weigh(line: Line, meter: Meter, each: tuple[float, float] | None) -> None:
    """Add a phase's bytes to a line: those of a user's own messages, and what really crossed in all.

    Args:
        each: up and down; None: as many as a node's.
    """
    up, down = each or meter.each()
    line["bytes_up"] += up
    line["bytes_down"] += down
    line["node_bytes_up"] += meter.up
    line["node_bytes_down"] += meter.down


def evaluated_line(line: Line, sums: Sums, protocol: str, users: float = 0.0, sampled: int = 0) -> Line:
    """Complete a metrics line.

    Args:
        sums: over users, whose number is among them; or means, as stock strategies give them.
        users: behind such means.
        sampled: how many users were asked for, where that is a sample; 0: all.
    """
    means = means_of(sums) if "users" in sums else sums
    out = {
        **line,
        "evaluated_users": int(sums.get("users", users)),
        **nested(means, protocol),
        "rho": rho_statistics(sums),
    }
    if sampled:
        out["sampled_users"] = sampled
    if sums.get(f"{SAMPLE}users"):
        of_sample = nested(means_of(sums, SAMPLE), protocol)
        out["sample"] = {"evaluated_users": int(sums[f"{SAMPLE}users"]), **of_sample}
    if sums.get("metrics-withheld"):
        out["metrics_withheld"] = int(sums["metrics-withheld"])
    if sums.get("nonfinite"):
        out["nonfinite_scores"] = int(sums["nonfinite"])
    return out


def measured_again(line: Line, sums: Sums, protocol: str) -> Line:
    """The line of a round that was evaluated on a sample, with the figures of everybody; those of the sample beside."""
    known = {key: line[key] for key in ("evaluated_users", "sampled_users", "validation", "test") if key in line}
    kept = {key: value for key, value in line.items() if key != "sampled_users"}
    return {**evaluated_line(kept, sums, protocol), "rho": line.get("rho"), "sample": known, "again": True}


def unevaluated_line(line: Line) -> Line:
    """Complete the metrics line of a round that was not evaluated: the keys of one that was, without figures."""
    return {**line, "evaluated_users": 0, **dict.fromkeys(("validation", "test", "rho"))}
