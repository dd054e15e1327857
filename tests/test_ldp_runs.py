"""Local differential privacy in whole runs: what crosses, what is counted, what is said, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crashes import resumed_after
from worlds import USERS, Done, carry_out, carry_out_watched, config_of, figures, largest_difference

from fedem_flwr.contract.finding import method_of
from fedem_flwr.contract.guarding import LIMIT
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.experiment.finish import finish
from fedem_flwr.experiment.remarks import opening
from fedem_flwr.network.launch import check_privacy
from fedem_flwr.nodes.ledger import LEDGER_FILE, Ledger, most
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.report.tables import result_table

NOISE: dict[str, Any] = {"noise": "gaussian", "clip": 1.0, "multiplier": 0.2}
SEEDED = {**NOISE, "seeded": True}


def ledgers(done: Done) -> list[int]:
    """Uploads of each user, in the order of the nodes."""
    files = sorted(done.run.directory.path.rglob(LEDGER_FILE))
    return [number for file in files for one in json.loads(file.read_text()) for number in one["uploads"]]


@pytest.mark.parametrize("name", ["fedmf", "fedem", "pfedrec"])
def test_clipping_that_shortens_nothing_changes_no_bit(name: str, tmp_path: Path) -> None:
    plain = carry_out(tmp_path / "plain", config_of(name))
    through = carry_out(tmp_path / "through", config_of(name, ldp={"clip": 1e30}))
    assert through.outcome.failures == [] and list(map(figures, plain.lines)) == list(map(figures, through.lines))
    assert largest_difference(plain.server, through.server) == largest_difference(plain.nodes, through.nodes) == 0
    short = carry_out(tmp_path / "short", config_of(name, ldp={"clip": 0.01}))
    assert short.outcome.failures == [] and largest_difference(plain.server, short.server) > 1e-3
    assert ledgers(short) == [], "nothing is spent where there is no noise to spend"


def test_noise_is_everywhere_new_in_each_round_and_does_not_depend_on_the_spread(tmp_path: Path) -> None:
    """With all that goes up seeded, one node and three give one result. Without, no two rounds share any noise."""
    done, three = (
        carry_out(tmp_path / str(each), config_of("fedmf", ldp=SEEDED, run={"users_per_node": each}))
        for each in (0, USERS // 3)
    )
    assert largest_difference(done.server, three.server) < 1e-4
    _, grid = carry_out_watched(tmp_path / "own", config_of("fedmf", ldp=NOISE))
    first, second = (next(c for c in grid.up if (c.kind, c.round) == ("train", r)).arrays for r in ("1", "2"))
    assert bool((first["items-weight"] != np.round(first["items-weight"])).all())
    assert len(np.intersect1d(first["items"], second["items"])) < 10, "single numbers of 2,000 may agree by chance"
    _, again = carry_out_watched(tmp_path / "again", config_of("fedmf", ldp=NOISE))
    other = next(c for c in again.up if (c.kind, c.round) == ("train", "1")).arrays
    gap = other["items-weight"] - first["items-weight"]
    assert bool((gap != 0).all()) and gap.std() == pytest.approx(0.2 * (2 * USERS) ** 0.5, rel=0.4)


def test_killed_and_resumed_has_new_noise_and_counts_what_it_sent_twice(tmp_path: Path) -> None:
    config = config_of("fedmf", ldp=NOISE, run={"rounds": 4, "checkpoint_every": 2, "users_per_node": 8})
    done = resumed_after(tmp_path / "run", config, 3)  # after a line of the third round, whose checkpoint is the second
    sent = ledgers(done)
    assert len(sent) == USERS and min(sent) >= 5 and most(done.run.directory.path) == max(sent)
    finish(done.run, done.outcome, lambda _: None)
    summary = done.run.directory.read_summary()
    assert summary["ldp"]["releases"] == max(sent) > len(done.lines) == 4 and summary["ldp"]["counted"]
    whole = carry_out(tmp_path / "whole", config)
    assert ledgers(whole) == [4] * USERS and largest_difference(whole.server, done.server) > 1e-3


def test_both_epsilons_are_said_everywhere(tmp_path: Path) -> None:
    ldp = {"noise": "laplace", "clip": 50.0, "multiplier": 4.0}
    done = carry_out(tmp_path / "run", config_of("fedmf", ldp=ldp, gradients={"clip": 2.0}))
    report = finish(done.run, done.outcome, lambda _: None).read_text()
    summary = done.run.directory.read_summary()
    assert summary["ldp"]["round"] == 0.5 and summary["ldp"]["composed"] <= 1.5 and summary["ldp"]["releases"] == 3
    caption = str(result_table(summary).caption)
    for text in (summary["ldp"]["words"], " ".join(summary["notes"]), report, caption, opening(done.run)):
        assert "ε = 0.5 for one upload" in text and "S / δ" in text and "Not covered: metrics" in text
    assert "ε of one upload" in report


def test_the_limit_follows_its_quantile(tmp_path: Path) -> None:
    """From far above and from far below, to where about half of the users are shortened."""
    ends = []
    for start in (40.0, 1.0):
        ldp = {"clip": start, "quantile": 0.5, "quantile_rate": 0.7}
        done, grid = carry_out_watched(tmp_path / str(start), config_of("fedmf", ldp=ldp, run={"rounds": 10}))
        told = [c.config[LIMIT] for c in grid.down if c.kind == "train"]
        assert told[0] == pytest.approx(start) and done.outcome.failures == []
        ends.append(told[-1])
    assert max(ends) / min(ends) < 2


@pytest.mark.parametrize("name", ["fedem", "fedmf", "pfedrec"])
def test_gradients_are_clipped_in_both_back_ends_alike(name: str, tmp_path: Path) -> None:
    """By Z: with sgd, a batch moves what goes up by no more than η Z; and the slow way agrees."""
    local = {"optimiser": "sgd", "epochs": 1, "batch_size": 0, "lr_item": 0.5}
    fast, slow, free = (
        carry_out(
            tmp_path / f"{engine}{clip}",
            config_of(name, local=local, gradients={"clip": clip}, run={"engine": engine, "rounds": 1}),
        )
        for engine, clip in (("torch", 0.001), ("reference", 0.001), ("torch", None))
    )
    assert largest_difference(fast.server, slow.server) < 2e-5
    assert largest_difference(fast.server, free.server) > 1e-4
    if name == "fedmf":
        start = method_of(fast.run.config, fast.run.facts.items).start()["items"].numpy()
        moved = (fast.server["items"] - start)[np.abs(fast.server["items"] - start).max(1) > 0]
        assert 0 < np.linalg.norm(moved) <= 0.5 * 0.001 * USERS and np.linalg.norm(moved, axis=1).max() <= 0.0005


@pytest.mark.parametrize(
    ("name", "sections", "word"),
    [
        ("fedials-elastic", {"ldp": NOISE, "run": {"rounds": 30}}, "no changes of trained parts"),
        ("fedcia", {"ldp": NOISE}, "no changes of trained parts"),
        ("local-only", {"ldp": NOISE}, "nothing goes up"),
        ("fedfast", {"ldp": NOISE}, "weighted by its own change"),
        ("fedmf", {"ldp": {"noise": "laplace"}}, "ε would be infinite; set ldp.clip"),
        ("fedmf", {"ldp": {"quantile": 0.5}}, "set ldp.clip"),
        ("fedmf-sr", {"ldp": NOISE, "merge": {"mode": "static"}}, "also rows that the round did not touch"),
        ("flwr.FedAvg", {"ldp": NOISE}, "guards the uploads of methods"),
        ("fedials", {"gradients": {"clip": 1.0}}, "takes no local steps"),
        ("fedmf", {"ldp": {"clip": 0.0}}, "ldp.clip = 0.0"),
        ("fedmf", {"ldp": {"clip": -1.0}}, "ldp.clip = -1.0"),
        ("fedmf", {"gradients": {"clip": 0}}, "gradients.clip = 0"),
        ("fedmf", {"ldp": {**NOISE, "multiplier": 0.0}}, "ldp.multiplier = 0.0"),
    ],
)
def test_what_would_say_nothing_is_refused_with_a_reason(name: str, sections: Any, word: str) -> None:
    own = {"method": {"name": "x", "strategy": name}} if "." in name else {}
    with pytest.raises(InputError, match=word) as caught:
        method_of(config_of("fedmf" if own else name, **own, **sections), 30)
    assert "\n" not in str(caught.value)


def test_networked_nodes_refuse_noise_that_their_server_knows() -> None:
    config = config_of("fedmf", ldp=SEEDED)
    with pytest.raises(FedemError, match=r"ldp\.seeded"):
        NodePolicy.networked().check(config)
    with pytest.raises(InputError, match=r"ldp\.seeded"):
        check_privacy(config)
    NodePolicy.networked().check(config_of("fedmf", ldp=NOISE))
    with pytest.raises(FedemError, match=r"ldp\.multiplier = 0\.2"):
        NodePolicy.networked(bounds=["ldp.multiplier=1.."]).check(config_of("fedmf", ldp=NOISE))


def test_a_damaged_ledger_lets_nothing_go(tmp_path: Path) -> None:
    path = tmp_path / "node" / LEDGER_FILE
    ldp = config_of("fedmf", ldp=NOISE).ldp
    ledger = Ledger(path, 3, ldp)
    ledger.count(np.array([0, 2]))
    ledger.count(np.array([2]))
    assert json.loads(path.read_text())[0]["uploads"] == [1, 0, 2]
    assert most(tmp_path) == 2 and most(tmp_path / "node" / "x") is None
    with pytest.raises(FedemError, match="of 3 users"):
        Ledger(path, 4, ldp).count(np.array([0]))
    for bad in ("[1, ", "[]", '[{"noise": "gaussian", "ratio": 0, "uploads": [1, 1, 1]}]', "[1, 0, 2]"):
        path.write_text(bad)
        with pytest.raises(FedemError, match="is damaged"):
            ledger.count(np.array([0]))
