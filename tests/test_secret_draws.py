"""Draws that a node's secret keys: what they must be, where the secret is, and what a resumed run makes of it."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factorised import cohort_of, learner, of_users, received
from hypothesis import given, settings
from hypothesis import strategies as st
from introduced import NOBODY, RUN, greet, introduction, make_shards, message_with
from scipy import stats
from test_samples import everyone, histories_of, items_of, worlds
from worlds import carry_out, carry_out_watched, config_of, done, figures, largest_difference, prepare

from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.contribution import TrainResult
from fedem_flwr.engine.decoys import with_decoys
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.samples import TrainingItems, draw_samples, shuffled_rows
from fedem_flwr.errors import FedemError
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.network.host import ShardHosts
from fedem_flwr.nodes.secret import SECRET_FILE, secret_of
from fedem_flwr.randomness import secret_bits
from fedem_flwr.serving.served import ServedModel

SECRET, OTHER = bytes(range(16)), bytes(range(1, 17))
ON = {"secret_draws": True, "decoys": 2.0}


# --- the numbers


def test_the_stream_is_shake_128_of_secret_purpose_coordinates_and_user() -> None:
    """Worked out elsewhere: printf 0123456789abcdeftrain/negatives:3:1:7 | openssl dgst -shake128 -xoflen 24."""
    bits = secret_bits(b"0123456789abcdef", "train/negatives", (3, 1), torch.tensor([7, 8]), 3)
    known = bytes.fromhex("d982bc65ad93b01b697d0f83748dcf6e8b35e0579180e738")
    assert bits[0].tolist() == [int.from_bytes(known[at : at + 8], "little") >> 1 for at in (0, 8, 16)]


def test_streams_are_independent_uniform_and_begin_alike() -> None:
    users = torch.arange(500)
    keys = [(SECRET, "a", (1,)), (OTHER, "a", (1,)), (SECRET, "b", (1,)), (SECRET, "a", (2,)), (SECRET, "a", (1, 0))]
    drawn = [secret_bits(*key, users, 20) for key in keys]
    assert all(bool((bits >= 0).all()) for bits in drawn)
    uniform = np.stack([bits.double().flatten().numpy() * 2.0**-63 for bits in drawn])
    assert all(stats.kstest(row, "uniform").pvalue > 1e-4 for row in uniform)
    assert np.abs(np.corrcoef(uniform) - np.eye(len(keys))).max() < 0.05
    assert torch.equal(secret_bits(*keys[0], users[7:9], 5), drawn[0][7:9, :5])
    for none in (secret_bits(SECRET, "a", (), users[:0], 4), secret_bits(SECRET, "a", (), users, 0)):
        assert not none.numel()


@settings(deadline=None, max_examples=40)
@given(worlds(), st.floats(0, 3), st.integers(0, 3))
def test_decoys_are_negatives_of_every_round(histories: TrainingItems, each: float, negatives: int) -> None:
    plain, decoyed = histories, with_decoys(histories, SECRET, each)
    assert decoyed.decoys is not None
    draws = Draws(0, SECRET)
    rounds = [draw_samples(decoyed, everyone(plain), negatives, draws, round_) for round_ in (1, 2)]
    without = draw_samples(plain, everyone(plain), negatives, draws, 1)
    for u in range(len(plain.users)):
        first, end = decoyed.decoys[0][u : u + 2].tolist()
        own = decoyed.decoys[1][first:end].tolist()
        f0, f1 = plain.forbidden_offsets[u : u + 2].tolist()
        forbidden = set(plain.forbidden_items[f0:f1].tolist())
        positives = int(plain.counts()[u])
        assert not forbidden & set(own) and len(set(own)) == len(own)
        assert len(own) == min(int(np.ceil(np.float32(positives * each))), plain.items - len(forbidden))
        for samples in rounds:
            base = positives * (1 + negatives)
            drawn = items_of(samples, u)
            assert drawn[base:] == own and int(samples.size[u]) == base + len(own) == int(decoyed.sizes(negatives)[u])
            assert int(samples.weight[u]) == base == int(without.weight[u]) == int(without.size[u])
            signs = dict(zip(samples.touched[u].tolist(), samples.sign[u].tolist(), strict=True))
            assert all(signs[item] == 1.0 for item in own)
            order = shuffled_rows(samples, plain.users, draws, 1, 0)[u, : len(drawn)]
            assert sorted(order.tolist()) == sorted(samples.row[u, : len(drawn)].tolist())
        assert items_of(rounds[0], u)[: int(without.size[u])] == items_of(without, u)


def test_decoys_of_a_history_that_grows_stay() -> None:
    def decoys(history: list[int], secret: bytes = SECRET, user: int = 3) -> list[int]:
        found = with_decoys(histories_of([history], 200, users=[user]), secret, 3.0).decoys
        assert found is not None
        return found[1].tolist()

    before = decoys([5, 9])
    met = before[2]
    assert decoys([5, 9, met])[:5] == [item for item in before if item != met] and len(decoys([5, 9, met])) == 9
    assert len({tuple(decoys([5, 9], *other)) for other in ((), (OTHER,), (SECRET, 4))}) == 3


def test_a_secret_changes_every_draw_and_the_seed_then_none() -> None:
    histories = histories_of([list(range(10))], 400)
    draws = [Draws(0), Draws(0, SECRET), Draws(1, SECRET), Draws(0, OTHER)]
    samples = [draw_samples(histories, everyone(histories), 4, one, 1) for one in draws]
    items = [tuple(items_of(one, 0)) for one in samples]
    assert items[1] == items[2] and len(set(items)) == 3
    orders = [tuple(shuffled_rows(samples[0], histories.users, one, 1, 0)[0].tolist()) for one in draws]
    assert orders[1] == orders[2] and len(set(orders)) == 3
    assert draws[0].own_seed == 0 and len({one.own_seed for one in draws}) == 3
    assert SECRET.hex() not in repr(draws[1]) and repr(SECRET) not in repr(draws[1])


@pytest.mark.parametrize("weights", ["rows", "average", "own tables"])
def test_a_cohort_with_decoys_equals_cohorts_of_one(weights: str) -> None:
    """Users whose decoys make the difference between two batches and three are not trained together."""
    lists, own = [list(range(count)) for count in (3, 4, 4, 5, 5, 6)], weights == "own tables"
    local = {"epochs": 3, "batch_size": 10, "negatives": 1}
    sections: dict[str, Any] = {"local": local, "model": {"dim": 4}}
    sections |= {} if own else {"aggregate": {"weights": weights}}
    one_method = learner("fedem" if own else "fedmf", 40, "elastic" if own else "replace", **sections)
    tables = received(torch.randn((6, 40, 4), generator=torch.Generator().manual_seed(0)), torch.arange(6))

    def trained(users: list[int]) -> tuple[Cohort, TrainResult]:
        items = histories_of([lists[u] for u in users], 40, users=users)
        cohort = cohort_of(with_decoys(items, SECRET, 2.4), one_method)
        down = of_users(tables, torch.tensor(users)) if own else {}
        return cohort, cohort.train(torch.arange(len(users)), down, 1, sums=True)

    together, result = trained(list(range(len(lists))))
    assert result.samples.tolist() == [2 * len(items) for items in lists], "the server is told nothing of decoys"
    parts = [trained([u]) for u in range(len(lists))]
    for name, values in together.state.items():
        alone = torch.cat([cohort.state[name] for cohort, _ in parts])
        torch.testing.assert_close(values, alone, rtol=0, atol=1e-4)
    if own:
        assert not result.sums, "single users' tables go up"
        return
    sums, each = result.sums["items"], [one.sums["items"] for _, one in parts]
    assert torch.equal(sums.weight, torch.stack([one.weight for one in each]).sum(0))
    torch.testing.assert_close(sums.total, torch.stack([one.total for one in each]).sum(0), rtol=0, atol=1e-3)
    if weights == "rows":
        assert sums.weight[: len(lists[0])].tolist() == [len(lists)] * len(lists[0])
    else:
        assert float(sums.weight) == 2 * sum(map(len, lists))


# --- the file


def test_a_secret_is_made_once_by_whoever_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "node" / SECRET_FILE
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(secret_of, [path] * 32))
    assert len(found) == 1 and len(found.pop()) == 16
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and [one.name for one in path.parent.iterdir()] == [SECRET_FILE]
    assert secret_of(tmp_path / SECRET_FILE) != secret_of(path)


def test_a_damaged_secret_and_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / SECRET_FILE
    path.write_bytes(b"short")
    with pytest.raises(FedemError, match="is damaged") as raised:
        secret_of(path)
    assert "\n" not in str(raised.value)
    with pytest.raises(FedemError, match="cannot keep the node's secret"):
        secret_of(path / "below" / SECRET_FILE)


# --- runs


RUNS: dict[str, dict[str, Any]] = {
    "fedem": {"run": {"rounds": 2}},
    "fedmf": {"run": {"rounds": 2}},
    "fedials-order": {"run": {"rounds": 6}, "order": {"rounds": 3, "participants": 1.0}},
    "fedials-elastic": {
        "run": {"rounds": 10},
        "group_tables": {"clustering": 2, "rounds": 1},
    },  # lots: its first centres
}


@pytest.mark.parametrize("name", RUNS)
def test_the_secret_keys_the_run_and_never_crosses(name: str, tmp_path: Path) -> None:
    sections = {**RUNS[name], "run": {**RUNS[name]["run"], "users_per_node": 14}}
    config = config_of(name, **sections, privacy={"secret_draws": True, "decoys": 0.0})
    first, grid = carry_out_watched(tmp_path / "run", config)
    assert first.outcome.failures == []
    directory = first.run.directory.path
    files = sorted(directory.rglob(SECRET_FILE))
    assert [path.parent.name for path in files] == ["node-000000", "node-000001", "node-000002"]
    keys = {path.read_bytes() for path in files}
    assert len(keys) == 3
    told = [directory / "config.toml", *directory.glob("*.json*"), *directory.rglob("*.safetensors")]
    seen = b"".join(path.read_bytes() for path in told)
    for crossing in (*grid.down, *grid.up):
        seen += b"".join(array.tobytes() for array in crossing.arrays.values())
        seen += repr((crossing.metrics, crossing.config)).encode()
    assert not any(key in seen or key.hex().encode() in seen for key in keys)
    again = carry_out(tmp_path / "again", config)
    public = carry_out(tmp_path / "public", config.changed("privacy", secret_draws=False))
    assert not list((tmp_path / "public").rglob(SECRET_FILE))
    assert all(largest_difference(first.server, other.server) > 0 for other in (again, public))


def test_a_run_that_is_resumed_draws_as_before(tmp_path: Path) -> None:
    config = config_of("fedem", run={"users_per_node": 14, "rounds": 4, "checkpoint_every": 2}, privacy=ON)
    whole, run = carry_out(tmp_path / "whole", config), prepare(tmp_path / "run", config)
    secrets = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in tmp_path.rglob(SECRET_FILE)}
    assert len(secrets) == 3
    for path, secret in secrets.items():  # the other run starts with its secrets
        (tmp_path / "run" / path).parent.mkdir(parents=True)
        (tmp_path / "run" / path).write_bytes(secret)

    def interrupt(line: dict[str, Any]) -> None:
        if line["round"] == 2:  # written in round 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out_rounds(run, interrupt)
    resumed = done(run, carry_out_rounds(run, lambda _: None, resume=True))
    assert all((tmp_path / "run" / path).read_bytes() == secret for path, secret in secrets.items())
    assert largest_difference(resumed.nodes, whole.nodes) == largest_difference(resumed.server, whole.server) == 0
    assert [figures(line) for line in resumed.lines] == [figures(line) for line in whole.lines]


def test_a_networked_node_has_one_secret_for_all_its_runs(tmp_path: Path) -> None:
    """With new decoys in every run, runs that are compared would tell the history."""
    federation = make_shards(tmp_path / "data")
    told = replace(introduction(federation), config=config_of("fedmf", privacy=ON).to_toml())
    found = []
    for number in (1, 2):
        hosts = ShardHosts(tmp_path / "data" / "shards" / "node-1", tmp_path / "state", device="cpu")
        greet(hosts, replace(told, key=f"{number:032x}", run_id=RUN - number))
        host = hosts.of(message_with(None, RUN - number), NOBODY)
        found.append((host.secret(0), host.data(0).decoys))
    (first, decoys), (second, same) = found
    assert first == second == (tmp_path / "state" / SECRET_FILE).read_bytes()
    assert decoys is not None and same is not None and all(map(torch.equal, decoys, same))
    assert [path.name for path in tmp_path.rglob(SECRET_FILE)] == [SECRET_FILE]


def test_who_only_scores_makes_no_secret(tmp_path: Path) -> None:
    trained = carry_out(tmp_path / "run", config_of("fedmf", run={"rounds": 1}, privacy=ON))
    (path,) = trained.run.directory.path.rglob(SECRET_FILE)
    path.unlink()
    scorers = list(ServedModel.open(trained.run).scorers())
    assert len(scorers) == 1 and not path.exists()
