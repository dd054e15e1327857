"""Sampled softmax: a position's own item among a user's sampled ones; loss and gradients in few passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _SampledSoftmax(torch.autograd.Function):
    """See `sampled_softmax`. The forward pass forms the shares that the backward one needs, in the logits' place."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, own: Tensor, others: Tensor, same: Tensor, real: Tensor, more: float
    ) -> Tensor:
        right = (hidden * own).sum(-1) - more  # (k, l); all logits are lower by `more`, which no share sees
        wrong = torch.bmm(hidden, others.mT).masked_fill_(same, -torch.inf)  # (k, l, s)
        top = torch.maximum(wrong.amax(-1), right)
        wrong.sub_(top.unsqueeze(-1)).exp_()
        right_share = (right - top).exp()
        total = wrong.sum(-1) + right_share
        losses = total.log() + top - right
        counted = real / total  # (k, l) 0 where nothing is predicted
        ctx.save_for_backward(
            hidden, own, others, wrong.mul_(counted.unsqueeze(-1)), right_share * counted - real.to(counted)
        )
        return losses[real].sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        hidden, own, others, wrong, right = ctx.saved_tensors
        right = right.unsqueeze(-1) * gradient
        of_hidden = torch.baddbmm(right * own, wrong, others * gradient)
        if not any(ctx.needs_input_grad[1:3]):  # rows that do not learn
            return of_hidden, None, None, None, None, None
        return of_hidden, right * hidden, torch.bmm(wrong.mT, hidden * gradient), None, None, None


def sampled_softmax(hidden: Tensor, own: Tensor, others: Tensor, same: Tensor, real: Tensor, more: float) -> Tensor:
    """Σ −log softmax of each position's own item among the others.

    Args:
        hidden: (k, l, d). own: (k, l, d) rows of what came next. others: (k, s, d) rows of a user's sampled items.
        same: (k, l, s) which of them are the own item; they are left out.
        real: (k, l) positions that count.
        more: added to the others' logits; each stands for e^more items.

    Returns:
        One number, with gradients by the three tensors of rows.
    """
    found: Tensor = _SampledSoftmax.apply(hidden, own, others, same, real, more)  # type: ignore[no-untyped-call]
    return found
