"""Counter-based random numbers: a draw is a function of (seed, purpose, coordinates), never of call order.

Any partition of users over nodes, any runtime and any replay therefore sees the same draws, on CPU and on CUDA alike.
The generator is the SplitMix64 finaliser (Steele, Lea, Flood 2014) chained over the coordinates, in wrapping int64
arithmetic.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Coordinate = Tensor | int


def _signed(value: int) -> int:
    """Reinterpret an unsigned 64-bit integer as the int64 that torch holds."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch shifts int64 arithmetically, so the copied sign bits are masked away."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _key(seed: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def keyed_bits(seed: int, purpose: str, *coordinates: Coordinate) -> Tensor:
    """Uniform 63-bit integers, one for each broadcast combination of the coordinates.

    Args:
        seed: the run's or the split's seed.
        purpose: what the draw is for; different purposes are independent streams.
        coordinates: integers or int64 tensors that broadcast together, such as round, user and position.

    Returns:
        int64 tensor of the broadcast shape, in [0, 2**63), on the coordinates' device.
    """
    state = torch.tensor(_key(seed, purpose), dtype=torch.int64)  # numbers stay here: copied to a GPU they wait for it
    for coordinate in coordinates:
        state = _mix(state + (torch.as_tensor(coordinate, dtype=torch.int64) + 1) * _GOLDEN)
    return _shift_right(state, 1)


def key_state(seed: int, purpose: str, *coordinates: int) -> int:
    """What `keyed_bits` makes of its first coordinates: the unsigned state that draws with more of them go on from."""
    state = torch.tensor(_key(seed, purpose), dtype=torch.int64)
    for coordinate in coordinates:
        state = _mix(state + (torch.tensor(coordinate) + 1) * _GOLDEN)
    return int(state) % (1 << 64)


def label_bits(labels: NDArray[np.str_]) -> Tensor:
    """Integers that stand for texts: coordinates of draws that are to depend on names, not on how they are numbered.

    Args:
        labels: (n,); what a label gives does not depend on the others.

    Returns:
        int64 (n,), with a chance of 2**-64 that two different texts have the same.
    """
    state = torch.zeros(len(labels), dtype=torch.int64)
    if not labels.size or not labels.dtype.itemsize:
        return state
    points = torch.from_numpy(np.ascontiguousarray(labels).view(np.uint32).reshape(len(labels), -1).astype(np.int64))
    for place in range(points.shape[1]):
        rows = points[:, place].nonzero().squeeze(1)  # labels that are not that long stay as they are
        state[rows] = _mix(state[rows] + ((place << 32) + points[rows, place] + 1) * _GOLDEN)
    return state


def secret_bits(secret: bytes, purpose: str, coordinates: Sequence[int], users: Tensor, count: int) -> Tensor:
    """Uniform 63-bit integers that nobody can foresee without the secret: SHAKE-128 (FIPS 202), a stream for each user.

    The other draws here are quick, but who sees some of them can work out the rest.

    Args:
        secret: 16 random bytes.
        purpose, coordinates: what the draw is for, and when.
        users: (k,) int64. count: numbers of each; a longer stream begins like a shorter one.

    Returns:
        int64 (k, count) in [0, 2**63), on the users' device.
    """
    head = secret + ":".join([purpose, *map(str, coordinates)]).encode()
    streams = (hashlib.shake_128(head + f":{user}".encode()).digest(8 * count) for user in users.tolist())
    bits = np.frombuffer(bytearray(b"".join(streams)), "<u8") >> np.uint64(1)
    return torch.from_numpy(bits.astype(np.int64)).view(len(users), count).to(users.device)


def keyed_uniform(seed: int, purpose: str, *coordinates: Coordinate) -> Tensor:
    """Uniform float64 in [0, 1), 53 random bits each; shapes as `keyed_bits`."""
    return (keyed_bits(seed, purpose, *coordinates) >> 10).to(torch.float64) * 2.0**-53


def keyed_integers(bound: Coordinate, seed: int, purpose: str, *coordinates: Coordinate) -> Tensor:
    """Uniform int64 in [0, bound); `bound` broadcasts with the coordinates. Bias is below bound / 2**63."""
    return keyed_bits(seed, purpose, *coordinates) % bound


def keyed_normal(seed: int, purpose: str, *coordinates: Coordinate) -> Tensor:
    """Standard normal float32 by Box and Muller's transform; shapes as `keyed_bits`."""
    radius = torch.sqrt(-2.0 * torch.log1p(-keyed_uniform(seed, purpose + "/radius", *coordinates)))
    angle = 2.0 * math.pi * keyed_uniform(seed, purpose + "/angle", *coordinates)
    return (radius * torch.cos(angle)).to(torch.float32)


def keyed_permutation(count: int, seed: int, purpose: str, *coordinates: int) -> Tensor:
    """A random order of 0..count-1, int64 (count,), keyed like every other draw."""
    return keyed_bits(seed, purpose, *coordinates, torch.arange(count)).argsort()
