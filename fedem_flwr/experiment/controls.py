"""A run's controls, from the cache; and the one that needs training: the same method with no federation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedem_flwr.config import Config, resolve
from fedem_flwr.config.registry import find
from fedem_flwr.contract.alone import Alone
from fedem_flwr.contract.central import Central
from fedem_flwr.contract.finding import method_of
from fedem_flwr.data.catalog import cache_dir
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.device import resolve_device
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.parts import initial_state
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.cohort import add_sums, evaluate_cohort, means_of, nested
from fedem_flwr.evaluation.control_cache import Measured, UserMetrics, split_hash
from fedem_flwr.evaluation.controls import remembered_controls
from fedem_flwr.evaluation.cost import Limits
from fedem_flwr.evaluation.sample import sample_size, sampled_users
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.evaluation.some import OfSome
from fedem_flwr.files import private_folder, write_atomically
from fedem_flwr.nodes.slices import slice_asked, slice_histories
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.selection import reported_line
from fedem_flwr.runtime.inputs import adapted

_FORMAT = 2  # of a cache entry; raise it when local training changes
_COHORT = 2048  # users trained at a time, at most


def cache_folder(config: Config) -> Path:
    """Where controls are kept: the configured folder, or the user's cache folder."""
    return Path(config.evaluation.cache_dir) if config.evaluation.cache_dir else cache_dir("controls")


def controls_of(
    split: Split, config: Config, on_round: Callable[[int], None], choose: Split | None = None
) -> dict[str, Any]:
    """Every control of a split by name, each computed once and then read from the cache.

    Args:
        choose: what settings and rounds are chosen on, where that is another split.
        on_round: told how many rounds of local training are done, of the run's; not called on a cache hit.

    Returns:
        `evaluation.controls.Control` to the results of `measure_controls`; and ``local_only``, None where it was not
        asked for or the method's clients train nothing that could be trained alone.
    """
    controls: dict[str, Any] = dict(_fitted(split, config, choose).results)
    alone = config.evaluation.local_only and trains_alone(config)
    controls["local_only"] = cached_local_only(split, config, cache_folder(config), on_round, choose) if alone else None
    before = config.run.rounds if alone else 0
    for preset in trained_configs(config):
        other = adapted(preset, split, frozenset())

        def on_epoch(epoch: int, before: int = before) -> None:
            on_round(before + epoch)

        controls[other.method.name] = cached_central(split, other, cache_folder(config), on_epoch)
        before += other.run.rounds
    return controls


def trained_configs(config: Config) -> list[Config]:
    """Of the controls of `evaluation.trained`: their presets on the run's data, with its seed and device.

    Raises:
        InputError: a name that is no centralised control's.
    """
    found = []
    data = config.data.model_dump(exclude_none=True, exclude_unset=True)
    for name in config.evaluation.trained:
        run = {"seed": config.run.seed, "device": config.run.device}
        other = resolve({}, {"data": data, "method": {"name": name}, "run": run}, "evaluation.trained")
        if not getattr(find("strategies", other.method.strategy), "CENTRALISED", False):
            raise InputError(
                f"evaluation.trained = '{name}': that is no centralised control; methods go beside a run with --against"
            )
        found.append(other)
    return found


def control_rounds(config: Config) -> int:
    """Rounds that the controls of a run train in all, at most."""
    own = config.run.rounds if config.evaluation.local_only and trains_alone(config) else 0
    return max(1, own + sum(other.run.rounds for other in trained_configs(config)))


def per_user(split: Split, config: Config, choose: Split | None = None) -> dict[str, UserMetrics]:
    """Each fitted control's test metrics of every user, from the cache.

    Returns:
        Control to metric to (n,) float32, the metrics being hr@10 and ndcg@10 of both lists, as in ``"full/ndcg@10"``;
        empty where no controls were asked for. Skipped controls and ``local_only`` are not in it.
    """
    return _fitted(split, config, choose).per_user


def limits_of(config: Config) -> Limits:
    """What a control may take."""
    return Limits(config.evaluation.control_gb, config.evaluation.control_minutes)


def _fitted(split: Split, config: Config, choose: Split | None) -> Measured:
    settings = config.evaluation
    if not settings.controls:
        return Measured({}, {})
    sample, limits = sampled_users(config, split.users), limits_of(config)
    folder = cache_folder(config)
    return remembered_controls(split, folder, settings.ease_lambda, settings.test_history, sample, limits, choose)


def trains_alone(config: Config) -> bool:
    """Whether there is something that a client could train alone."""
    if config.method.client:
        return bool(getattr(find("clients", config.method.client), "LOCAL_ONLY", True))
    return not getattr(find("strategies", config.method.strategy), "FEDERATED_ONLY", False)


def cached_local_only(
    split: Split, config: Config, folder: Path, on_round: Callable[[int], None], choose: Split | None = None
) -> dict[str, Any]:
    """`local_only`, remembered under the content of the split and the settings it depends on."""
    kind = type(method_of(config, split.items))
    method = [f"{kind.__module__}:{kind.__qualname__}", config.method.options.model_dump()]
    settings = {
        "model": config.model.model_dump(),
        "local": config.local.model_dump(),
        "gradients": config.gradients.model_dump(),
        "engine": config.run.engine,
    }
    what = {**settings, "method": method, "format": _FORMAT}
    run: dict[str, Any] = {"seed": config.run.seed, "rounds": config.run.rounds, **_of_sample(config, split)}
    if choose is not None:
        run["choose"] = split_hash(choose)
    entry = folder / f"local-only-{split_hash(split, settings=json.dumps([what, run], sort_keys=True))}.json"
    return _kept(entry, lambda: local_only(split, config, on_round, choose))


