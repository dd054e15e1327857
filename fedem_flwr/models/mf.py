"""Matrix factorisation, the backbone of FedMF and FedEM: score z = p · q, binary cross-entropy on the logit.

Everything has a leading client axis and works on *rows with a count*: a row that occurs several times in a batch is
computed once and weighted, which is the same sum as sample by sample.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fedem_flwr.randomness import keyed_normal


def initial_table(items: int, dim: int, std: float, seed: int) -> Tensor:
    """(m, d) the item table that every client and the server start from: N(0, std²), keyed by seed."""
    return keyed_normal(seed, "init/items", torch.arange(items)[:, None], torch.arange(dim)) * std


def initial_user(dim: int, std: float, seed: int) -> Tensor:
    """(d,) the user embedding that every client starts from: N(0, std²), keyed by seed."""
    return keyed_normal(seed, "init/user", torch.arange(dim)) * std


def scores(user: Tensor, items: Tensor) -> Tensor:
    """Logits (k, t) of user embeddings (k, d) for rows (k, t, d).

    Written as row times matrix: several times as fast as matrix times column on a CPU, and a client's numbers are the
    same to the last bit in whatever cohort it is computed. Where one table serves all (a view whose leading stride is
    0), it is one product.
    """
    if items.stride(0) == 0:
        return user @ items[0].T
    return torch.bmm(user.unsqueeze(1), items.transpose(1, 2)).squeeze(1)


def gradients(user: Tensor, rows: Tensor, sign: Tensor, weight: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 12 of FedEM: derivatives of the batch mean of the binary cross-entropy, written out.

    A batch is a weight for each touched row; the gradient of row i is then (weighted residual) × p, one outer product,
    and no embedding is gathered.

    Args:
        user: (k, d). rows: (k, t, d) touched rows. sign, weight: as `loss_and_residual` takes them.
        size: (k, 1) samples of the batch.

    Returns:
        (k,) summed loss, (k, d) and (k, t, d) derivatives.
    """
    loss, residual = loss_and_residual(scores(user, rows), sign, weight)
    residual = residual.div_(size)  # (k, t)
    to_user = torch.bmm(residual.unsqueeze(1), rows).squeeze(1)  # (k, d)
    return loss, to_user, residual.unsqueeze(-1) * user.unsqueeze(1)


def loss_and_residual(logits: Tensor, sign: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted binary cross-entropy and its derivative with respect to the logit.

    Args:
        logits: (k, t).
        sign: (k, t), −1 for positives and +1 for negatives, so that sign · logit is the logit of being wrong.
        weight: (k, t) how much each row counts; 0 for padding.

    Returns:
        loss (k,) float64 = Σ w · softplus(sign · z), and residual (k, t) = w · sign · σ(sign · z). Written this way the
        residual of a well-fitted positive keeps its relative precision, where σ(z) − 1 would cancel: Adam divides by
        its magnitude.
    """
    wrong = sign * logits
    loss = (weight * softplus(wrong)).sum(-1, dtype=torch.float64)
    return loss, weight * sign * torch.sigmoid(wrong)
