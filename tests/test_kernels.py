"""A GPU's kernels in Triton's interpreter, against the reference back end; and that they compile for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from back_ends import K, M, independent, same, start, trained, world
from factorised import learner, received
from test_flat_draws import Seen

from fedem_flwr.contract import Method
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.decoys import with_decoys
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.engine.fallback import _no_kernels
from fedem_flwr.engine.gpu.draws import Sizes
from fedem_flwr.engine.merge import MergeMode, Schedule
from fedem_flwr.engine.merging import as_gate

pytest.importorskip("triton", reason="Triton is not installed; see CONTRIBUTING.md")
pytestmark = pytest.mark.usefixtures("one_thread")
D, POSITIVES = 5, (3, 0, 7, 2, 2, 5, 1)  # with 2 negatives each and batches of 8: up to 3 batches


def small() -> Any:
    return world(positives=POSITIVES)


def method(mode: MergeMode, schedule: Schedule = "paper", name: str = "fedem", **sections: Any) -> Method:
    local = {"epochs": 2, "batch_size": 8, "negatives": 2, "lr_user": 0.05, "lr_item": 0.1}
    merge = {"rho": 0.3, "hidden": (9, 4), "epochs": 2, "lr": 0.07} | sections.pop("merge", {})
    return learner(
        name, M, mode, schedule, model={"dim": D}, local=local | sections.pop("local", {}), merge=merge, **sections
    )


def tables() -> Downloads:
    """Tables for all but user 3, in another order than the users."""
    values = 0.4 * torch.randn(6, M, D, generator=torch.Generator().manual_seed(2))
    return received(values, torch.tensor([3, 0, 5, -1, 4, 1, 2]))


@pytest.mark.parametrize(
    ("mode", "schedule", "deterministic"),
    [
        ("none", "paper", True),
        ("replace", "paper", False),
        ("static", "released", True),
        ("scalar", "paper", True),
        ("scalar", "released", False),
        ("elastic", "paper", True),
        ("elastic", "released", True),
        ("elastic", "released", False),
    ],
)
def test_a_round_equals_the_reference(mode: MergeMode, schedule: Schedule, deterministic: bool) -> None:
    one = method(mode, schedule, run={"deterministic": deterministic}, local={"early_stop": 0.2, "epochs": 3})
    same(one, small(), tables(), engine="triton")


@pytest.mark.parametrize(
    ("weights", "local", "deterministic"),
    [
        ("rows", {"batch_size": 0}, True),
        ("average", {"optimiser": "sgd", "ridge": 0.01}, True),
        ("rows", {"optimiser": "frequency-sgd", "ridge": 0.01}, True),
        ("rows", {"optimiser": "frequency-sgd", "ridge": 0.01}, False),
    ],
)
def test_sums_of_one_table_for_all(weights: str, local: dict[str, Any], deterministic: bool) -> None:
    got = {"items": Download.for_all(torch.randn(M, D, generator=torch.Generator().manual_seed(4)), K)}
    run = {"deterministic": deterministic}
    one = method("replace", name="fedmf", local=local, run=run, aggregate={"weights": weights})
    same(one, small(), got, engine="triton")


def test_another_optimiser_where_the_adapter_alone_passes_the_merge() -> None:
    """Eq. 11 has Adam for Θ; Eq. 12 sees rows as they lie."""
    local = {"optimiser": "sgd"}
    same(
        method("elastic", name="fedmf", local=local, aggregate={"weights": "rows"}), small(), tables(), engine="triton"
    )


def test_decoys_secrets_and_items_for_the_adapter_alone() -> None:
    """And sums of whole tables that users keep, whose rows before the round are looked at."""
    secret = with_decoys(small(), bytes(range(16)), 1.5)
    gate = as_gate(secret, torch.tensor([0, 2, 2, 4, 6, 8, 9, 10]), torch.arange(10) * 7)
    one = method("elastic", "released", "fedmf", merge={"gate_data": "heldout"}, aggregate={"weights": "average"})
    same(one, secret, tables(), gate, engine="triton")


def test_a_client_does_not_depend_on_its_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, whoever else is in it, and in however many blocks it is trained."""
    from fedem_flwr.engine.gpu import backend

    one = method("elastic", "released", local={"early_stop": 0.05})
    one.engine = "triton"
    monkeypatch.setattr(backend, "NUMBERS", 1500)
    rounds = backend.kernel_round(Cohort(small(), start(one), one), tables(), 1, False, False)
    sizes = small().sizes(2)
    assert [len(index) for index in rounds.blocks(torch.arange(K), sizes)] == [1, 2, 4]
    monkeypatch.setattr(backend, "NUMBERS", 1 << 28)
    reported = backend.kernel_round(rounds.cohort, tables(), 1, True, False).blocks(torch.arange(K), sizes)
    assert [sizes[index].tolist() for index in reported] == [[21], [15, 9], [6, 6], [3], [0]]
    monkeypatch.setattr(backend, "NUMBERS", 1500)
    independent(one, small(), tables(), 1)


