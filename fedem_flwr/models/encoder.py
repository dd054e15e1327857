"""A small causal transformer over the newest items of a history: what follows what (after Kang and McAuley 2018).

Pre-normalised blocks with root-mean-square normalisation and no biases in the attention; the item rows are the inputs
and, at the end, what the hidden vectors are compared with. All weights are one flat vector, which is what crosses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, scaled_dot_product_attention

from fedem_flwr.randomness import keyed_bits, keyed_normal

_DROPS = 7  # decisions taken from one keyed draw of 63 bits, 9 bits each
_LEVELS = 512


@dataclass(frozen=True)
class Encoder:
    """Shape of the encoder.

    Attributes:
        dim: d, width. layers, heads: of the transformer. window: L, newest items that are looked at.
        dropout: share of activations dropped in training.
    """

    dim: int
    layers: int
    heads: int
    window: int
    dropout: float

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every weight, in the order of the flat vector."""
        d = self.dim
        each = {
            "in": (d,),
            "qkv": (d, 3 * d),
            "out": (d, d),
            "mid": (d,),
            "up": (d, 2 * d),
            "bias": (2 * d,),
            "down": (2 * d, d),
        }
        layers = {f"{name}-{layer}": shape for layer in range(self.layers) for name, shape in each.items()}
        return {"positions": (self.window, d), "last": (d,), **layers}

    @property
    def size(self) -> int:
        """W, number of weights."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def initial(self, seed: int) -> Tensor:
        """(W,) keyed by seed: norms 1, biases 0, matrices N(0, 1 / fan-in), those that end a residual branch halved."""
        parts = []
        for number, (name, shape) in enumerate(self.shapes().items()):
            kind = name.partition("-")[0]
            if kind in ("last", "in", "mid"):
                parts.append(torch.ones(shape))
            elif kind == "bias":
                parts.append(torch.zeros(shape))
            else:
                scale = 0.02 if kind == "positions" else shape[0] ** -0.5 * (0.5 if kind in ("out", "down") else 1)
                axes = torch.arange(shape[0])[:, None], torch.arange(shape[1])
                parts.append(keyed_normal(seed, "order/weights", number, *axes) * scale)
        return torch.cat([part.reshape(-1) for part in parts])

    def named(self, weights: Tensor) -> dict[str, Tensor]:
        """Views of the flat vector by name."""
        shapes = self.shapes()
        sizes = [math.prod(shape) for shape in shapes.values()]
        return {name: part.view(shapes[name]) for name, part in zip(shapes, weights.split(sizes), strict=True)}

    def hidden(
        self, weights: Tensor, rows: Tensor, real: Tensor, drop: Dropout | None = None, *, newest: bool = False
    ) -> Tensor:
        """Hidden vectors after each position, which see that position and what is older.

        Args:
            weights: (W,). rows: (k, l, d) item rows, right-aligned, l <= L. real: (k, l) which positions hold an item.
            drop: in training; None drops nothing.
            newest: only after the last position, so that the last layer is computed there alone; drops nothing.

        Returns:
            (k, l, d); (k, 1, d) of the newest.
        """
        if newest and drop is not None:
            raise ValueError("the newest position alone is for scoring, where nothing is dropped")
        k, length, dim = rows.shape
        w = self.named(weights)
        state = rows * math.sqrt(dim) + w["positions"][self.window - length :]
        state = _drop(state, drop)
        causal = torch.ones(length, length, dtype=torch.bool, device=rows.device).tril()
        seen = causal & real[:, None, None, :] | torch.eye(
            length, dtype=torch.bool, device=rows.device
        )  # padding: itself
        for layer in range(self.layers):
            first = length - 1 if newest and layer == self.layers - 1 else 0  # position whose state is wanted
            mixed = _norm(state, w[f"in-{layer}"]) @ w[f"qkv-{layer}"]
            query, key, value = mixed.view(k, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            query, state = query[:, :, first:], state[:, first:]
            found = scaled_dot_product_attention(query, key, value, attn_mask=seen[:, :, first:])
            state = state + _drop(found.transpose(1, 2).reshape(state.shape) @ w[f"out-{layer}"], drop)
            inner = gelu(_norm(state, w[f"mid-{layer}"]) @ w[f"up-{layer}"] + w[f"bias-{layer}"])
            state = state + _drop(inner @ w[f"down-{layer}"], drop)
        return _norm(state, w["last"])


class Dropout:
    """Dropout whose masks are keyed by user, so that they do not depend on the cohort.

    Args:
        share: dropped. seed, round_: key of the draws. users: (k,) codes of the users.
    """

    def __init__(self, share: float, seed: int, round_: int, users: Tensor) -> None:
        self.level, self.keep = round(share * _LEVELS), 1 - round(share * _LEVELS) / _LEVELS
        self._key, self._users = (seed, "order/dropout", round_), users
        self._bits: Tensor | None = None
        self._calls = 0

    def __call__(self, values: Tensor) -> Tensor:
        """Drop entries of (k, l, d) values and scale up the others."""
        index = self._calls % _DROPS
        if self._bits is None or index == 0:
            cells = torch.arange(values[0].numel(), device=values.device).view(values.shape[1:])
            cells = cells.flip(0).flatten()  # counted from the newest position: others' longer histories pad the left
            draws = keyed_bits(*self._key, self._users[:, None], cells, self._calls // _DROPS)
            self._bits = draws.view(values.shape)
        self._calls += 1
        place = 9 * index  # of the nine bits that decide; compared where they stand
        kept = (self._bits & ((_LEVELS - 1) << place)) >= (self.level << place)
        return values * kept.to(values.dtype).div_(self.keep)


def _drop(values: Tensor, drop: Dropout | None) -> Tensor:
    return values if drop is None or not drop.level else drop(values)


def _norm(values: Tensor, gain: Tensor) -> Tensor:
    return values * torch.rsqrt(values.square().mean(-1, keepdim=True) + 1e-6) * gain


def unit_rows(table: Tensor) -> Tensor:
    """(m, d) a table scaled as a whole so that its entries have variance 1 / d, as the encoder expects its rows."""
    return table / (table.std() * math.sqrt(table.shape[1])).clamp(min=1e-12)
