"""How a node comes by its policy: options of `fedem deploy node`, of those who start nodes here, and the old key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import TINY_OPTIONS, config_of

from fedem_flwr.cli import deployments, main
from fedem_flwr.config import build
from fedem_flwr.contract.finding import uploads_single_users
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.network import node
from fedem_flwr.network.deployment import Deployment
from fedem_flwr.network.launch import check_privacy
from fedem_flwr.network.link import Address
from fedem_flwr.network.node import NodeOptions
from fedem_flwr.nodes.bounds import DEFAULT, Bound
from fedem_flwr.nodes.policy import NodePolicy, fixed_groups
from fedem_flwr.runtime.inputs import build_strategy

FLAG, ALLOW = "--allow-individual-uploads", {"privacy": {"individual_uploads": True}}
SINGLE = ["fedem", "fedem-released", "fedsim", "fedsim-sm", "fedsim-dm", "fedfast"]
OTHERS = ["fedmf", "fedmf-sr", "fedials", "fedials-order", "fedials-elastic", "fedmf-elastic", "local-only"]
OTHERS += ["fedmf-visits", "fedncf", "fedncf-released", "pfedrec", "fedrap", "fedrap-released"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and len(error.splitlines()) == 1
    return error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "fedem"], "method 'fedem' uploads single users' own values, which networked nodes refuse"),
        (["--method", "fedmf", "--against", "fedsim"], "method 'fedsim' uploads single users' own values"),
        (["--method", "fedfast"], "method 'fedfast' uploads single users' own values"),
        (["--method", "fedmf", "--set", "local.negatives=0"], "local.negatives = 0 makes the rows that"),
        (["--method", "fedials", "--users-per-node", "1"], "run.users_per_node = 1 makes every upload a single user's"),
    ],
)
def test_a_run_that_its_nodes_would_refuse_is_not_started(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    line = refused(capsys, "run", "--runtime", "network", *TINY_OPTIONS, *options, "--out", str(out))
    assert words in line and "--set privacy.individual_uploads=true" in line and not out.exists()


def test_what_is_allowed_or_decided_elsewhere_is_started() -> None:
    network: dict[str, Any] = {"run": {"runtime": "network"}}
    for method in OTHERS:
        short = {"order": {"rounds": 2}, "elastic": {"merge": "none"}}  # of a run of three rounds
        assert not uploads_single_users(config_of(method, **short))
        check_privacy(config_of(method, **network, **short))
    for method in SINGLE:
        assert uploads_single_users(config_of(method))
        check_privacy(config_of(method, **network, **ALLOW))
        check_privacy(config_of(method, **network, network={"superlink": "there:8000"}))
        with pytest.raises(InputError, match=method):
            check_privacy(config_of(method, **network))
    for one in ({"run": {"runtime": "network", "users_per_node": 1}}, {**network, "local": {"negatives": 0}}):
        check_privacy(config_of("fedmf", **one, **ALLOW))
        check_privacy(config_of("fedmf", **one, network={"superlink": "there:8000"}))
        with pytest.raises(InputError, match=r"privacy\.individual_uploads=true"):
            check_privacy(config_of("fedmf", **one))
    check_privacy(config_of("fedmf", **network, local={"negatives": 1}))


@pytest.mark.parametrize("method", ["fedials", "fedials-elastic", "fedmf", "fedmf-elastic"])
def test_one_user_a_node_is_a_caveat(method: str) -> None:
    for each, many in ((1, 1), (2, 0)):
        strategy: Any = build_strategy(config_of(method, run={"users_per_node": each}, elastic={"merge": "none"}), 60)
        assert len(strategy.caveats()) == many and all("users_per_node = 1" in line for line in strategy.caveats())
    alone: Any = build_strategy(config_of("fedem", run={"users_per_node": 1}), 60)
    assert not any("users_per_node" in line for line in alone.caveats()), "which sends no sums in any case"


def test_the_old_key_names_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "run", "--set", "ials.individual_uploads=true")
    assert "'ials.individual_uploads' is 'privacy.individual_uploads' now" in line
    with pytest.raises(InputError, match=r"a file: 'ials.individual_uploads' is 'privacy.individual_uploads' now"):
        build({"ials": {"individual_uploads": False}}, "a file")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--smallest-sum", "1"], f"it takes {FLAG}"),
        (["--smallest-sum", "0"], "smallest-sum"),
        ([FLAG, "--fixed-groups"], "--smallest-sum 2 or more"),
        (["--bound", "local.epochs=5"], "write SETTING=LEAST..MOST"),
        (["--bound", "local.epochs=few.."], "write SETTING=LEAST..MOST"),
        (["--bound", "lokal.epochs=..5"], "there is no section 'lokal'; did you mean 'local'?"),
        (["--bound", "local.epoch=..5"], "there is no setting 'local.epoch'; did you mean 'epochs'?"),
    ],
)
def test_a_node_refuses_a_policy_that_is_none(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["deploy", "node", "--superlink", "127.0.0.1:9", "--shard", "nowhere", "--state", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main([*command, *options])
    assert stopped.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ([], NodePolicy(2, False, bounds=DEFAULT)),
        (["--smallest-sum", "5"], NodePolicy(5, False, bounds=DEFAULT)),
        (
            ["--method", "fedials", "--bound", "run.rounds=..9", "--require-secret-draws", "--coarse-counts"],
            NodePolicy(2, False, ("fedials",), (*DEFAULT, Bound("run.rounds", most=9)), True, True),
        ),
        ([FLAG], NodePolicy(1, True)),
        ([FLAG, "--smallest-sum", "5"], NodePolicy(5, True)),
    ],
)
def test_a_node_has_the_policy_that_it_is_started_with(
    options: list[str], policy: NodePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[NodeOptions] = []
    monkeypatch.setattr(node, "run_node", lambda given, stopped: started.append(given))
    monkeypatch.setattr("fedem_flwr.nodes.machine.limit_memory", lambda more: None)
    monkeypatch.setattr(deployments, "_stop_on_signals", lambda: None)
    monkeypatch.setattr(deployments, "_log_to_stderr", lambda name: None)
    command = ["deploy", "node", "--superlink", "127.0.0.1:9", "--shard", str(tmp_path), "--state", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--insecure", *options])
    assert not stopped.value.code and [one.hosts.policy for one in started] == [policy]


@pytest.mark.parametrize("allowed", [True, False, None])
def test_a_deployment_remembers_what_its_nodes_may(allowed: bool | None, tmp_path: Path) -> None:
    """None: of a record from before there was such a thing."""
    record = {"address": "127.0.0.1:9", "nodes": 2, "insecure": True}
    record |= {} if allowed is None else {"individual_uploads": allowed}
    (tmp_path / "deployment.json").write_text(json.dumps(record))
    deployment = Deployment.existing(tmp_path)
    assert deployment == Deployment(tmp_path.resolve(), Address("127.0.0.1:9"), 2, True, bool(allowed))
    _, *nodes = deployment.children()
    assert [FLAG in child.command for child in nodes] == [bool(allowed)] * 2


def test_up_writes_it_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Deployment, "start", lambda deployment: [])
    for number, (options, allowed) in enumerate((([FLAG], True), ([], False))):
        place = tmp_path / str(number)
        up = ["deploy", "up", "--dir", str(place), "--insecure", "--port", "0", "--quiet"]
        with pytest.raises(SystemExit) as stopped:
            main([*up, *options])
        assert not stopped.value.code and Deployment.existing(place).individual_uploads is allowed
    assert f"holds a deployment with {FLAG} False" in refused(
        capsys, "deploy", "up", "--dir", str(tmp_path / "1"), FLAG
    )


def test_a_node_that_says_what_it_carries_out_names_clients_too() -> None:
    """A strategy that it knows may have any client."""
    told = config_of("fedmf", method={"strategy": "flwr.FedAvg", "client": "table"})
    with pytest.raises(FedemError, match=r"carries out 'table': this node carries out flwr\.FedAvg"):
        NodePolicy.networked(methods=["flwr.FedAvg"]).check(told)
    NodePolicy.networked(methods=["flwr.FedAvg", "table"]).check(told)
    NodePolicy.networked(methods=["fedmf"]).check(config_of("fedmf"))


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        ([5, 5, 5, 5], [0, 0, 1, 1]),
        ([5, 5, 5, 5, 5, 9, 9], [0, 0, 1, 1, 1, 2, 2]),
        ([9, 5, 5, 9], [1, 0, 0, 1]),
        ([0, 0, 5, 5, 5, 5], [0, 0, 0, 0, 1, 1]),
        ([1, 2, 3, 4, 5], [0, 0, 1, 1, 1]),
        ([7, 0, 0], [0, 0, 0]),
        ([], []),
    ],
    ids=["alike", "a rest stays", "by activity", "without data nobody hides", "a rest at the end", "too few", "nobody"],
)
def test_fixed_groups_of_two_or_more(counts: list[int], groups: list[int]) -> None:
    assert fixed_groups(np.array(counts, np.int64), 2).tolist() == groups
