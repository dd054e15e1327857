"""NeuMF (He et al., WWW 2017): a product of vectors and a network beside each other, on arrays with a client axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fedem_flwr.models.mf import scores
from fedem_flwr.models.mlp import Mlp
from fedem_flwr.randomness import keyed_uniform


@dataclass(frozen=True)
class NeuMF:
    """Shape of the network; its weights lie flat as (k, P): the layers, ReLU after each, then the output layer.

    Attributes:
        dim: width of the vectors that are multiplied.
        wide: width of those that the network sees.
        hidden: widths of the network's layers.
    """

    dim: int
    wide: int
    hidden: tuple[int, ...]

    @property
    def network(self) -> Mlp:
        """Its layers over [user; item]."""
        return Mlp((2 * self.wide, *self.hidden))

    @property
    def output(self) -> Mlp:
        """Linear, on [product; what the network gives]."""
        return Mlp((self.dim + self.hidden[-1], 1))

    @property
    def size(self) -> int:
        """P."""
        return self.network.size + self.output.size

    def initial(self, seed: int) -> Tensor:
        """(P,) uniform weights: of the layers by Glorot, of the output ±√(3 / inputs); biases 0."""
        found = []
        for layer, (n_in, n_out) in enumerate((*pairwise(self.network.widths), tuple(self.output.widths))):
            bound = math.sqrt(6 / (n_in + n_out)) if n_out > 1 else math.sqrt(3 / n_in)
            uniform = keyed_uniform(seed, f"neumf/layer-{layer}", torch.arange(n_in * n_out))
            found += [(2 * uniform - 1) * bound, torch.zeros(n_out)]
        return torch.cat(found).float()

    def logits(self, theta: Tensor, user: Tensor, wide: Tensor, items: Tensor, wide_items: Tensor) -> Tensor:
        """(k, t) of vectors (k, dim) and (k, wide) for rows (k, t, dim) and (k, t, wide)."""
        x = torch.relu(beside(self.network, theta, wide, wide_items))
        ((weight, bias),) = self.output.layers(theta[:, self.network.size :])
        to_product, to_network = weight.squeeze(1).split([self.dim, self.hidden[-1]], 1)
        assert bias is not None
        return scores(user * to_product, items) + scores(to_network, x) + bias.squeeze(1)


def beside(network: Mlp, theta: Tensor, user: Tensor, items: Tensor) -> Tensor:
    """(k, t, out) of a network over [user; item], given vectors (k, d) and rows (k, t, d'); ReLU between its layers.

    The first layer is linear in [user; item], so each half is multiplied once; where one table and one network serve
    all, the items' half is the same for all.
    """
    (weight, bias), *layers = network.layers(theta)
    of_user, of_item = weight.split([user.shape[1], items.shape[2]], 2)
    x = _linear(user.unsqueeze(1), of_user, bias) + _linear(items, of_item, None)
    for weight, bias in layers:
        x = _linear(torch.relu(x), weight, bias)
    return x


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(k, t, out) of x (k, t, in) and weights (k, out, in); (1, t, out) where neither differs between clients."""
    if weight.stride(0) == 0:
        weight = weight[:1]
        x = x[:1] if x.stride(0) == 0 else x
        product = x @ weight[0].T
    else:
        product = torch.bmm(x, weight.transpose(1, 2))
    return product if bias is None else product + bias
