"""The controls' cache, and a run's controls, which are computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_worlds import NAMES, checkerboard
from worlds import config_of

from fedem_flwr.config import Config
from fedem_flwr.evaluation import compute_controls
from fedem_flwr.evaluation import controls as module
from fedem_flwr.evaluation.control_cache import Measured
from fedem_flwr.experiment import controls as runtime
from fedem_flwr.methods.fedmf import FedMF
from fedem_flwr.protocol.split import Split


def count_computations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    computed: list[tuple[Any, ...]] = []
    compute: Callable[..., Measured] = module.measure_controls

    def counted(*arguments: Any) -> Measured:
        computed.append(arguments[1:])
        return compute(*arguments)

    monkeypatch.setattr(module, "measure_controls", counted)
    return computed


def assert_same(one: Measured, other: Measured) -> None:
    assert one.results == other.results
    assert {name: list(metrics) for name, metrics in one.per_user.items()} == {
        name: list(metrics) for name, metrics in other.per_user.items()
    }
    for name, metrics in one.per_user.items():
        for metric, values in metrics.items():
            np.testing.assert_array_equal(values, other.per_user[name][metric], strict=True)


def test_the_cache_answers_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, split = count_computations(monkeypatch), checkerboard()
    first = module.remembered_controls(split, tmp_path / "cache")
    split.save(tmp_path / "split")
    again = Split.load(tmp_path / "split")
    assert_same(module.remembered_controls(again, tmp_path / "cache"), first)
    assert [given[:2] for given in computed] == [(None, "training")] and len(list((tmp_path / "cache").iterdir())) == 1
    assert compute_controls(again) == first.results, "a loaded split, whose arrays are narrower, gives the same figures"


def test_another_setting_or_split_is_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, split = count_computations(monkeypatch), checkerboard()
    negatives = split.negatives.copy()
    negatives[0, 0] = -1
    module.remembered_controls(split, tmp_path)
    module.remembered_controls(split, tmp_path, ease_lambda=100.0)
    module.remembered_controls(split, tmp_path, test_history="all")
    module.remembered_controls(replace(split, negatives=negatives), tmp_path)
    module.remembered_controls(replace(split, protocol="paper"), tmp_path)
    assert len(computed) == len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", ["cut", "empty", "a bit", "a list", "gone"])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    computed, split = count_computations(monkeypatch), checkerboard()
    first = module.remembered_controls(split, tmp_path)
    (entry,) = tmp_path.iterdir()
    content = entry.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    damaged = {"cut": content[: len(content) // 2], "empty": b"", "a bit": bytes(flipped), "a list": b"[1, 2]"}
    if damage == "gone":
        entry.unlink()
    else:
        entry.write_bytes(damaged[damage])
    assert_same(module.remembered_controls(split, tmp_path), first)
    assert len(computed) == 2 and list(tmp_path.iterdir()) == [entry]
    assert_same(module.remembered_controls(split, tmp_path), first)
    assert len(computed) == 2


# --- a run's controls


def test_a_runs_controls_and_each_users_terms_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, split = count_computations(monkeypatch), checkerboard()
    settings = {"controls": True, "test_history": "all", "cache_dir": str(tmp_path)}
    config = config_of("fedmf", evaluation={**settings, "local_only": False})
    controls = runtime.controls_of(split, config, lambda _: None)
    assert tuple(controls) == (*NAMES, "local_only") and controls["local_only"] is None
    terms = runtime.per_user(split, config)
    assert set(terms) == set(NAMES) and [given[:2] for given in computed] == [(None, "all")]
    assert terms["ease"]["full/hr@10"].mean() == pytest.approx(controls["ease"]["full"]["hr@10"])
    assert runtime.per_user(split, config.changed("evaluation", controls=False)) == {}


def test_local_only_is_left_out_where_clients_have_nothing_to_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cached_local_only", lambda *_: {"trained": True})
    own = {"base": "fedmf", "strategy": f"{__name__}:Together"}
    stock = {"strategy": "flwr.FedAvg", "client": f"{__name__}:NothingToTrain"}
    for method, result in (({}, {"trained": True}), (own, None), (stock, None)):
        config = config_of("fedmf", method=method, evaluation={"controls": False, "local_only": True})
        assert runtime.controls_of(checkerboard(), config, lambda _: None) == {"local_only": result}


class Together(FedMF):
    """A method of which a client alone could train nothing."""

    FEDERATED_ONLY = True


class NothingToTrain:
    """A client that keeps no local training."""

    LOCAL_ONLY = False


def test_each_method_has_a_local_only_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its settings are another's: what it trains is in its class."""
    trained, split = [], checkerboard()

    def count(split: Split, config: Config, told: Callable[[int], None], choose: None) -> dict[str, Any]:
        trained.append(config.method.strategy)
        return {"ndcg@10": 0.1}

    monkeypatch.setattr(runtime, "local_only", count)
    other = f"{__name__}:Together"
    for strategy in ("fedmf", other, "fedmf", other):
        config = config_of("same", method={"base": "fedmf", "strategy": strategy})
        runtime.cached_local_only(split, config, tmp_path, lambda _: None)
    assert trained == ["fedmf", other]
