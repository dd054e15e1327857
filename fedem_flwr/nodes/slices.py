"""Some users' part of a split, as what the engine takes."""

from __future__ import annotations

import numpy as np
import torch

from fedem_flwr.contract.asked import as_tensor
from fedem_flwr.engine.history import History
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.protocol.split import IntArray
from fedem_flwr.protocol.splits import Split, user_rows


def slice_history(split: Split, users: IntArray, offsets: IntArray, items: IntArray) -> History:
    """Histories of consecutive users, as a view of a CSR with a row for each user of the split."""
    rows = split.rows(users)
    ends = np.asarray(offsets[rows[0] : rows[-1] + 2] if len(users) else np.zeros(1, np.int64))
    return History(users, split.items, ends - ends[0], items[ends[0] : ends[-1]])


def slice_histories(split: Split, users: np.ndarray, device: torch.device) -> TrainingItems:
    """The training items of some users, and what they may not draw as negatives; nothing else of the split is read."""
    rows, positions = user_rows(split.train_offsets, split.rows(users))
    ends = np.cumsum(np.bincount(rows, minlength=len(users)))
    offsets = np.concatenate([[0], ends]).astype(np.int64)
    items = np.asarray(split.train_items[positions], np.int64)
    arrays = (users, offsets, items, *split.forbidden(users))
    tensors = [as_tensor(array, device) for array in arrays]
    return TrainingItems(tensors[0], split.items, *tensors[1:])


def slice_asked(split: Split, users: IntArray, device: torch.device) -> TrainingItems:
    """What some users are scored from, as training items; negatives are none of these."""
    offsets, items = split.known()
    rows, positions = user_rows(offsets, split.rows(users))
    values = np.asarray(items[positions], np.int64)
    ends = np.append(0, np.cumsum(np.bincount(rows, minlength=len(users)))).astype(np.int64)
    ordered = values[np.lexsort((values, rows))]
    tensors = [as_tensor(array, device) for array in (users, ends, values, ends, ordered)]
    return TrainingItems(tensors[0], split.items, *tensors[1:])
