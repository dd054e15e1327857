"""The aggregation bottleneck: products by autograd, the bound by hand, whole runs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crashes import resumed_after
from worlds import USERS, carry_out, config_of, figures

from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Download
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.bottleneck import Bottleneck, partial_at
from fedem_flwr.experiment.bottleneck import FILE, check_bottleneck, shares
from fedem_flwr.experiment.finish import finish
from fedem_flwr.nodes.host import slice_histories

SOME = 12  # users, of whom optima are found
LOOKS: dict[str, Any] = {"diagnostics": {"bottleneck": True, "users": SOME}}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that is looked at, and one that is not."""
    folder = tmp_path_factory.mktemp("bottleneck")
    plain = carry_out(folder / "plain", config_of("fedem", run={"engine": "torch"}))
    done = carry_out(folder / "run", config_of("fedem", run={"engine": "torch"}, **LOOKS))
    return plain, done


@pytest.mark.usefixtures("undrawn")
def test_it_is_looked_at_in_every_round_and_changes_nothing(seen: Any) -> None:
    plain, done = seen
    assert list(map(figures, plain.lines)) == list(map(figures, done.lines))
    found = shares(done.run.directory.path)
    assert found is not None and found["rounds"] == [1, 2, 3] and found["users"] == [SOME] * 3
    assert found["looked_at"] == SOME == found["converged"]
    for name in ("global", "merged", "own", "rho", "bound", "within"):
        values = np.array(found[name])
        assert values.shape == (3,) and ((values >= 0) & (values <= 1)).all(), name
    assert max(found["bound"]) <= 0.5, "A is at most ‖∇L‖ ‖Q − Q*‖, which is in C"  # type: ignore[call-overload]
    report = finish(done.run, done.outcome, lambda _: None).read_text()
    assert (
        "The aggregation bottleneck" in report
        and "Not drawn" not in report.split("The aggregation bottleneck")[1][:900]
    )
    assert done.run.directory.read_diagnostics()["bottleneck"]["rounds"] == [1, 2, 3]


def test_nodes_add_up(seen: Any, tmp_path: Path) -> None:
    one = json.loads((seen[1].run.directory.path / FILE).read_text())
    nodes = carry_out(tmp_path / "nodes", config_of("fedem", run={"engine": "torch", "users_per_node": 7}, **LOOKS))
    several = json.loads((nodes.run.directory.path / FILE).read_text())
    assert one.keys() == several.keys()
    for round_, sums in one.items():
        assert sums == pytest.approx(several[round_], rel=1e-4), round_


def test_resumed_it_counts_each_round_once(seen: Any, tmp_path: Path) -> None:
    config = config_of("fedem", run={"engine": "torch", "checkpoint_every": 1}, **LOOKS)
    done = resumed_after(tmp_path / "run", config, 2)
    one, again = (json.loads((x.run.directory.path / FILE).read_text()) for x in (seen[1], done))
    assert one.keys() == again.keys() and all(one[r] == pytest.approx(again[r], rel=1e-4) for r in one)


def _world(seen: Any, **sections: Any) -> tuple[Cohort, Bottleneck]:
    config = config_of("fedem", run={"engine": "torch"}, **sections)
    split = seen[0].run.split
    data = slice_histories(split, np.arange(USERS), torch.device("cpu"))
    method = method_of(config, split.items)
    cohort = method.cohort(data, method.initial_state(USERS, torch.device("cpu")))
    return cohort, Bottleneck(data, method, torch.arange(SOME))


def test_the_sums_are_those_of_a_loop_over_users_with_autograd(seen: Any) -> None:
    """With ρ = 0.3 for all: everything once more, from the paper's formulas, a user at a time."""
    cohort, looks = _world(seen, merge={"mode": "static", "rho": 0.3})
    draw = torch.Generator().manual_seed(3)
    own = cohort.state["items"].copy_(torch.randn(cohort.state["items"].shape, generator=draw))
    users = cohort.state["user"].copy_(torch.randn(cohort.state["user"].shape, generator=draw))
    tables = torch.randn(USERS, cohort.data.items, own.shape[-1], generator=draw)
    slot = torch.arange(USERS)
    slot[5] = -1  # who receives nothing is not counted
    found = looks.look(cohort, {"items": Download(tables, slot)})
    expected = dict.fromkeys(found, 0.0)
    (at,) = looks._optima
    for user in (u for u in range(SOME) if u != 5):
        s, count = at.samples, int(at.samples.touched_count[user])
        items, best = s.touched[user, :count], at.rows[user, :count].double()
        rows, sign = s.row[user, : int(s.size[user])], s.sign[user]

        def slope(
            table: torch.Tensor, rows: torch.Tensor = rows, sign: torch.Tensor = sign, user: int = user
        ) -> torch.Tensor:
            leaf = table.clone().requires_grad_()
            logits = (leaf[rows] * users[user].double()).sum(1)
            torch.nn.functional.softplus(sign[rows].double() * logits).mean().backward()  # type: ignore[no-untyped-call]
            assert leaf.grad is not None
            return leaf.grad

        local, glob = own[user, items].double(), tables[user, items].double()
        mixed = 0.3 * glob + 0.7 * local
        a = float((slope(local) * (local - best)).sum())
        c = float(slope(local).norm() * ((local - best).norm() + (glob - local).norm()))
        expected["users"] += 1
        expected["global"] += float((slope(glob) * (glob - best)).sum()) <= 0
        expected["merged"] += float((slope(mixed) * (mixed - best)).sum()) <= 0
        expected["own"] += a <= 0
        expected["rho"] += 0.3
        expected["bound"] += max(0.0, a / (a + c))
        expected["within"] += max(0.0, a / (a + c)) > 0.3
    assert found == pytest.approx(expected, rel=1e-4)
    assert 0 < found["global"] < 11, "a test that sees both signs"


def test_with_the_optimums_own_vector_no_product_is_below_zero(seen: Any) -> None:
    """The loss is convex in Q alone: Lemma 1's case is one of p and Q having moved together."""
    cohort, looks = _world(seen)
    (at,) = looks._optima
    block = cohort.block_of(at.who, {}, at.samples, 1, merging=False)
    block.parts.update(at.others)
    gradient, draw = partial_at(looks.learner, block, "items"), torch.Generator().manual_seed(4)
    for size in (0.1, 1.0, 10.0):
        table = size * torch.randn(at.rows.shape, generator=draw)
        assert bool(((gradient(table) * (table - at.rows)).double().sum((1, 2)) > 0).all()), size


@pytest.mark.parametrize(
    ("name", "sections", "word"),
    [
        ("fedem", {"run": {"runtime": "ray"}}, "no single process"),
        ("fedem", {"run": {"runtime": "network"}}, "no single process"),
        ("fedmf", {}, "fedmf has none"),
        ("fedials", {}, "fedials has none"),
        ("local-only", {}, "local-only has none"),
    ],
)
def test_it_is_refused_where_there_is_nothing_to_look_at(name: str, sections: Any, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        check_bottleneck(config_of(name, **sections, **LOOKS))
    assert "\n" not in str(caught.value)
    check_bottleneck(config_of(name, **sections))
