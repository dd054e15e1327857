"""Fewer bits for the numbers in messages (`[messages]`): half precision, or 8 bits with a scale for each 64 numbers.

Whoever receives them makes float32 of them again: a method, and what is checked of uploads, knows nothing of it. Only
float32 arrays of some size lose digits; codes and counts go in the smallest integers that hold them, without loss.
What a server checks to the digit crosses as it is (`Field.exact`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from fedem_flwr.contract.fields import Field, Named
from fedem_flwr.randomness import keyed_uniform

SCALE = "/scale"  # after an array's name: what its values are multiplied by
_FEWEST = 16  # numbers of an array that is worth it
_BLOCK = 64  # numbers that share a scale, of 8 bits
_MOST = 127  # the largest code
_BELOW = 15  # halves are scaled to below 2 ** 15, which leaves what is small beside the largest its digits
_NARROW = {"int32": ("uint8", "uint16"), "int64": ("uint32",)}  # tried in this order
_WIDE = {narrow: wide for wide, each in _NARROW.items() for narrow in each}


@dataclass(frozen=True)
class Drawn:
    """Rounding to either neighbour by chance, so that what many messages add up to is not off on average.

    Attributes:
        seed, round, user: key the draws; the user is the node's first one.
    """

    seed: int
    round: int
    user: int

    def thresholds(self, place: int, size: int) -> np.ndarray:
        """(size,) uniform in [0, 1): of the array at a place of the message."""
        key = (self.seed, "messages/rounding", self.round, self.user, place)
        drawn: np.ndarray = keyed_uniform(*key, torch.arange(size)).numpy()
        return drawn


@dataclass
class Narrower:
    """Narrows what goes down; an array that goes to many nodes once.

    Attributes:
        bits: of a number.
    """

    bits: int
    _made: dict[str, tuple[np.ndarray, Named]] = field(default_factory=dict, repr=False)

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> Named:
        """The arrays as they cross, each rounded to the nearest."""
        if self.bits == 32:
            return dict(arrays)
        found: Named = {}
        for name, values in arrays.items():
            before, narrow = self._made.get(name, (None, {}))
            if before is not values:
                narrow = narrowed({name: values}, self.bits)
                if values.size:
                    self._made[name] = values, narrow
            found |= narrow
        return found


def narrowed(
    arrays: Mapping[str, np.ndarray], bits: int, fields: Mapping[str, Field] | None = None, drawn: Drawn | None = None
) -> Named:
    """Arrays as they cross.

    Args:
        bits: of a number: 32, as it is; 16; 8.
        fields: of those arrays that have one.
        drawn: how numbers are rounded to 8 bits; None: to the nearest.
    """
    if bits == 32:
        return dict(arrays)
    found: Named = {}
    for place, (name, values) in enumerate(arrays.items()):
        keeps = fields is not None and name in fields and fields[name].exact
        if values.dtype.name in _NARROW:
            found[name] = _smallest(values)
        elif values.dtype != np.float32 or values.size < _FEWEST or keeps or not np.isfinite(values).all():
            found[name] = values
        else:
            found |= _halves(name, values) if bits == 16 else _codes(name, values, drawn, place)
    return found


def widened(arrays: Mapping[str, np.ndarray]) -> Named:
    """What was sent, in the types that it had before it was `narrowed`; what was not is as it came.

    Raises:
        ValueError: a scale that is not its array's.
    """
    found: Named = {}
    for name, values in arrays.items():
        scale = arrays.get(name + SCALE)
        if name.endswith(SCALE) and name.removesuffix(SCALE) in arrays:
            continue
        if scale is not None and not values.size:
            found[name] = np.zeros(values.shape, np.float32)
        elif scale is None:
            found[name] = values.astype(_WIDE.get(values.dtype.name, values.dtype), copy=False)
        elif values.dtype not in (np.float16, np.int8):
            raise ValueError(f"'{name}' of type {values.dtype} has a scale")
        elif values.dtype == np.float16:
            found[name] = values.astype(np.float32) * scale.astype(np.float32).reshape(1)
        else:
            each = scale.astype(np.float32).reshape(-1, 1)
            found[name] = _together(_apart(values.astype(np.float32)) * each, values.shape)
    return found


def crossed(arrays: Mapping[str, np.ndarray], bits: int) -> Named:
    """What a receiver makes of arrays that went down."""
    return widened(narrowed(arrays, bits)) if bits < 32 else dict(arrays)


def crossing(fields: Mapping[str, Field], bits: int) -> Named:
    """An upload of the size that these fields say, as it would cross, for the count of bytes; all lengths are set."""
    fill = {name: max(1, one.rows) - 1 for name, one in fields.items()}
    return narrowed({n: np.full(one.sized(0), fill[n], one.dtype) for n, one in fields.items()}, bits, fields)


def _smallest(values: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest type without a sign that holds them; as they are, where none does."""
    least, most = int(values.min(initial=0)), int(values.max(initial=0))
    fits = (kind for kind in _NARROW[values.dtype.name] if least >= 0 and most <= np.iinfo(kind).max)
    return values.astype(next(fits, values.dtype.name))


def _halves(name: str, values: np.ndarray) -> Named:
    """Half precision, and one power of two that all are multiplied by."""
    exponent = max(-126, math.frexp(float(np.abs(values).max()))[1] - _BELOW)
    halves = np.ldexp(values, -exponent).astype(np.float16)
    return {name: halves, name + SCALE: np.ldexp(np.ones(1, np.float32), exponent)}


def _codes(name: str, values: np.ndarray, drawn: Drawn | None, place: int) -> Named:
    """Codes from −127 to 127, and the scale of each 64 of them."""
    blocks = _apart(values)  # (blocks, 64)
    scale = np.abs(blocks).max(axis=1, initial=0.0) / np.float32(_MOST)  # (blocks,)
    steps = blocks / np.where(scale > 0, scale, 1)[:, None]
    if drawn is None:
        codes = np.rint(steps)
    else:
        codes = np.floor(steps + _apart(drawn.thresholds(place, values.size).reshape(values.shape)))
    return {name: _together(codes.clip(-_MOST, _MOST).astype(np.int8), values.shape), name + SCALE: scale}


def _apart(values: np.ndarray) -> np.ndarray:
    """(blocks, 64) an array in blocks, none of which is of two rows where rows are long; zeros fill the last ones."""
    rows, length = _rows(values.shape)
    chunks = -(-length // _BLOCK)
    padded = values.reshape(rows, length)
    if length % _BLOCK:
        padded = np.pad(padded, ((0, 0), (0, chunks * _BLOCK - length)))
    return padded.reshape(rows * chunks, _BLOCK)


def _together(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array (shape) of its blocks."""
    rows, length = _rows(shape)
    return np.ascontiguousarray(blocks.reshape(rows, -1)[:, :length]).reshape(shape)


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows, and numbers of a row: those of the last axis, or all as one row, where that is short."""
    size = math.prod(shape)
    return (size // shape[-1], shape[-1]) if shape and shape[-1] >= _FEWEST else (1, size)
