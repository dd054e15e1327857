"""Compiled rounds of methods that score with a network, against the reference back end and autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from back_ends import D, K, M, independent, same, start, world
from factorised import learner
from hypothesis import given, settings
from hypothesis import strategies as st

from fedem_flwr.contract import Method, Part, Pull, Update
from fedem_flwr.contract.alone import Alone
from fedem_flwr.engine.block import Batch
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.decoys import with_decoys
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.fallback import method_fallback
from fedem_flwr.engine.gradients import automatic
from fedem_flwr.engine.samples import draw_samples

OPTIONS: Mapping[str, dict[str, Any]] = {
    "pfedrec": {"lr": 0.3, "factor": 0.05},
    "fedrap": {"lr_tables": 3.0, "apart": 0.2, "sparse": 0.3, "decay": 0.02},
    "fedncf": {"hidden": (9, 4), "decay": 0.1},
    "gpfedrec": {"hidden": (7, 3), "lr": 0.03, "factor": 1.3, "pull": 20.0},
    "colr": {"rank": 3, "ridge": 0.02},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def method(name: str, options: dict[str, Any] | None = None, weights: str = "average", **sections: Any) -> Method:
    local = {"epochs": 3, "batch_size": 20, "negatives": 3, "lr_user": 0.05, "lr_item": 0.1}
    own = {"options": OPTIONS[name] | (options or {})}
    sections = {
        "merge": {"mode": "replace"},
        "model": {"dim": D},
        "aggregate": {"weights": weights},
        "method": own,
    } | sections
    sections["local"] = local | sections.get("local", {})
    return learner(name, M, sections["merge"]["mode"], **sections)


def tables(one: Method) -> Downloads:
    """Everything shared: half of the users one value, half another."""
    g, slot = torch.Generator().manual_seed(3), torch.arange(K) % 2
    shared = {name: part for name, part in one.parts().items() if not part.private}
    shape = {name: (M, part.width) if part.axis == "item" else (part.width,) for name, part in shared.items()}
    return {name: Download(0.4 * torch.randn(2, *size, generator=g), slot) for name, size in shape.items()}


@pytest.mark.parametrize("local", [{}, {"early_stop": 0.1, "epochs": 6}, {"batch_size": 0}])
@pytest.mark.parametrize(
    ("name", "options", "weights"),
    [
        ("pfedrec", {}, "average"),
        ("fedrap", {}, "average"),
        ("fedrap", {"head": True, "curriculum": "constant"}, "average"),
        ("fedncf", {}, "rows"),
        ("fedncf", {"hidden": ()}, "average"),
        ("gpfedrec", {}, "average"),
        ("colr", {}, "rows"),
    ],
)
def test_a_round_equals_the_reference(name: str, options: dict[str, Any], weights: str, local: dict[str, Any]) -> None:
    one = method(name, options, weights, local=local)
    same(one, world(), tables(one))


def apart(one: Method) -> Method:
    """The same, with an update for each part."""

    class Apart(type(one)):  # type: ignore[misc]
        def updates(self, round_: int) -> Sequence[Update]:
            (both,) = super().updates(round_)
            pulls = {name: {name: pull} for name, pull in both.pulls.items()}
            return [replace(both, rates={name: rate}, pulls=pulls.get(name, {})) for name, rate in both.rates.items()]

    return Apart(one.config, M)


@pytest.mark.parametrize("name", ["gpfedrec", "fedrap"])
def test_parts_that_move_one_after_the_other(name: str) -> None:
    one = apart(method(name))
    same(one, world(), tables(one))


def test_before_anything_was_received() -> None:
    for name in OPTIONS:
        same(method(name), world(), {})


def test_decoys_and_secrets() -> None:
    one = method("fedncf")
    same(one, with_decoys(world(), bytes(range(16)), 1.5), tables(one))


def test_a_client_does_not_depend_on_its_cohort() -> None:
    """To the bit, whoever else is in it, and on however many threads."""
    for name in OPTIONS:
        one = method(name, local={"early_stop": 0.05})
        independent(one, world(), tables(one), threads=1, others=3)


def by_gradients(one: Method) -> Method:
    """The same, with one plain gradient step of rate 1 on everything: what changes is minus the gradient."""

    class Plain(type(one)):  # type: ignore[misc]
        def updates(self, round_: int) -> Sequence[Update]:
            moved = [name for update in one.updates(round_) for name in update.rates]
            return [Update(dict.fromkeys(moved, 1.0), "sgd")]

    return Plain(one.config, M)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(OPTIONS)),
    hidden=st.lists(st.integers(1, 19), max_size=3),
    dim=st.integers(1, 21),
    seed=st.integers(0, 99),
    head=st.booleans(),
)
def test_gradients_are_those_of_automatic_differentiation(
    name: str, hidden: list[int], dim: int, seed: int, head: bool
) -> None:
    """Networks of any widths, heads and vectors, one table and two; by one step of rate 1."""
    shape = {"fedrap": {"head": head}, "colr": {"rank": 1 + seed % dim}, "pfedrec": {}}
    options = shape.get(name, {"hidden": tuple(hidden) or (1,)})
    one = by_gradients(method(name, options, local={"epochs": 1, "batch_size": 0}, model={"dim": dim}))
    alone, data = Alone(one), world(seed)
    everyone = data.counts().nonzero().squeeze(1)
    alone.local = one.local
    cohort = Cohort(data, start(alone), alone)  # type: ignore[arg-type]
    samples = draw_samples(data, everyone, one.local.negatives, Draws(one.seed), 2)
    block = cohort.block_of(everyone, {}, samples, 2, merging=False)
    valid = (torch.arange(samples.row.shape[1]) < samples.size.unsqueeze(1)).float()
    (update,) = one.updates(2)
    _, expected = automatic(one, Batch(block, samples.row, valid), list(update.rates))
    assert method_fallback(alone, 2) == ""
    found = cohort.train(everyone, {}, 2)
    assert found.uncompiled == ""
    after = cohort.block_of(everyone, {}, samples, 2, merging=False)
    for part, gradients in expected.items():
        real = block.real if block.axes[part] == "item" else slice(None)
        change, gradient = (block.parts[part] - after.parts[part])[real], gradients[real]
        torch.testing.assert_close(change, gradient, rtol=1e-4, atol=3e-6 * max(1.0, float(gradient.abs().max())))


def test_what_is_not_known_is_trained_by_torch() -> None:
    def why(changed: Sequence[Update] | None = None, name: str = "gpfedrec", change: str = "", **sections: Any) -> str:
        one = method(name, **sections)

        class Other(type(one)):  # type: ignore[misc]
            def updates(self, round_: int) -> Sequence[Update]:
                found: Sequence[Update] = super().updates(round_)
                return found if changed is None else changed

            def parts(self) -> Mapping[str, Part]:
                parts = super().parts()
                return {**parts, change: replace(parts[change], change=True)} if change else parts

        return method_fallback(Other(one.config, M))

    unknown = "its updates are not known to compiled functions"
    assert why() == why([Update({"network": 1.0}), Update({"user": 1.0}, "sgd")]) == ""
    assert why([Update({"network": 1.0}), Update({"network": 1.0})]) == unknown
    assert why([Update({"items": 1.0}, "kept-adam")]) == unknown
    assert why([Update({"anchor": 1.0}, "sgd")]) == unknown
    assert why([Update({"user": 1.0}, "sgd", {"user": Pull(0.1, "network")})]) == unknown
    both = {"own": 1.0, "shared": 1.0}
    assert why([Update(both, "sgd", dict.fromkeys(both, Pull(0.1)))], "fedrap") == why([Update(both)], "fedrap") == ""
    for to in ("shared", "third"):
        assert why([Update(both, "sgd", {"own": Pull(0.1, to)})], "fedrap") == unknown
    assert why(name="fedrap", change="shared") == unknown == why([Update({"items": 1.0}, "adam", {"items": Pull(0.1)})])
    for often in both:
        by = dict.fromkeys(both, "sgd") | {often: "frequency-sgd"}
        assert why([Update(both, by)], "fedrap") == unknown  # type: ignore[arg-type]
    assert why(merge={"mode": "elastic"}) == why(merge={"mode": "static"}) == ""
    assert why(gradients={"clip": 1.0}) == "its gradients are clipped"
    unseen = method("gpfedrec", merge={"mode": "elastic"})
    unseen.merged = "anchor"  # type: ignore[misc]
    assert method_fallback(unseen) == "its network does not see the rows that are merged"
    one = method("fedncf")

    class More(type(one)):  # type: ignore[misc]
        def parts(self) -> Mapping[str, Part]:
            return {**super().parts(), "more": Part("model", 3, up="sum", mean="users")}

    class Scored(type(one)):  # type: ignore[misc]
        def score(self, parts: Any) -> Any:
            return 2 * super().score(parts)

    assert method_fallback(More(one.config, M)) == "it sends up parts that compiled functions do not know"
    assert method_fallback(Scored(one.config, M)) == "its steps are not known to compiled functions"
    not_kept = Update({"items": 1.0}, "sgd", {"items": Pull(0.1, "more")})
    More.updates = lambda self, round_: [not_kept]
    assert method_fallback(More(one.config, M)) == unknown
