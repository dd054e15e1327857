"""Cell: under `[ldp]` each user is clipped and noised alone, and the server takes that and no nonsense."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from clients.method import MethodClient
from conformance.methods import Subject
from conformance.numbers import SUM_NEAR, asked_of, close
from conformance.runs import Named, Runs, Whole
from fedem_flwr.contract import Asked, Method, Task
from fedem_flwr.contract.adding import Adder, contributed
from fedem_flwr.contract.fields import Field, fault_of
from fedem_flwr.contract.finding import method_of
from fedem_flwr.contract.guarded_sums import GuardedSums
from fedem_flwr.contract.guarding import LIMIT
from fedem_flwr.contract.phases import Sender
from fedem_flwr.contract.training import weight_name
from fedem_flwr.errors import InputError
from fedem_flwr.messages.uploads import problem_of

CLIP = 0.05
LDP = {"noise": "gaussian", "clip": 0.5, "multiplier": 0.3, "quantile": 0.5, "seeded": True}


def guarded(subject: Subject, runs: Runs) -> None:
    """A cohort's upload is the sum of its users', noise and all; a server accepts it, and nothing far from it."""
    whole = runs.whole(subject, 0)
    client = whole.client()
    try:
        method = client.method = method_of(subject.config(ldp=LDP), client.method.items)
    except InputError as error:
        raise AssertionError(f"refused: {error}") from None
    asked = asked_of(whole, client, 1)
    asked = Asked(**{**vars(asked), "settings": {**asked.settings, LIMIT: 0.5}})
    task = method.schedule.at(1)[0].task
    found = contributed(task, client.host.side(0, 0), asked, ()).arrays
    assert tuple(found) == tuple(task.fields())
    close(found, one_by_one(client, task, asked), 10 * SUM_NEAR, "noise of one user after the other")
    assert objection(whole, method, asked, found) == ""
    for name, field in task.fields().items():
        if field.dtype == "float32":
            assert objection(whole, method, asked, {**found, name: found[name] + 1e7}), f"'{name}' may be anything"
            assert objection(whole, method, asked, {**found, name: found[name] * np.nan}), f"'{name}' may be no number"
    counts = {weight_name(name) for name, part in method.parts().items() if part.up == "sum" and part.by_row}
    bounded(subject, client, asked)
    assert all((found[name] != np.round(found[name])).mean() > 0.9 for name in counts), "noise is on all counts"


def bounded(subject: Subject, client: MethodClient, asked: Asked) -> None:
    """One user's upload is no longer than C from what the server knows it to have started from, all parts together."""
    method = method_of(subject.config(ldp={"clip": CLIP}), client.method.items)
    task, device = method.schedule.at(1)[0].task, client.host.side(0, 0)
    alone = replace(asked.of(asked.who[:1]), uploaders=device.users[asked.who[:1]])
    who, cohort = torch.from_numpy(alone.who), method.training_cohort(device)
    arrays, squares, rounded = contributed(task, device, alone, ()).arrays, 0.0, 0.0
    if isinstance(task, GuardedSums):
        squares = sum(
            float(np.square(weight * arrays[name].astype(np.float64)).sum()) for name, weight in task.weights.items()
        )
    for name, part in method.parts().items():
        if part.up == "none":
            continue
        start = 0.0 if part.change else cohort.known(name, who, method.downloads(device, alone)).double().numpy()[0]
        if part.up == "each":
            moved = arrays[name][0] - start
        else:
            weight = arrays[weight_name(name)].astype(np.float64)
            moved = arrays[name] - (weight[:, None] if part.by_row else weight) * start
            moved = moved if part.by_row else moved / weight
            squares += float(np.square(weight).sum()) if part.by_row else 0.0
        squares += float(np.square(moved).sum())
        rounded += 1e-6 * float(np.linalg.norm(start))
    assert 0 < squares**0.5 <= CLIP * (1 + 1e-4) + rounded, "an upload is longer than C"


def one_by_one(client: MethodClient, task: Task, asked: Asked) -> Named:
    """The uploads of cohorts of one user, put together."""
    adder, own = Adder(task.fields()), dict[str, list[np.ndarray]]()
    for at in asked.who[:, None]:
        device = client.host.side(0, 0)
        alone = replace(asked.of(at), uploaders=np.intersect1d(device.users[at], asked.uploaders))
        arrays = contributed(task, device, alone, ()).arrays
        adder.add({name: arrays[name] for name in adder.fields})
        for name in arrays.keys() - adder.fields.keys():
            own.setdefault(name, []).append(arrays[name])
    put = {**adder.packed(), **{name: np.concatenate(values) for name, values in own.items()}}
    return {name: put[name] for name in task.fields()}


def objection(whole: Whole, method: Method, asked: Asked, arrays: Named) -> str:
    """What the server says of an upload of the first round."""
    task, samples = method.schedule.at(1)[0].task, np.diff(np.asarray(whole.done.run.split.train_offsets))
    fields: dict[str, Field] = {n: f.filled(len(asked.uploaders)) if f.each else f for n, f in task.fields().items()}
    return (
        problem_of(arrays, fields, method.max_norm)
        or fault_of(arrays, fields, len(samples), method.max_norm)
        or task.problem(arrays, len(samples), int(samples.sum()))
        or task.impossible(arrays, method.start(), Sender(1, samples, int(samples.max())))
    )
