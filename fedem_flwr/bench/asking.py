"""Latency of recommendations to histories, against a least-squares fold-in and one dense product, written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.bench.rows import Row
from fedem_flwr.bench.suite import Benchmark, Setting
from fedem_flwr.bench.timing import Side
from fedem_flwr.bench.worlds import Tree, config_of, shape
from fedem_flwr.config import Config
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoints
from fedem_flwr.runtime.inputs import adapted, load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.model import CpuModel
from fedem_flwr.serving.recommender import Recommender

TOP = 10
_WEIGHT, _RIDGE = 0.3, 0.005


def train_shortly(config: Config, path: Path) -> Path:
    """A run whose last round is served, whatever its accuracy."""
    split = split_of(config, load_interactions(config))
    directory = RunDirectory(path).create()
    carry_out_rounds(PreparedRun.create(directory, adapted(config, split), split), lambda _: None)
    checkpoints = Checkpoints(directory.checkpoint_dir)
    point = checkpoints.load()
    if point is not None:
        checkpoints.save(replace(point, best=None))
    return path


def histories_of(path: Path, users: int, seed: int = 0) -> list[list[str]]:
    """Item ids of random users of a run, oldest first."""
    split = PreparedRun.open(RunDirectory(path)).split
    chosen = np.random.default_rng(seed).choice(split.users, min(users, split.users), replace=False)
    offsets = split.train_offsets
    return [split.item_ids[split.train_items[offsets[user] : offsets[user + 1]]].tolist() for user in chosen]


def plain_service(table: Tensor, ids: Sequence[str]) -> Callable[[Sequence[str]], list[tuple[str, float]]]:
    """The least that answers: ridge regression on the history's rows of a table (m, d), a product, the best ten."""
    place = {name: number for number, name in enumerate(ids)}
    gram = _WEIGHT * table.T @ table + _RIDGE * torch.eye(table.shape[1])

    def recommend(history: Sequence[str]) -> list[tuple[str, float]]:
        items = torch.tensor([place[name] for name in history])
        rows = table[items]
        scores = table @ torch.linalg.solve(gram + rows.T @ rows, rows.sum(0))
        scores[items] = -torch.inf
        best = scores.topk(TOP)
        return [(ids[at], score) for at, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    return recommend


def _latency(benchmark: Benchmark, setting: Setting) -> Row:
    users, items, asked = setting.either((200, 2000, 20), (2000, 20_000, 100))
    short: Tree = {
        "run": {"rounds": 2},
        "model": {"dim": 64},
        "fold_in": {"tune": False},
        "evaluation": {"every": 10**6},
    }
    path = train_shortly(config_of("fedials", shape(users, items), short), setting.folder / "run")
    recommender = Recommender.load(path)
    plain = plain_service(CpuModel.of(RunDirectory(path)).table(), recommender.items)
    histories = histories_of(path, asked)
    return benchmark.ratio(
        setting,
        Side("Recommender", lambda: [recommender.recommend(each) for each in histories], times=1 / len(histories)),
        Side("dense product", lambda: [plain(each) for each in histories], times=1 / len(histories)),
        f"one history a call, {len(histories)} of them; {items:,} items, d 64",
        "ours weighs newer items more, checks ids, and names items; the other looks them up",
    )


SERVING = (Benchmark("serving/one", "a recommendation for a history: ours against a bare dense product", _latency),)
