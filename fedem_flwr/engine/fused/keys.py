"""The keys of a round's draws, as compiled functions take them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.fused.draws import Keys
from fedem_flwr.engine.fused.space import Rules
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.randomness import key_state


def keys_of(draws: Draws, round_: int, data: TrainingItems, who: Tensor, rules: Rules) -> Keys:
    """Of the run's seed the state that its draws go on from; of a secret the draws themselves, (k,) users at a time."""
    negatives, shuffle = f"{draws.prefix}train/negatives", f"{draws.prefix}train/shuffle"
    if not draws.secret:
        one, other = (np.uint64(key_state(draws.seed, purpose, round_)) for purpose in (negatives, shuffle))
        return Keys(one, other, False, np.zeros(0, np.uint64), np.zeros(1, np.int64))
    found, offsets = [], [0]
    counts, sizes = data.counts()[who].tolist(), data.sizes(rules.negatives)[who].tolist()
    for user, positives, samples in zip(data.users[who].split(1), counts, sizes, strict=True):
        rows = [draws.bits("train/negatives", (round_,), user, positives, (j,)) for j in range(rules.negatives)]
        epochs = range(rules.first_epoch, rules.first_epoch + rules.epochs)
        rows += [draws.bits("train/shuffle", (round_, epoch), user, samples) for epoch in epochs]
        found += [row.flatten() for row in rows]
        offsets.append(offsets[-1] + sum(row.numel() for row in rows))
    drawn = torch.cat(found).numpy() if found else np.zeros(0, np.int64)
    return Keys(np.uint64(0), np.uint64(0), True, drawn.view(np.uint64), np.array(offsets, np.int64))