@pytest.mark.parametrize("schedule", ["paper", "released"])
def test_no_step_of_a_round_waits_for_the_device(schedule: Schedule) -> None:
    from fedem_flwr.engine.gpu import backend

    one, data = method("elastic", schedule), small()
    rounds = backend.kernel_round(Cohort(data, start(one), one), tables(), 1, True, True)
    who = torch.tensor([0, 4])
    sizes = Sizes.of(data.sizes(2)[who], data.counts()[who], M)
    with Seen() as seen:
        trained = rounds.block(who, sizes, None, True)
    assert not seen.waits and bool((trained.loss > 0).all())


def test_a_round_of_a_block_is_that_of_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedem_flwr.engine.gpu import backend

    states = []
    for numbers in (1 << 28, 1500):
        monkeypatch.setattr(backend, "NUMBERS", numbers)
        states.append(trained("triton", method("none"), small(), tables())[0])
    assert all(torch.equal(values, states[1][name]) for name, values in states[0].items())


@pytest.mark.parametrize("schedule", ["paper", "released"])
def test_who_has_no_samples_is_merged_all_the_same(schedule: Schedule) -> None:
    one, got = method("elastic", schedule), tables()
    expected = trained("torch", one, small(), got)[0]
    one.engine = "triton"
    cohort = Cohort(small(), start(one), one)
    result = cohort.train(torch.tensor([1]), got, 3)
    assert float(result.loss) == 0.0 and result.uncompiled == ""
    for name, values in cohort.state.items():
        torch.testing.assert_close(values[1], expected[name][1], rtol=0, atol=5e-6)


@pytest.mark.parametrize("mode", ["scalar", "elastic"])
def test_a_whole_table_is_merged_as_by_torch(mode: MergeMode) -> None:
    one = method(mode)
    found = []
    for engine in ("triton", "torch"):
        one.engine = engine
        cohort = Cohort(small(), start(one), one)
        assert cohort.merging.compiled(cohort.state["items"], cohort.state["adapter"]) == (
            "kernels" if engine == "triton" else ""
        )
        seen, rho = cohort.seen(torch.arange(K), tables())
        assert rho is not None
        found.append((seen["items"], rho))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=5e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=5e-6)


def test_kernels_that_do_not_run_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """And torch trains."""
    from fedem_flwr.engine.gpu import rows

    def broken(device: torch.device) -> None:
        raise RuntimeError("no compiler\nwas found")

    monkeypatch.setattr(rows, "try_out", broken)
    _no_kernels.cache_clear()
    try:
        assert trained("triton", method("none"), small(), tables())[3] == (
            "Triton's kernels do not run here (was found)"
        )
    finally:
        _no_kernels.cache_clear()


COMPILED = """
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from fedem_flwr.engine.gpu import merged, rows

POINTERS = dict(who="i64", slot="i64", sent="i64", whose="i64", offsets="i64", places="i64", counts="i32")
POINTERS |= dict(touched="i64", order="i32", losses="fp64")
WHOLE = {"samples", "items", "epochs", "batch", "parameters"}
RATES = {"lr_user", "lr_item", "lr_theta", "ridge", "early_stop", "fixed"}
target = GPUTarget("cuda", 80, 32)
backend = make_backend(target)


def compiled(kernel, **constants):
    kinds = {
        name: "constexpr" if name in constants else "i32" if name in WHOLE else "fp32" if name in RATES
        else "*" + POINTERS.get(name, "fp32")
        for name in kernel.arg_names
    }
    source, options, context = ASTSource(kernel, kinds, constexprs=constants), backend.parse_options({}), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(options)
    assert "tt.func" in str(source.make_ir(target, options, functions, backend.get_module_map(), context))


widths = dict(dim=5, wide=16, tile=16)
adapter = dict(h1=9, h2=4, wide1=16, wide2=16)
for rule, ordered in ((0, True), (2, False)):
    compiled(rows.train_plain, own=True, rule=rule, counted=rule == 2, ordered=ordered, **widths)
for adapts, trains, learned in ((True, True, True), (True, False, True), (False, True, False)):
    flags = dict(own=True, adapts=adapts, trains=trains, learned=learned, single=not trains, ordered=not learned)
    compiled(merged.train_merged, **flags, **widths, **adapter)
compiled(merged.pool_tables, **widths)
compiled(merged.merge_tables, single=True, seen=True, **widths, **adapter)
print("compiled")
"""


def test_they_are_programs_of_a_gpu() -> None:
    """As far as its types go: the interpreter takes what the compiler does not."""
    surroundings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).resolve().parent.parent
    path = os.pathsep.join([str(root), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env={**surroundings, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "compiled\n", done.stderr
