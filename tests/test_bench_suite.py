"""What the suite measures does the same on both sides; and its real benchmarks run, the cheap ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from benches import Told

from fedem_flwr.aggregation import aggregation_weights
from fedem_flwr.bench.asking import TOP, plain_service
from fedem_flwr.bench.catalogue import BENCHMARKS, chosen
from fedem_flwr.bench.local_rounds import Work, work
from fedem_flwr.bench.plain_loop import LeaveOneOut, PlainFedEM
from fedem_flwr.bench.sending import crossing, message_of, packed_plainly, upload
from fedem_flwr.bench.suite import Setting
from fedem_flwr.bench.timing import CLOCK
from fedem_flwr.bench.weighing import ALPHA, shares_and_similarity, solver
from fedem_flwr.bench.whole import rounds_in_turns
from fedem_flwr.bench.worlds import config_of, for_the_plain_loop, shape
from fedem_flwr.engine import cohort
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.messages.wire import pack_arrays, unpack_arrays
from fedem_flwr.network.condense import condense, expand

TINY = shape(6, 40, 12.0)


@pytest.mark.parametrize("name", ["wire/process", "wire/network", "aggregation/combine", "serving/one"])
def test_a_benchmark_of_the_suite(name: str, tmp_path: Path, one_thread: None) -> None:
    (benchmark,) = chosen([name])
    turns: list[int] = []
    row = benchmark.measure(benchmark, Setting(True, 1, 3, tmp_path, tell=turns.append, least=1e-9))
    assert row.name == name and row.turns == 3 and turns == [1, 2, 3] and len(row.pace) == 3
    assert row.ratio is not None and row.ratio_cpu is not None


def test_names_are_families_and_members() -> None:
    names = [each.name for each in BENCHMARKS]
    assert len(set(names)) == len(names) and all(name.count("/") == 1 for name in names)
    assert {name.partition("/")[0] for name in names} == {
        *("engine", "growth", "aggregation", "wire", "loading", "serving", "whole", "ray")
    }
    assert [each.name for each in chosen(["wire", "ray/cohorts"])] == ["wire/process", "wire/network", "ray/cohorts"]
    with pytest.raises(InputError, match="did you mean 'engine/fed"):
        chosen(["engine/fedm"])


def test_the_solver_finds_the_closed_forms_weights() -> None:
    shares, sigma = shares_and_similarity(20)
    closed, solve = aggregation_weights("eq13", shares, sigma, ALPHA), solver(shares.numpy())
    for row in range(3):
        np.testing.assert_allclose(solve(sigma[row].numpy()), closed[row], atol=1e-3)


def test_what_crosses_is_what_was_sent() -> None:
    named = upload()
    condensed, small = crossing(condense(message_of(pack_arrays(named))))
    plain, large = crossing(message_of(packed_plainly(named)))
    for message in (expand(condensed), plain):
        found = unpack_arrays(message.content.array_records["arrays"])
        assert all(np.array_equal(found[key], values) for key, values in named.items())
    assert small < large


def test_the_plain_service_solves_its_normal_equations() -> None:
    table = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    ids = [f"i{at}" for at in range(30)]
    found = plain_service(table, ids)(["i3", "i7"])
    rows = table[[3, 7]]
    p = torch.linalg.solve(0.3 * table.T @ table + 0.005 * torch.eye(4) + rows.T @ rows, rows.sum(0))
    scores = {name: float(q @ p) for name, q in zip(ids, table, strict=True) if name not in ("i3", "i7")}
    best = sorted(scores, key=lambda name: -scores[name])[:TOP]
    assert [name for name, _ in found] == best
    assert [score for _, score in found] == pytest.approx([scores[name] for name in best], rel=1e-4)


@pytest.fixture(scope="module")
def plain_data(tmp_path_factory: pytest.TempPathFactory) -> LeaveOneOut:
    return for_the_plain_loop(config_of("fedem-released", TINY), tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("fetch", ["samples", "batches"])
def test_the_plain_loop_sees_each_sample_once_however_it_fetches(plain_data: LeaveOneOut, fetch: str) -> None:
    plain = PlainFedEM(*plain_data, weights="closed", fetch=fetch)  # type: ignore[arg-type]
    data = plain._samples(0)
    batches = list(plain._loader(data))
    assert max(len(items) for items, _ in batches) <= 256
    seen = [pair for items, labels in batches for pair in zip(items.tolist(), labels.tolist(), strict=True)]
    expected = list(zip(data.tensors[0].tolist(), data.tensors[1].tolist(), strict=True))
    assert Counter(seen) == Counter(expected) and seen != expected, "in another order"


@pytest.fixture(scope="module")
def round_of_fedem() -> Work:
    return work(config_of("fedem", TINY), "torch")


def test_a_local_round_can_be_trained_over_and_over(round_of_fedem: Work, one_thread: None) -> None:
    kept = []
    for _ in range(2):
        everybody = round_of_fedem.cohort("torch")
        round_of_fedem.train(everybody)
        kept.append(everybody.state["items"])
    assert torch.equal(*kept) and not torch.equal(kept[0], round_of_fedem.state["items"])


def test_what_is_not_compiled_is_not_measured_as_compiled(
    round_of_fedem: Work, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(cohort, "fallback", lambda *given: "its steps are unknown")
    with pytest.raises(FedemError, match="compiled functions do not train fedem: its steps are unknown"):
        round_of_fedem.train(round_of_fedem.cohort("fused"))


def test_rounds_take_turns_with_what_is_beside_them(tmp_path: Path, one_thread: None) -> None:
    told, seen = Told(), list[int]()
    config = config_of("fedem-released", TINY, {"run": {"rounds": 3, "engine": "torch"}})
    taken = rounds_in_turns(
        config,
        [lambda: told.spend(5.0), lambda: told.spend(1.0)],
        tmp_path / "run",
        told.clock,
        lambda taken: seen.append(len(taken[-1])),
    )
    assert taken == [[(0.0, 0.0)] * 3, [(5.0, 2.5)] * 3, [(1.0, 0.5)] * 3] and seen == [1, 2, 3]
    assert CLOCK.wall() > 0
