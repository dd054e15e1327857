"""Cells: what a device computes is what the slow and obvious way computes, for each of its users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from clients.method import MethodClient
from conformance.methods import USERS, Subject
from conformance.runs import Named, Runs, Whole
from fedem_flwr.contract import Asked, Method
from fedem_flwr.contract.adding import Adder, contributed
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.engine.block import Batch
from fedem_flwr.engine.contribution import Stage
from fedem_flwr.engine.downloads import Download
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.fallback import method_fallback
from fedem_flwr.engine.gradients import automatic
from fedem_flwr.engine.samples import draw_samples, shuffled_rows

TWIN_NEAR = 5e-5  # float32 whose operations come in another order, and an Adam that divides by small numbers
SUM_NEAR = 1e-5


def twin(subject: Subject, runs: Runs) -> None:
    """A round by the slow back end, one user after the other, from where the fast one stood.

    Of methods whose clients keep nothing and train in a task of their own: a cohort's sums are those of its users.
    """
    whole = runs.whole(subject, 0)
    fast = whole.client()
    by_engine = trains_by_engine(fast.method)
    assert by_engine or not any(phase.task.grouped for phase in fast.method.phases()), "it has no slow way"
    slow = one_by_one if by_engine else alone
    for round_ in whole.rounds:
        expected = slow(whole, round_)
        found = whole.answer(fast, round_)
        close(found, expected, TWIN_NEAR, f"round {round_}")
        if not fast.method.stateless:
            kept = {name: x.numpy() for name, x in fast.host.cohort(0, round_).state.items()}
            close(kept, whole.noted.users(round_), 0.0, f"what is kept after round {round_}, answered again")


def back_ends(subject: Subject, runs: Runs) -> None:
    """The last round by batched torch, from where compiled functions stood; of what these do not know, to the bit."""
    whole = runs.whole(subject, 0)
    fast, round_ = whole.client(), whole.rounds[-1]
    assert trains_by_engine(fast.method), "no part of it is trained by the engine"
    client = whole.client()
    whole.until(client, round_)
    client.method.engine = "torch"
    near = 0.0 if method_fallback(fast.method, round_) else TWIN_NEAR
    close(whole.answer(fast, round_), whole.answer(client, round_), near, f"round {round_}")
    kept = {name: x.numpy() for name, x in client.host.cohort(0, round_).state.items()}
    close(kept, whole.noted.users(round_), near, f"what is kept after round {round_}")


def one_by_one(whole: Whole, round_: int) -> Named:
    """The reference back end's upload; its users' state must be that of the fast one."""
    client = whole.client()
    assert trains_by_engine(client.method), "its tasks train without the engine's back ends"
    whole.until(client, round_)
    client.method.engine = "reference"
    upload = whole.answer(client, round_)
    kept = {name: x.numpy() for name, x in client.host.cohort(0, round_).state.items()}
    close(kept, whole.noted.users(round_), TWIN_NEAR, f"what is kept after round {round_}")
    return upload


def trains_by_engine(method: Method) -> bool:
    """Whether the engine's back ends train the method's parts."""
    trained = any(part.own or part.up != "none" for part in method.parts().values())
    return trained and any(isinstance(phase.task, LocalTraining) for phase in method.phases())


def alone(whole: Whole, round_: int) -> Named:
    """The sum over cohorts of one user."""
    client = whole.client()
    whole.until(client, round_)
    return summed(client, asked_of(whole, client, round_), ())


def asked_of(whole: Whole, client: MethodClient, round_: int) -> Asked:
    """A round's message, as the method sees it."""
    arrays, config = whole.message(client, "train", round_)
    return client.asked(client.host.side(0, round_ - 1), arrays, config)


def summed(client: MethodClient, asked: Asked, stages: Sequence[Stage]) -> Named:
    """Uploads of single users, added up by name on the server's side."""
    task = client.method.schedule.named(asked.phase).task
    adder = Adder(task.fields())
    for at in asked.who:
        device = client.host.side(0, asked.round - 1)
        adder.add(contributed(task, device, asked.of(np.array([at])), stages).arrays)
    return adder.packed()


