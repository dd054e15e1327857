"""Numbers too small to be normal ones are taken for 0 while compiled functions run.

A well-fitted sample's gradient, squared, is such a number; a processor takes a hundred times as long for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TINY = 1e-40


@contextmanager
def flushed() -> Iterator[None]:
    """In this thread, inside the block; on processors that know no such mode nothing happens."""
    before = bool((torch.tensor([_TINY]) * 1.0 == 0).all())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
