"""Recommendations for a user of a finished run, from its last checkpoint."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fedem_flwr.errors import InputError, suggest
from fedem_flwr.registry import find
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoint, Checkpoints
from fedem_flwr.runtime.loop import Resumable
from fedem_flwr.runtime.node import NodeHost
from fedem_flwr.runtime.run import PreparedRun, build_strategy

_NOBODY = np.empty(0, dtype=np.int64)


def recommend_for(directory: RunDirectory, user: str, top: int) -> list[tuple[str, float]]:
    """The `top` best items that a user has no interaction with, best first, with their scores (logits).

    Raises:
        InputError: the run has no checkpoint yet, or the data set has no such user.
    """
    run = PreparedRun.open(directory)
    split = run.split
    point = Checkpoints(directory.checkpoint_dir).load()
    if point is None:
        raise InputError(f"{directory.path} has no checkpoint yet; finish the run first: fedem resume {directory.path}")
    found = np.flatnonzero(split.user_ids == user)
    if not len(found):
        raise InputError(f"user '{user}' is not in {split.dataset}{suggest(user, split.user_ids[:5000].tolist())}")
    index = int(found[0])
    client: Any = find("clients", run.config.method.client)(
        NodeHost(directory.path.resolve(), run.nodes), index // math.ceil(split.users / run.nodes)
    )
    download = _download(run, point, client.users)
    cohort, received = client.model(point.round, [download[name] for name in client.DOWNLOAD])
    logits = cohort.scores(client.positions(found[:1]), received)[0][0].cpu()  # (m,)
    seen = np.append(
        split.train_items[split.train_offsets[index] : split.train_offsets[index + 1]],
        [split.validation[index], split.test[index]],
    )
    logits[torch.from_numpy(seen.astype(np.int64))] = -torch.inf
    best = logits.topk(min(top, split.items - len(np.unique(seen))))
    ids = split.item_ids[best.indices.numpy()]
    return [(str(item), float(score)) for item, score in zip(ids, best.values, strict=True)]


def _download(run: PreparedRun, point: Checkpoint, users: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays that the strategy would send a node's users now."""
    strategy: Any = build_strategy(run.config, run.split.items)
    if not isinstance(strategy, Resumable):
        return point.arrays  # a stock strategy sends its one model to everybody
    strategy.restore(point.arrays)
    return {"participants": _NOBODY, "uploaders": _NOBODY, **strategy.download(users)}
