"""What a method overrides is what is trained; and what does not fit together is refused before anything is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conformance.methods import Subject
from conformance.runs import Runs
from torch import Tensor
from worlds import carry_out, carry_out_watched

from fedem_flwr.config import Config
from fedem_flwr.contract import Field, Gathered, Method, State, Task, Upload
from fedem_flwr.contract.adding import contributed
from fedem_flwr.contract.asked import Asked, Device
from fedem_flwr.engine.block import Batch
from fedem_flwr.engine.contribution import Contribution
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.gradients import automatic
from fedem_flwr.engine.parts import Part
from fedem_flwr.engine.samples import draw_samples
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.methods.fedem import FedEM
from fedem_flwr.methods.fedfast import FedFast
from fedem_flwr.methods.fedmf import FedMF
from fedem_flwr.nodes.policy import NodePolicy
from strategies.sums import SumsStrategy
from strategies.tables import TablesStrategy

HERE = "test_hooks"
FEDFAST = Subject("fedfast")


class Pulled(FedMF):
    """FedMF that pulls its rows to zero."""

    def penalty(self, parts: Mapping[str, Tensor], valid: Tensor, round_: int) -> Tensor | None:
        return 100 * parts["items"].square().sum((1, 2))


class PulledFedEM(FedEM):
    """The same, where clients train through a merge."""

    def penalty(self, parts: Mapping[str, Tensor], valid: Tensor, round_: int) -> Tensor | None:
        return (parts["items"].square().sum(2) * valid).sum(1) / valid.sum(1).clamp(min=1)


class HalfSent(FedFast):
    """FedFast, of whose delegates some keep their vector."""

    def __init__(self, config: Config, items: int) -> None:
        Method.__init__(self, config, items)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("hooks"))


def test_a_penalty_reaches_gradients_that_are_written_out(runs: Runs) -> None:
    client = runs.whole(Subject(f"{HERE}:Pulled"), 0).client()
    method, cohort, draws = client.method, client.host.cohort(0, 0), Draws(0)
    samples = draw_samples(cohort.data, cohort.everyone, 1, draws, 1)
    block = cohort.block_of(cohort.everyone, {}, samples, 1, merging=False)
    batch = Batch(block, samples.row[:, :4], torch.ones(len(block.users), 4))
    found, plain = method.gradients(batch, ["items"])[1], FedMF.gradients(FedMF(method.config, 50), batch, ["items"])[1]
    torch.testing.assert_close(found, automatic(method, batch, ["items"])[1])
    assert found["items"].norm() > 10 * plain["items"].norm()


def test_users_own_values_need_a_copy_and_a_strategy_that_takes_them() -> None:
    with pytest.raises(ValueError, match="kept = True"):
        Part("user", 4, up="each")
    config = FEDFAST.config()
    with pytest.raises(InputError, match="TablesStrategy"):
        SumsStrategy(config, 50)
    assert TablesStrategy(config, 50).method.parts()["user"].up == "each"


def test_what_users_are_scored_with_is_one_of_two() -> None:
    class Misspelt(FedMF):
        EVALUATED = "merge"  # type: ignore[assignment]

    with pytest.raises(ValueError, match="Misspelt"):
        Misspelt(Subject("fedmf").config(), 50)


def test_sums_beside_users_own_values_have_the_policy_of_sums(runs: Runs) -> None:
    client = runs.whole(FEDFAST, 0).client()
    phase = client.method.phases()[0]
    alone = Asked(1, "train", np.array([0]), np.empty(0, np.int64), {}, {}, torch.device("cpu"), True)
    client.host.policy = NodePolicy(5, True)
    assert len(client.permitted(phase, alone)[0]) == 0
    assert len(client.permitted(phase, alone.of(np.arange(5)))[0]) == 5
    client.host.policy = NodePolicy.networked()
    with pytest.raises(FedemError, match="refuses"):
        client.permitted(phase, replace(alone, uploaders=np.array([0])))


def test_fewer_uploaders_than_participants(runs: Runs) -> None:
    """Sums are over the participants, and are checked for them."""
    config = Subject(f"{HERE}:HalfSent").config(aggregate={"fraction": 0.5}, run={"users_per_node": 7})
    done = carry_out(runs.path(), config)
    assert done.outcome.failures == []


def test_a_fraction_of_sums_is_refused() -> None:
    with pytest.raises(InputError, match=r"set run\.participants instead"):
        SumsStrategy(Subject("conformance.biased:Biased").config(aggregate={"fraction": 0.5}), 50)


class Divided(Task):
    """A fold that divides by how many there were."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def fields(self) -> dict[str, Field]:
        return {"ones": Field((1,)), "own": Field((2,), each=True)}

    def needs(self) -> Sequence[str]:
        return ()

    def contribute(self, device: Device, asked: Asked) -> Upload:
        own = np.stack([np.asarray(asked.uploaders, np.float32)] * 2, 1)
        return Upload({"ones": np.full(1, len(asked.who), np.float32), "own": own}, len(asked.who))

    def fold(self, state: State, gathered: Gathered) -> State:
        return {"ones": gathered.sums["ones"] / gathered.trained}


