"""A round's metrics line, and what is counted of the messages as they pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord

from fedem_flwr.evaluation.cohort import means_of, nested, rho_statistics
from fedem_flwr.messages.wire import payload_bytes, plain_numbers

Line = dict[str, Any]
Sums = dict[str, float]
Failure = dict[str, Any]


class Meter:
    """Counts the array bytes of a phase's messages as they pass, and notes what stock strategies do not count."""

    def __init__(self, round_: int) -> None:
        self.down = self.up = self.messages = self.replies = 0
        self.examples = 0.0
        self.round, self._waiting = round_, dict[int, None]()
        self._errors: list[tuple[int, str]] = []  # node, reason

    def expected(self, messages: Iterable[Message]) -> list[Message]:
        """Note who is asked, also where time runs out before a node gets its message."""
        asked = list(messages)
        self._waiting = dict.fromkeys(message.metadata.dst_node_id for message in asked)
        return asked

    def sent(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Count messages on their way down."""
        for message in messages:
            self.down += payload_bytes(message)
            self.messages += 1
            yield message

    def received(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Count replies, and note errors, on their way up."""
        for reply in replies:
            node = reply.metadata.src_node_id
            self._waiting.pop(node, None)
            if reply.has_error():
                self._errors.append((node, " ".join((reply.error.reason or "no reason given").split())))
            else:
                self.up += payload_bytes(reply)
                self.replies += 1
                numbers = plain_numbers(reply.content.metric_records.get("metrics", MetricRecord()))
                self.examples += np.nan_to_num(numbers.get("num-examples", 0.0), posinf=0.0, neginf=0.0)
            yield reply

    def failures(self) -> list[Failure]:
        """Errors, and nodes that did not answer, in the form of our strategies' failures."""
        lost = [*self._errors, *((node, "no reply within the round's time") for node in self._waiting)]
        return [{"round": self.round, "node": f"node {node}", "reason": reason} for node, reason in lost]

    def each(self) -> tuple[float, float]:
        """Mean bytes up and down of a node's messages."""
        return self.up / max(1, self.replies), self.down / max(1, self.messages)

    def why(self) -> str:
        """The first failure, to end a message with."""
        lost = self.failures()
        return f": {lost[0]['reason']}" if lost else ""


def trained_line(round_: int, sums: Sums, participants: int, seconds: float) -> Line:
    """The part of a metrics line that is known when training ends; see `weigh` for the bytes."""
    loss = sums["loss-total"] / max(1.0, sums["num-examples"]) if "loss-total" in sums else sums.get("train-loss")
    withheld = {"withheld": int(sums["withheld"])} if sums.get("withheld") else {}
    return {
        **withheld,
        "round": round_,
        "train_loss": loss,
        "seconds": seconds,
        "participants": participants,
        "bytes_up": 0.0,
        "bytes_down": 0.0,
        "node_bytes_up": 0,
        "node_bytes_down": 0,
    }


def weigh(line: Line, meter: Meter, each: tuple[float, float]) -> None:
    """Add a phase's bytes to a line: those of a user's own messages, and what really crossed in all."""
    line["bytes_up"] += each[0]
    line["bytes_down"] += each[1]
    line["node_bytes_up"] += meter.up
    line["node_bytes_down"] += meter.down


def evaluated_line(line: Line, sums: Sums, protocol: str, users: float = 0.0) -> Line:
    """Complete a metrics line. Stock strategies give means over `users`, ours sums and the number of users behind."""
    means = means_of(sums) if "users" in sums else sums
    out = {
        **line,
        "evaluated_users": int(sums.get("users", users)),
        **nested(means, protocol),
        "rho": rho_statistics(sums),
    }
    if sums.get("nonfinite"):
        out["nonfinite_scores"] = int(sums["nonfinite"])
    return out


def unevaluated_line(line: Line) -> Line:
    """Complete the metrics line of a round that was not evaluated: the keys of one that was, without figures."""
    return {**line, "evaluated_users": 0, **dict.fromkeys(("validation", "test", "rho"))}
