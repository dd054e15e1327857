"""The arrays behind tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


def flat(values: Tensor) -> Any:
    """The array behind a tensor, or a copy without gaps; integers as int64."""
    array = np.ascontiguousarray(values.numpy())
    return array if array.dtype.kind == "f" else array.astype(np.int64, copy=False)
