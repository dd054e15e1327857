"""When a GPU's kernels train, why they do not, and that torch then does; most of it without Triton."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from back_ends import K, M, start, trained, world
from factorised import learner, received
from worlds import carry_out, config_of, prepare

from fedem_flwr.contract import Method
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.fallback import (
    WIDEST,
    _no_kernels,
    by_kernels,
    device_fallback,
    merge_fallback,
    method_fallback,
)
from fedem_flwr.engine.merge import Merge
from fedem_flwr.experiment import back_end as said
from fedem_flwr.models.adapter import Adapter

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def method(mode: Any = "elastic", name: str = "fedem", **sections: Any) -> Method:
    return learner(name, M, mode, model={"dim": 5}, run={"engine": "triton"}, **sections)


def why(one: Method) -> str:
    return method_fallback(one, kernels=True)


def test_they_train_where_they_are_asked_for() -> None:
    """Not under `auto`, on a GPU either: nobody has seen them there."""
    assert [name for name in ("auto", "triton", "fused", "torch", "reference") if by_kernels(name)] == ["triton"]


def test_what_kernels_do_not_know_is_said() -> None:
    assert (
        why(method())
        == why(method("replace"))
        == why(method("static"))
        == why(method("scalar"))
        == why(method("none"))
        == ""
    )
    assert why(method(merge={"hidden": (8,)})) == "kernels know adapters of two hidden layers only"
    wide = f"rows, or layers of the adapter, are wider than kernels take ({WIDEST})"
    assert why(method(merge={"hidden": (WIDEST + 1, 8)})) == wide
    assert merge_fallback(Merge("none"), WIDEST + 1) == wide and merge_fallback(Merge("none"), WIDEST) == ""
    assert merge_fallback(Merge("elastic", adapter=Adapter(4)), 4) == ""
    assert merge_fallback(Merge("static", adapter=Adapter(4, (WIDEST + 1, 8))), 4) == ""
    assert why(learner("pfedrec", M, "replace")) == "kernels know no networks"
    assert why(learner("fedrecgel", M, "replace")) == "its steps are not known to compiled functions"
    assert why(learner("fedem", M, "none", run={"engine": "torch"})) == "run.engine = 'torch'"


def test_where_kernels_do_not_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU and no interpreter; no Triton. Compiled functions want a CPU."""
    assert device_fallback(GPU) == "tensors are on cuda"
    monkeypatch.delenv("TRITON_INTERPRET")
    assert device_fallback(CPU, kernels=True) == device_fallback(torch.device("meta"), kernels=True)
    assert device_fallback(CPU, kernels=True) == "kernels want a GPU"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("fedem_flwr.engine.gpu.rows")]:
        monkeypatch.delitem(sys.modules, name)
    _no_kernels.cache_clear()
    try:
        assert device_fallback(CPU, kernels=True) == "Triton is not installed"
    finally:
        _no_kernels.cache_clear()


def test_torch_trains_and_merges_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as where it is asked for."""
    monkeypatch.delenv("TRITON_INTERPRET")
    got = received(torch.randn(K, M, 5, generator=torch.Generator().manual_seed(2)), torch.arange(K))
    one = method(local={"epochs": 1})
    state, loss, _, uncompiled = trained("triton", one, world(), got)
    assert uncompiled == "kernels want a GPU"
    assert Cohort(world(), start(one), one).merging.compiled(state["items"], state["adapter"]) == ""
    expected = trained("torch", one, world(), got)
    users = world().counts().nonzero().squeeze(1)
    assert torch.equal(loss, expected[1][users])
    for name, values in expected[0].items():
        assert torch.equal(state[name][users], values[users])


@pytest.mark.parametrize(
    ("name", "gpu", "expected"),
    [
        ("fedmf", False, ("torch", "kernels want a GPU")),
        ("fedem", True, ("triton", "")),
        ("pfedrec", True, ("torch", "kernels know no networks")),
    ],
)
def test_a_run_says_what_trains_it(
    name: str, gpu: bool, expected: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    if gpu:
        monkeypatch.setattr(said, "resolve_device", lambda _: GPU)
        monkeypatch.setattr(said, "device_fallback", lambda device, kernels: "" if kernels else "no kernels")
    run = prepare(tmp_path / "run", config_of(name, run={"engine": "triton", "rounds": 100}))
    assert said.back_end(run) == {"asked": "triton", "used": expected[0], "why": expected[1]}
    (line,) = said.back_end_said(run)
    assert line == (
        f"local training: batched torch ({expected[1]})" if expected[1] else "local training: kernels on a GPU"
    )


def test_what_torch_trains_instead_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    lines = carry_out(tmp_path / "run", config_of("fedmf", run={"rounds": 2, "engine": "triton"})).lines
    assert [line.get("uncompiled", 0) for line in lines] == [line["participants"] for line in lines]
