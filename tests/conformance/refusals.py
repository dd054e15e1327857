"""Cells: what one node sends wrongly is refused and named, and the run goes on with the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from flwr.app import Message, MetricRecord
from worlds import Tamper, node_of

from conformance.methods import Subject
from conformance.runs import Named, Runs
from fedem_flwr.contract import Field, Method
from fedem_flwr.messages.wire import pack_arrays, unpack_arrays

BAD = 1  # the node that errs, in every round
Fault = Callable[[Named, Mapping[str, Field]], str]  # spoils an upload in place; what the refusal says


def nan(arrays: Named, fields: Mapping[str, Field]) -> str:
    """A number that is none in each array of floats."""
    found = [values for values in arrays.values() if values.dtype.kind == "f" and values.size]
    for values in found:
        values.reshape(-1)[-1] = np.nan
    return "is not finite" if found else ""


def shape(arrays: Named, fields: Mapping[str, Field]) -> str:
    """One axis more."""
    name = list(arrays)[-1]
    arrays[name] = arrays[name][None]
    return f"'{name}' has shape"


def kind(arrays: Named, fields: Mapping[str, Field]) -> str:
    """Twice the width, the same numbers."""
    name = list(arrays)[-1]
    arrays[name] = arrays[name].astype(np.float64)
    return f"'{name}' has type float64"


def missing(arrays: Named, fields: Mapping[str, Field]) -> str:
    """An array that is not there."""
    name = list(arrays)[-1]
    del arrays[name]
    return f"lacks '{name}'"


def counts(arrays: Named, fields: Mapping[str, Field]) -> str:
    """More users behind it than were asked, or values of users that were not."""
    for name, field in fields.items():
        if not arrays[name].size:
            continue
        whole = arrays[name].dtype.kind == "i" and not field.rows
        if field.each and name == "users":
            arrays[name] = arrays[name] - len(arrays[name])
            return "holds tables of other users"
        if field.count or (whole and not field.each):
            arrays[name] = np.full_like(arrays[name], 10**6)
            return f"'{name}'"
    return ""


def tampering(method: Method, faults: Sequence[Fault], said: dict[int, str]) -> Tamper:
    """A node that errs in every round, in one way after the other; `said` is what the refusals must say."""

    def spoiled(reply: Message, message: Message) -> list[Message]:
        if node_of(reply) != BAD or message.metadata.message_type != "train":
            return [reply]
        phase = method.schedule.named(str(message.content.config_records["config"]["upload"]))
        arrays = {name: x.copy() for name, x in unpack_arrays(reply.content.array_records["arrays"]).items()}
        round_ = int(message.metadata.group_id)
        expected = faults[round_ % len(faults)](arrays, phase.task.fields())
        if expected:
            said[round_] = expected
            reply.content["arrays"] = pack_arrays(arrays)
        return [reply]

    return spoiled


def refused(subject: Subject, runs: Runs) -> None:
    """Numbers that are none and impossible counts in every phase, arrays that are not what was declared by turns."""
    for faults in ((nan,), (counts,), (shape, kind, missing)):
        said: dict[int, str] = {}
        name = faults[0].__name__
        whole = runs.fresh(subject, tampering(subject.method, faults, said), run={"users_per_node": 7})
        assert said or not subject.method.federated, f"{name}: nothing could be spoiled"
        lost = {failure["round"]: failure for failure in whole.done.outcome.failures}
        assert lost.keys() == said.keys(), f"{name}: {sorted(said)} spoiled, {sorted(lost)} refused"
        for round_, words in said.items():
            assert words in lost[round_]["reason"], f"{name}: '{words}' not in '{lost[round_]['reason']}'"
            assert lost[round_]["node"] == "node of users 7–13"
        went_on(whole.done.server, len(whole.done.lines) == len(whole.rounds))


def went_on(server: Named, complete: bool) -> None:
    """To the end, with sane numbers."""
    assert complete
    assert all(np.isfinite(values).all() for values in server.values() if values.dtype.kind == "f")


def boasting(subject: Subject, runs: Runs) -> None:
    """Metric sums that a node's users cannot have: more hits than it hosts users, numbers that are none, more users."""
    lies = (("validation/full/hr@10", 8.0), ("test/full/ndcg@10", float("nan")), ("users", 8.0))
    said: list[int] = []

    def boast(reply: Message, message: Message) -> list[Message]:
        record = reply.content.metric_records.get("metrics")
        if node_of(reply) == BAD and record is not None and "users" in record:
            name, value = lies[len(said) % len(lies)]
            reply.content["metrics"] = MetricRecord({**record, name: value})
            said.append(int(message.metadata.group_id))
        return [reply]

    whole = runs.fresh(subject, boast, run={"users_per_node": 7})
    lost = [(failure["round"], failure["node"]) for failure in whole.done.outcome.failures]
    assert len(said) >= len(lies) and lost == [(round_, "node of users 7–13") for round_ in said]
    for failure in whole.done.outcome.failures:
        assert "a metric that" in failure["reason"]
    went_on(whole.done.server, len(whole.done.lines) == len(whole.rounds))
