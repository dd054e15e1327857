"""Cells: what must see single users' contributions sees them, before anything is added up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from clients.method import MethodClient
from conformance.methods import Subject
from conformance.numbers import SUM_NEAR, asked_of, close
from conformance.runs import Named, Runs, Whole
from fedem_flwr.contract import Method, Task
from fedem_flwr.contract.adding import Adder, contributed
from fedem_flwr.engine.contribution import Contribution, Stage
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.samples import draw_samples

RADIUS = 0.05


def identity(given: Contribution, round_: int) -> Contribution:
    """Changes nothing."""
    return given


def clipped(given: Contribution, round_: int) -> Contribution:
    """Each user's change, of everything together, no longer than `RADIUS`."""
    started = {name: given.before.get(name, torch.zeros(())) for name in (*given.rows, *given.values)}
    real = given.real.unsqueeze(-1)
    change = {name: torch.where(real, rows - started[name], 0.0) for name, rows in given.rows.items()}
    change |= {name: x - started[name] for name, x in given.values.items() if x.is_floating_point()}
    norm = sum((x.flatten(1).square().sum(1) for x in change.values()), torch.zeros(len(given.users))).sqrt()
    factor = RADIUS / norm.clamp(min=RADIUS)
    moved = {n: started[n] + x * factor.view(-1, *[1] * (x.ndim - 1)) for n, x in change.items()}
    rows = {name: torch.where(real, moved[name], old) for name, old in given.rows.items()}
    return replace(given, rows=rows, values={name: moved.get(name, old) for name, old in given.values.items()})


def stages(subject: Subject, runs: Runs) -> None:
    """A stage that does nothing changes nothing; one that clips gives the sum of what was clipped by hand."""
    whole = runs.whole(subject, 0)
    tasks = {type(task_of(whole.client().method, round_)): round_ for round_ in reversed(whole.rounds)}
    for round_ in tasks.values():  # the first of each
        plain = upload(whole, round_)
        close(upload(whole, round_, identity), plain, SUM_NEAR, f"round {round_}, nothing done")
        found = upload(whole, round_, clipped)
        assert not _alike(found, plain), f"round {round_}: nothing was clipped"
        if round_ == 1 or not task_of(whole.client().method, round_).handles_stages:  # later rounds began elsewhere
            close(found, by_hand(whole, round_), SUM_NEAR, f"round {round_}, clipped")


def task_of(method: Method, round_: int) -> Task:
    """What a round does."""
    return method.schedule.at(round_)[0].task


def upload(whole: Whole, round_: int, *through: Stage) -> Named:
    """A cohort's upload of all users, with stages in between."""
    client = whole.client()
    whole.until(client, round_)
    client.method.stages = lambda: through  # type: ignore[method-assign]
    return whole.answer(client, round_)


def by_hand(whole: Whole, round_: int) -> Named:
    """Single users' uploads, each clipped, and added up."""
    client = whole.client()
    whole.until(client, round_)
    task = task_of(client.method, round_)
    adder, own = Adder(task.fields()), dict[str, list[np.ndarray]]()
    for arrays, touched in ones(client, whole, round_):
        short = shortened(client.method, task, arrays, touched)
        adder.add({name: short[name] for name in adder.fields})
        for name in short.keys() - adder.fields.keys():
            own.setdefault(name, []).append(short[name])
    return {**{name: np.concatenate(values) for name, values in own.items()}, **adder.packed()}


def ones(client: MethodClient, whole: Whole, round_: int) -> Iterator[tuple[Named, np.ndarray]]:
    """What each user would send alone, and (m, 1) which items its samples hold."""
    asked = asked_of(whole, client, round_)
    device, task = client.host.side(0, round_ - 1), task_of(client.method, round_)
    for at in [asked.who] if task.grouped else asked.who[:, None]:
        one = replace(asked.of(at), uploaders=np.intersect1d(device.users[at], asked.uploaders))
        held = np.ones((client.method.items, 1), bool)
        if task.handles_stages:
            draws, data = Draws(client.method.seed), device.cohort.data
            samples = draw_samples(data, torch.from_numpy(at), client.method.local.negatives, draws, round_)
            held = np.isin(np.arange(client.method.items), samples.touched[0, : samples.touched_count[0]])[:, None]
        yield contributed(task, device, one, ()).arrays, held


def shortened(method: Method, task: Task, arrays: Named, touched: np.ndarray) -> Named:
    """One user's upload after clipping; the parts of local training by their change, of item parts in touched rows."""
    parts = method.parts() if task.handles_stages else {}
    start, scale = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for name, values in arrays.items():
        if values.dtype.kind != "f":
            continue
        start[name], scale[name] = np.zeros_like(values), np.ones(())
        if name in parts and not parts[name].change:
            start[name] = parts[name].initial(name, method.items, method.seed).numpy()
        if f"{name}-weight" in arrays:
            weight = arrays[f"{name}-weight"].astype(np.float64)
            scale[name] = weight[:, None] if len(weight) == method.items else weight
    lengths = {
        name: x for name, x in arrays.items() if name.endswith("-weight") and name in start
    }  # how far a row moved
    change = {
        name: np.where(scale[name] > 0, arrays[name] / np.where(scale[name] > 0, scale[name], 1) - start[name], 0)
        for name in start.keys() - lengths.keys()
    }
    inside = {
        name: np.where(touched, x, 0) if len(x) == len(touched) != scale[name].size else x for name, x in change.items()
    }
    norm = float(np.sqrt(sum(np.square(x).sum() for x in inside.values())))
    factor = min(1.0, RADIUS / max(norm, 1e-12))
    new = {name: start[name] + x + (factor - 1) * inside[name] for name, x in change.items()}
    new = {n: x * scale[n] * (factor if f"{n}-weight" in lengths else 1) for n, x in new.items()}
    short = {**new, **{name: x * factor for name, x in lengths.items()}}
    return {**arrays, **{name: x.astype(np.float32) for name, x in short.items()}}


def _alike(one: Named, other: Named) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)