def cached_central(split: Split, config: Config, folder: Path, on_round: Callable[[int], None]) -> dict[str, Any]:
    """`central`, remembered under the content of the split and all that it depends on."""
    what = [_FORMAT, *(getattr(config, section).model_dump() for section in ("method", "model", "local"))]
    run = {"seed": config.run.seed, "rounds": config.run.rounds, **_of_sample(config, split)}
    entry = folder / f"central-{split_hash(split, settings=json.dumps([what, run], sort_keys=True))}.json"
    return _kept(entry, lambda: central(split, config, on_round))


def central(split: Split, config: Config, on_round: Callable[[int], None]) -> dict[str, Any]:
    """Train a centralised control, on everybody; rounds are epochs. The result is as that of `local_only`."""
    method, device = method_of(config, split.items), resolve_device(config.run.device)
    if not isinstance(method, Central):
        raise TypeError(f"{config.method.name} is not centralised")
    data, sample = slice_histories(split, np.arange(split.users), device), sampled_users(config, split.users)
    state, lines = method.initial_state(split.users, device), []
    for round_ in range(1, config.run.rounds + 1):
        method.epoch(data, state, Draws(method.seed), round_)
        scorer = method.scoring(data, state)
        sums = evaluate_cohort(scorer if sample is None else OfSome(scorer, sample), split)
        lines.append({"round": round_, **nested(means_of(sums), split.protocol)})
        on_round(round_)
    best = reported_line(lines, split.protocol)
    counted = {} if sample is None else {"users": len(sample)}
    return {"round": best["round"], **best["test"], **counted, "validation": best["validation"], "centralised": True}


def _kept(entry: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a cache entry holds; computed and written where it is not there, or damaged."""
    try:
        known: dict[str, Any] = json.loads(entry.read_bytes())
        if "ndcg@10" in known:
            return known
    except (OSError, ValueError):
        pass
    result = compute()
    private_folder(entry.parent)
    write_atomically(entry, json.dumps(result), private=True)
    return result


def _of_sample(config: Config, split: Split) -> dict[str, int]:
    size = sample_size(config, split.users)
    return {"sample": size} if size else {}


def local_only(
    split: Split, config: Config, on_round: Callable[[int], None], choose: Split | None = None
) -> dict[str, Any]:
    """Train every client alone with the method's own local settings, for as many rounds.

    Where rounds are evaluated on a sample of the users, only these are: nobody's training touches anybody else's.

    Args:
        choose: where the number of rounds is chosen, if not on the split itself; then as many are done on the split.

    Returns:
        Test figures of the round that the protocol reports (best validation NDCG@10; best test HR@10 under `paper`);
        with the number of ``"users"`` where that is a sample.
    """
    best = reported_line(_alone(choose or split, config, config.run.rounds, on_round), split.protocol)
    sample = sampled_users(config, split.users)
    counted = {} if sample is None else {"users": len(sample)}
    tested = best if choose is None else _alone(split, config, best["round"], lambda _: None)[-1]
    return {"round": best["round"], **tested["test"], **counted, "validation": best["validation"]}


def _alone(split: Split, config: Config, rounds: int, on_round: Callable[[int], None]) -> list[dict[str, Any]]:
    """A line a round: each client has trained so far alone, on what it is scored from."""
    learner, device = Alone(method_of(config, split.items)), resolve_device(config.run.device)
    sample = sampled_users(config, split.users)
    everybody = split.everybody if sample is None else sample
    slices = slice_histories if split.histories is None else slice_asked
    parts = np.array_split(everybody, max(1, -(-len(everybody) // _together(learner, split.items, config))))
    totals: list[dict[str, float]] = [{} for _ in range(rounds)]
    for number, users in enumerate(parts):
        state = initial_state(learner.parts(), len(users), split.items, learner.seed, device)
        cohort = Cohort(slices(split, users, device), state, learner)
        who = cohort.everyone[cohort.data.counts() > 0]
        for round_ in range(1, rounds + 1):
            if len(who):
                cohort.train(who, {}, round_)
            add_sums(totals[round_ - 1], evaluate_cohort(CohortScorer(cohort, {}), split))
            done, rest = divmod(number * rounds + round_, len(parts))
            if not rest:  # all parts together are the run's rounds
                on_round(done)
    return [{"round": r, **nested(means_of(sums), split.protocol)} for r, sums in enumerate(totals, 1)]


def _together(learner: Alone, items: int, config: Config) -> int:
    """How many users are trained at a time: their own tables are held twice, and may take what a control may."""
    floats = sum(part.width * (items if part.axis == "item" else 1) for part in learner.parts().values())
    return max(1, min(_COHORT, int(config.evaluation.control_gb * 1e9 / (8 * max(1, floats)))))
