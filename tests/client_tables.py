"""Clients' item tables, drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor


def tables_of(clients: int, items: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(clients, items, width, generator=torch.Generator().manual_seed(seed))
