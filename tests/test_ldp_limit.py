"""A limit of ε: who has spent it uploads no more, whatever the server asks, also after a run was resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance.runs import Whole, noting
from crashes import resumed_after
from worlds import USERS, carry_out_watched, config_of, largest_difference

from fedem_flwr.config.ldp_section import LdpConfig
from fedem_flwr.contract.finding import method_of
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.experiment.finish import finish
from fedem_flwr.experiment.remarks import opening
from fedem_flwr.experiment.rounds import check_run
from fedem_flwr.nodes.ledger import LEDGER_FILE, Ledger, most
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.privacy.accounting import Mechanism, allowed, composed, composed_of
from fedem_flwr.report.tables import result_table
from strategies.tables import TablesStrategy

FOUR: dict[str, Any] = {"noise": "laplace", "clip": 1.0, "multiplier": 2.0, "epsilon_limit": 2.5}  # ε = 1 an upload


@pytest.mark.parametrize("noise", ["laplace", "gaussian"])
@pytest.mark.parametrize(("multiplier", "limit"), [(0.5, 9.0), (3.0, 8.0), (40.0, 2.0), (400.0, 5.0)])
def test_allowed_is_as_many_as_fit_and_not_one_more(noise: Any, multiplier: float, limit: float) -> None:
    ldp = LdpConfig(noise=noise, clip=1.0, multiplier=multiplier, epsilon_limit=limit)
    if composed(ldp, 1)[0] > limit:
        with pytest.raises(InputError, match="below the ε of one upload"):
            allowed(ldp)
        return
    may = allowed(ldp)
    assert may is not None and composed(ldp, may)[0] <= limit < composed(ldp, may + 1)[0]


def test_allowed_by_hand() -> None:
    assert allowed(LdpConfig(**FOUR)) == 2 and allowed(LdpConfig(**{**FOUR, "epsilon_limit": 1.0})) == 1
    assert allowed(LdpConfig(**{**FOUR, "epsilon_limit": None})) is None
    one, other = Mechanism("laplace", 2.0), Mechanism("laplace", 4.0)
    assert composed_of({one: 3, other: 2}, 1e-5) == (pytest.approx(2.0), 0.0), "ε add up over different noise"
    mixed, delta = composed_of({one: 1, Mechanism("gaussian", 5.0): 1}, 1e-5)
    assert delta == 1e-5 and max(composed_of({Mechanism("gaussian", 5.0): 1}, 1e-5)[0], 0.5) < mixed < 2.0


def test_a_ledger_counts_what_other_noise_has_cost(tmp_path: Path) -> None:
    """Of a node with several runs: two cheap uploads leave less than none do."""
    path, now = tmp_path / "node" / LEDGER_FILE, LdpConfig(**FOUR)
    cheap = Ledger(path, 3, LdpConfig(**{**FOUR, "multiplier": 2.5}))  # ε = 0.8
    cheap.count(np.array([0]))
    cheap.count(np.array([0, 1]))
    everybody, ledger = np.arange(3), Ledger(path, 3, now)
    assert ledger.exhausted(everybody).tolist() == [0]
    ledger.count(everybody[1:])
    assert ledger.exhausted(everybody).tolist() == [0, 1] and most(tmp_path) == 2
    assert Ledger(path, 3, LdpConfig(**{**FOUR, "epsilon_limit": None})).exhausted(everybody).tolist() == []


@pytest.mark.usefixtures("undrawn")
def test_whoever_has_spent_it_trains_on_and_sends_nothing(tmp_path: Path) -> None:
    """Of four rounds two go; it is said everywhere, with numbers; and a server that asks again gets nothing."""
    config = config_of("fedmf", ldp={**FOUR, "seeded": True}, run={"rounds": 4, "users_per_node": 8})
    with noting() as noted:
        done, grid = carry_out_watched(tmp_path, config)
    assert done.outcome.failures == [] and [line.get("spent", 0) for line in done.lines] == [0, 0, USERS, USERS]
    assert all(not array.any() for c in grid.up if c.kind == "train" and c.round in "34" for array in c.arrays.values())
    assert (
        largest_difference(noted.server[2], noted.server[4]) == 0 < largest_difference(noted.server[1], noted.server[2])
    )
    assert largest_difference(noted.users(2), noted.users(4)) > 1e-4, "their own vectors follow the table"
    report = finish(done.run, done.outcome, lambda _: None).read_text()
    ldp = done.run.directory.read_summary()["ldp"]
    assert (ldp["allowed"], ldp["held_back"], ldp["ended"], ldp["releases"]) == (2, 2 * USERS, USERS, 2)
    assert "lets 2 uploads of a user go: of the 4 rounds, a user takes part in no more" in opening(done.run)
    for text in (ldp["words"], str(result_table(done.run.directory.read_summary()).caption), report):
        assert f"{USERS} of {USERS} users have sent all of them, and {2 * USERS} further uploads were held back" in text
    whole = Whole(done, grid, noted)
    client = whole.client()
    arrays, asked = whole.message(client, "train", 2)
    sent, samples, metrics = client.fit(arrays, asked)
    assert metrics["spent"] == len(client.users) and samples == 0 and not any(array.any() for array in sent)


@pytest.mark.parametrize("name", ["fedem", "pfedrec", "fedials"])
def test_users_who_were_drawn_more_often_end_sooner(name: str, tmp_path: Path) -> None:
    more = {"run": {"rounds": 6, "participants": 0.5, "users_per_node": 20}}
    ldp = {**FOUR, "multiplier": 20.0, "epsilon_limit": 0.25, "clip": 0.01}
    done, grid = carry_out_watched(tmp_path, config_of(name, ldp=ldp, **more))
    spent = [line.get("spent", 0) for line in done.lines]
    assert done.outcome.failures == [] and spent[:2] == [0, 0] and 0 < spent[-1] < USERS / 2
    counts = [
        n for file in done.run.directory.path.rglob(LEDGER_FILE) for n in json.loads(file.read_text())[0]["uploads"]
    ]
    assert max(counts) == 2 and sum(counts) == 6 * USERS // 2 - sum(spent)
    if name == "fedem":
        gone = sum(len(c.arrays["users"]) for c in grid.up if c.kind == "train")
        assert gone == sum(counts), "what is counted is what goes"


def test_a_resumed_run_has_spent_what_it_had(tmp_path: Path) -> None:
    ldp = {**FOUR, "epsilon_limit": 3.5}
    config = config_of("fedmf", ldp=ldp, run={"rounds": 4, "checkpoint_every": 1, "users_per_node": 8})
    done = resumed_after(tmp_path, config, 2)  # dies in the second round or the third, whose messages are out
    assert most(done.run.directory.path) == 3 and done.lines[-1]["spent"] == USERS


def test_a_node_may_leave_out_no_more_than_it_says() -> None:
    strategy = TablesStrategy(config_of("fedem"), 10)
    asked = np.array([3, 5, 8])
    for there, spent, left in (([3, 8], 1, [3, 8]), ([3], 1, [3, 5, 8]), ([], 3, []), ([3, 9], 1, [3, 5, 8])):
        assert strategy.remaining({"users": np.array(there, np.int64)}, asked, spent).tolist() == left


@pytest.mark.parametrize(
    ("ldp", "word"),
    [
        ({**FOUR, "epsilon_limit": 0.0}, r"ldp\.epsilon_limit = 0\.0"),
        ({**FOUR, "epsilon_limit": 0.5}, "below the ε of one upload, 1: nobody could send any"),
        ({"epsilon_limit": 2.0}, r"without ldp\.clip"),
        ({"epsilon_limit": 2.0, "clip": 1.0}, "without noise"),
        ({**FOUR, "epsilon_limit": None, "multiplier": 1e-320}, "so little laplace noise that the ε of one upload is"),
        ({**FOUR, "epsilon_limit": None, "noise": "gaussian", "multiplier": 1e-300}, "the ε of one upload is infinite"),
        ({**FOUR, "epsilon_limit": None, "multiplier": 2e-308}, "ε of a user's uploads in 3 rounds is infinite"),
    ],
)
def test_limits_and_noise_that_say_nothing_are_refused(ldp: Any, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        config = config_of("fedmf", ldp=ldp)
        method_of(config, 30)
        check_run(config)
    assert "\n" not in str(caught.value)
    check_run(config_of("fedmf", ldp={**FOUR, "epsilon_limit": None, "multiplier": 1e-307}))


def test_a_node_can_insist_on_a_limit() -> None:
    policy = NodePolicy.networked(bounds=["ldp.epsilon_limit=..3"])
    policy.check(config_of("fedmf", ldp=FOUR))
    with pytest.raises(FedemError, match=r"no ldp\.epsilon_limit, where this node takes 3 or less"):
        policy.check(config_of("fedmf", ldp={**FOUR, "epsilon_limit": None}))
    with pytest.raises(FedemError, match=r"ldp\.epsilon_limit = 4"):
        policy.check(config_of("fedmf", ldp={**FOUR, "epsilon_limit": 4.0}))