def close(found: Named, expected: Named, tolerance: float, what: str) -> None:
    """Arrays of the same names and shapes; the tolerance is a share of the largest entry where that is above 1."""
    assert found.keys() == expected.keys(), what
    for name, array in found.items():
        assert array.shape == expected[name].shape and array.dtype == expected[name].dtype, f"{what}: '{name}'"
        gap = np.abs(array.astype(np.float64) - expected[name].astype(np.float64)).max(initial=0)
        size = max(1.0, float(np.abs(array).max(initial=0)))
        assert gap <= tolerance * size, f"{what}: '{name}' is off by {gap:.2g} of {size:.2g}"


def gradients(subject: Subject, runs: Runs) -> None:
    """A batch's gradients, as the method gives them, are those of automatic differentiation."""
    client = runs.whole(subject, 0).client()
    method, cohort = client.method, client.host.cohort(0, 0)
    assert trains_by_engine(method), "no part of it is trained by the engine"
    draws = Draws(method.seed)
    samples = draw_samples(cohort.data, cohort.everyone, method.local.negatives, draws, 2)
    block = cohort.block_of(cohort.everyone, {}, samples, 2, merging=False)
    row = shuffled_rows(samples, block.users, draws, 2, 0)[:, : method.local.batch_size]
    valid = (torch.arange(row.shape[1]) < samples.size[:, None]).float()
    for update in method.updates(2):
        names = list(update.rates)
        loss, found = method.gradients(Batch(block, row, valid), names)
        entropy, expected = automatic(method, Batch(block, row, valid), names)
        torch.testing.assert_close(loss.double(), entropy.double(), rtol=1e-5, atol=1e-5)
        for name in names:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=f"'{name}'")
            assert bool(expected[name].abs().sum() > 0), f"'{name}' has no gradient"


def downloads(subject: Subject, runs: Runs) -> None:
    """Two users with different tables: each is scored with, and trained from, its own."""
    client = runs.whole(subject, 0).client()
    method, parts = client.method, client.method.parts()
    shared = [name for name, part in parts.items() if part.axis == "item" and not part.private]
    assert shared and trains_by_engine(method), "no table goes down to be trained by the engine"
    starts = {name: parts[name].initial(name, method.items, method.seed) for name in shared}
    both = {name: torch.stack([start, start.flip(0) + 0.1]) for name, start in starts.items()}
    slot = torch.arange(USERS) % 2
    several = {name: Download(tables, slot) for name, tables in both.items()}
    one = [{name: Download.for_all(tables[at], USERS) for name, tables in both.items()} for at in (0, 1)]
    everyone = torch.arange(USERS)

    scores = client.host.cohort(0, 0).scores(everyone, several)[0]
    for at in (0, 1):
        expected = client.host.cohort(0, 0).scores(everyone[slot == at], one[at])[0]
        torch.testing.assert_close(scores[slot == at], expected, rtol=1e-5, atol=1e-5)
    together, trained = client.host.cohort(0, 0), list[Named]()
    sums = together.train(everyone, several, 1, sums=True).sums
    parts_of_sums = []
    for at in (0, 1):
        cohort, inside = client.host.cohort(0, 0), everyone[slot == at]
        parts_of_sums.append(cohort.train(inside, one[at], 1, sums=True).sums)
        trained.append({name: values[inside].numpy() for name, values in cohort.state.items()})
        kept = {name: values[inside].numpy() for name, values in together.state.items()}
        close(kept, trained[at], SUM_NEAR, f"what users with table {at} keep")
    for name, found in sums.items():
        expected = {name: parts_of_sums[0][name].total.numpy() + parts_of_sums[1][name].total.numpy()}
        close({name: found.total.numpy()}, expected, SUM_NEAR, "sums")
