"""The private adapter: one small MLP a client, `[2d, 16, 8, 1]`, from (own row, discrepancy) to a merging weight ρ.

FedEM (AAAI 2026) Eq. 9. All clients' parameters are stacked flat as (k, P), so that one Adam step serves a cohort.
Forward and backward are written out: the gradients are three batched matrix products, and no autograd graph is built
in the hot loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedem_flwr.models.mlp import Mlp

_LANES = 16


@dataclass(frozen=True)
class Activations:
    """What `Adapter.forward` leaves for `Adapter.backward`: the input of every layer and the weight ρ it gave."""

    inputs: tuple[Tensor, ...]  # one (k, b, width) a layer
    rho: Tensor  # (k, b)


@dataclass(frozen=True)
class Adapter:
    """Shape of the adapter; the parameters themselves are always passed in as (k, P).

    Attributes:
        dim: embedding width d; the input has 2d features, `[own row, global row − own row]`.
        hidden: widths of the hidden layers (ReLU); the paper's are 16 and 8.
        bias: added to the output layer's initial bias; > 0 starts ρ nearer to the global table.
    """

    dim: int
    hidden: tuple[int, ...] = (16, 8)
    bias: float = 0.0

    @property
    def mlp(self) -> Mlp:
        """The layers, from the 2d inputs to the single output."""
        return Mlp((2 * self.dim, *self.hidden, 1))

    @property
    def parameters(self) -> int:
        """P: the numbers of one client's adapter, rounded up to whole vectors; the unused ones stay 0.

        Otherwise the optimiser would round a client's last parameters differently at the end of a cohort.
        """
        return -(-self.mlp.size // _LANES) * _LANES

    def initial(self, seed: int) -> Tensor:
        """(P,) initial parameters, the same for every client: torch's Linear default, U(±1/√fan_in), keyed by seed."""
        start = self.mlp.initial(seed, "adapter", self.bias)
        return pad(start, (0, self.parameters - len(start)))

    def layers(self, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """View (k, P) as [(weight (k, out, in), bias (k, 1, out)), ...]; writing to the views writes to theta."""
        return self.mlp.layers(theta)

    def forward(self, theta: Tensor, local: Tensor, glob: Tensor) -> Activations:
        """Eq. 9 for a batch of rows.

        The single output is computed as row times matrix: as matrix times column, a cohort of one would be rounded
        differently from a larger one.

        Args:
            theta: (k, P) parameters.
            local: (k, b, d) rows of each client's own table.
            glob: (k, b, d) the same rows of the table it downloaded.

        Returns:
            Activations with ρ (k, b) in (0, 1).
        """
        x = torch.cat([local, glob - local], dim=-1)  # (k, b, 2d)
        inputs = []
        views = self.layers(theta)
        for weight, bias in views[:-1]:
            inputs.append(x)
            x = torch.baddbmm(bias, x, weight.transpose(1, 2)).relu_()  # (k, b, out)
        inputs.append(x)
        weight, bias = views[-1]
        logits = torch.baddbmm(bias, weight, x.transpose(1, 2)).squeeze(1)  # (k, b)
        # in float64 only so that a client's ρ does not depend on where vector units start and end in the cohort
        return Activations(tuple(inputs), logits.double().sigmoid_().to(logits.dtype))

    def backward(self, theta: Tensor, seen: Activations, d_rho: Tensor, wrt: str) -> Tensor:
        """Gradient of a loss through ρ, given its derivative `d_rho` (k, b).

        Args:
            theta: (k, P) the parameters that `seen` was computed with.
            seen: what `forward` returned.
            d_rho: (k, b) derivative of the loss with respect to ρ.
            wrt: "theta" for (k, P), or "local" for (k, b, d): own rows enter as `[L, G − L]`, so their derivative is
                the first half of the input's minus the second.
        """
        views = self.layers(theta)
        grad = torch.zeros_like(theta) if wrt == "theta" else None
        grad_views: Sequence[tuple[Tensor, Tensor]] = self.layers(grad) if grad is not None else []
        ones = torch.ones_like(d_rho).unsqueeze(1)  # (k, 1, b)
        at_output = d_rho * seen.rho * (1 - seen.rho)  # (k, b)
        upstream = at_output.unsqueeze(-1)  # (k, b, 1)
        for depth in range(len(views) - 1, -1, -1):
            weight, _ = views[depth]
            if grad is not None:
                grad_views[depth][0].copy_(torch.bmm(upstream.transpose(1, 2), seen.inputs[depth]))
                last = depth == len(views) - 1
                grad_views[depth][1].copy_(at_output.sum(1)[:, None, None] if last else torch.bmm(ones, upstream))
                if depth == 0:
                    return grad
            upstream = upstream * weight if upstream.shape[-1] == 1 else torch.bmm(upstream, weight)  # (k, b, in)
            if depth > 0:
                upstream = upstream * (seen.inputs[depth] > 0)  # ReLU: its output is this layer's input
        return upstream[..., : self.dim] - upstream[..., self.dim :]