def halved(given: Contribution, round_: int) -> Contribution:
    return replace(given, values={name: x / 2 for name, x in given.values.items()})


def test_users_own_values_go_through_stages_one_by_one(runs: Runs) -> None:
    client = runs.whole(FEDFAST, 0).client()
    device = client.host.side(0, 0)
    asked = Asked(1, "train", np.arange(4), np.array([1, 3]), {}, {}, torch.device("cpu"), True)
    upload = contributed(Divided(client.method), device, asked, [halved])
    assert upload.arrays["own"].tolist() == [[0.5, 0.5], [1.5, 1.5]]
    assert upload.arrays["ones"] == 2 and upload.samples == 4


def test_nothing_is_made_of_nothing() -> None:
    """Every node held its sum back: the round changes nothing."""
    strategy: Any = SumsStrategy(Subject("fedmf").config(), 50)
    strategy.phase = replace(strategy.phase, task=Divided(strategy.method))
    strategy.set_users(np.full(21, 5)) if hasattr(strategy, "set_users") else setattr(
        strategy, "samples", np.full(21, 5)
    )
    strategy.clear()
    before = strategy.kept
    strategy.combine(1)
    assert strategy.kept is before and strategy.failures == [] and strategy.done == 1


def test_what_waits_for_users_who_did_not_train_waits_on() -> None:
    """Of how many a sum is held back, a server knows; of which ones, it does not: then nobody counts as served.

    Who has spent its ε has trained on all the same.
    """
    config = Subject("fedem").config()
    none = {"users": np.empty(0, np.int64), "items": np.empty((0, 50, config.model.dim), np.float32)}
    for served, trained, expected in (([0, 1], 2, [2]), ([0, 1], 1, [2]), ([], 1, [0, 1, 2]), ([], 0, [0, 1, 2])):
        strategy: Any = TablesStrategy(config, 50)
        strategy.samples = np.full(21, 5)
        waiting = {"receivers": torch.arange(3), "items": torch.randn(3, 50, config.model.dim)}
        strategy.kept = {**strategy.kept, **waiting}
        strategy.receive(none, np.array(served, np.int64), trained)
        assert strategy.gathered().trained == trained
        strategy.combine(1)
        assert strategy.kept["receivers"].tolist() == expected and strategy.failures == []
        torch.testing.assert_close(strategy.kept["items"], waiting["items"][expected])


def test_where_a_sum_is_held_back_nobodys_own_values_are_missed(runs: Runs) -> None:
    """Nodes of seven, of which few train: some hold all of it back, and the run goes on without failures."""
    config = Subject("fedfast").config(run={"users_per_node": 7, "participants": 0.6, "rounds": 3})
    done, _ = carry_out_watched(runs.path(), config, policy=NodePolicy(5, True))
    held = [line.get("withheld", 0) for line in done.lines]
    assert done.outcome.failures == [] and 0 < min(held) < 12
