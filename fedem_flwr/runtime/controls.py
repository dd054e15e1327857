"""The control that needs training: the same method with no federation, on the same split, cached like the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedem_flwr.config import Config
from fedem_flwr.data.catalog import cache_dir
from fedem_flwr.evaluation.cohort import add_sums, evaluate_cohort, means_of, nested
from fedem_flwr.evaluation.controls import cached_controls, split_hash
from fedem_flwr.protocol.splits import Split
from fedem_flwr.report.run_directory import write_atomically
from fedem_flwr.report.selection import reported_line
from fedem_flwr.runtime.node import slice_histories
from fedem_flwr.settings import cohort_settings, resolve_device
from fedem_flwr.training.cohort import Cohort, CohortState

_FORMAT = 1  # of a cache entry; raise it when local training changes
_COHORT = 2048  # users trained at a time: bounds the memory of their own tables


def cache_folder(config: Config) -> Path:
    """Where controls are kept: the configured folder, or the user's cache folder."""
    return Path(config.evaluation.cache_dir) if config.evaluation.cache_dir else cache_dir("controls")


def controls_of(split: Split, config: Config, on_round: Callable[[int], None]) -> dict[str, Any]:
    """Every control of a split, each computed once and then read from the cache.

    Args:
        on_round: told how many rounds of local training are done, of the run's; not called on a cache hit.
    """
    settings, folder = config.evaluation, cache_folder(config)
    controls: dict[str, Any] = dict(cached_controls(split, folder, settings.ease_lambda)) if settings.controls else {}
    controls["local_only"] = cached_local_only(split, config, folder, on_round) if settings.local_only else None
    return controls


def cached_local_only(split: Split, config: Config, folder: Path, on_round: Callable[[int], None]) -> dict[str, Any]:
    """`local_only`, remembered under the content of the split and the settings it depends on."""
    what = {"model": config.model.model_dump(), "local": config.local.model_dump(), "format": _FORMAT}
    run = {"seed": config.run.seed, "rounds": config.run.rounds}
    entry = folder / f"local-only-{split_hash(split, settings=json.dumps([what, run], sort_keys=True))}.json"
    try:
        known: dict[str, Any] = json.loads(entry.read_bytes())
        if "ndcg@10" in known:
            return known
    except (OSError, ValueError):
        pass  # not there, or damaged: compute it
    result = local_only(split, config, on_round)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(entry, json.dumps(result))
    return result


def local_only(split: Split, config: Config, on_round: Callable[[int], None]) -> dict[str, Any]:
    """Train every client alone with the method's own local settings, for as many rounds.

    Returns:
        Test figures of the round that the protocol reports (best validation NDCG@10; best test HR@10 under `paper`).
    """
    alone = config.changed("merge", mode="none").changed("method", strategy="fedem")
    settings, device = cohort_settings(alone), resolve_device(config.run.device)
    parts = np.array_split(np.arange(split.users), max(1, -(-split.users // _COHORT)))
    totals: list[dict[str, float]] = [{} for _ in range(config.run.rounds)]
    for number, users in enumerate(parts):
        histories = slice_histories(split, users, device)
        cohort = Cohort(histories, CohortState.initial(len(users), split.items, settings, device), settings)
        everyone = torch.arange(len(users), device=device)
        for round_ in range(1, config.run.rounds + 1):
            cohort.train(everyone, None, round_)
            add_sums(totals[round_ - 1], evaluate_cohort(cohort, split, None))
            on_round((number * config.run.rounds + round_) // len(parts))  # all parts together are the run's rounds
    lines = [{"round": r, **nested(means_of(sums), split.protocol)} for r, sums in enumerate(totals, 1)]
    best = reported_line(lines, split.protocol)
    return {"round": best["round"], **best["test"], "validation": best["validation"]}
