"""Recommendations for a user of a finished run, from its last checkpoint."""

from __future__ import annotations

import math

import numpy as np
import torch

from fedem_flwr.config import load_resolved
from fedem_flwr.errors import InputError, suggest
from fedem_flwr.models.mf import scores
from fedem_flwr.protocol.splits import Split
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoints
from fedem_flwr.runtime.node import NodeHost, as_tensor
from fedem_flwr.runtime.run import PreparedRun
from fedem_flwr.training.merge import GlobalTables


def recommend_for(directory: RunDirectory, user: str, top: int) -> list[tuple[str, float]]:
    """The `top` best items that a user has no interaction with, best first, with their scores (logits).

    Raises:
        InputError: the run has no checkpoint yet, or the data set has no such user.
    """
    config = load_resolved(directory.path / "config.toml")
    split = Split.load(directory.path / "split")
    run = PreparedRun(directory, config, split)
    point = Checkpoints(directory.checkpoint_dir).load()
    if point is None:
        raise InputError(
            f"{directory.path} has no checkpoint yet; finish the run first (fedem resume {directory.path})"
        )
    found = np.flatnonzero(split.user_ids == user)
    if not len(found):
        raise InputError(f"user '{user}' is not in {split.dataset}{suggest(user, split.user_ids[:5000].tolist())}")
    index = int(found[0])
    host = NodeHost(directory.path.resolve(), run.nodes)
    node = index // math.ceil(split.users / run.nodes)
    cohort = host.cohort(node, point.round)
    who = torch.tensor([index - int(host.users(node)[0])])
    device = cohort.state.user.device
    tables, _ = cohort.merged(who.to(device), _tables(point.arrays, host.users(node), device))
    logits = scores(cohort.state.user[who], tables)[0]
    seen = np.concatenate(
        [
            split.train_items[split.train_offsets[index] : split.train_offsets[index + 1]],
            [split.validation[index], split.test[index]],
        ]
    )
    logits[torch.from_numpy(seen.astype(np.int64))] = -torch.inf
    best = logits.topk(min(top, split.items - len(np.unique(seen))))
    return [
        (str(split.item_ids[item]), float(score))
        for score, item in zip(best.values, best.indices.tolist(), strict=True)
    ]


def _tables(server: dict[str, np.ndarray], users: np.ndarray, device: torch.device) -> GlobalTables | None:
    """What a node's users would download now: their own tables, or the one for all."""
    everybody = server.get("table", server.get("item_table"))
    if everybody is not None:
        return GlobalTables(
            as_tensor(everybody, device).float()[None], torch.zeros(len(users), dtype=torch.int64, device=device)
        )
    if not len(server["receivers"]):
        return None
    at = {int(user): row for row, user in enumerate(server["receivers"])}
    slot = torch.tensor([at.get(int(user), -1) for user in users], dtype=torch.int64, device=device)
    return GlobalTables(as_tensor(server["tables"], device), slot)
