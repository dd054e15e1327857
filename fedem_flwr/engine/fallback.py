"""Whether a cohort's round can be trained by compiled functions or by a GPU's kernels, and if not, why."""

from __future__ import annotations

import math
import os
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedem_flwr.engine.learner import Layers, Learner, Products
from fedem_flwr.engine.merge import REPLACE, Merge
from fedem_flwr.engine.plan import plan_of
from fedem_flwr.engine.samples import POSITION_BITS

if TYPE_CHECKING:
    from fedem_flwr.engine.cohort import Cohort

COMPILING = ("auto", "fused", "triton")  # settings of the engine under which torch is taken only where it must be
WIDEST = 128  # numbers of a row, or of an adapter's layer, that a kernel has registers for
LONGEST = 1 << 24  # samples that a client goes through in a round: some seconds, in which nobody can stop it


def by_kernels(engine: str) -> bool:
    """Whether kernels of a GPU are to train: who asks for them. As long as none has run on one, `auto` does not."""
    return engine == "triton"


def merge_fallback(merge: Merge, dim: int) -> str:
    """Why kernels do not merge rows (d,); empty: they do."""
    if merge.learned and len(merge.adapter.hidden) != 2:
        return "kernels know adapters of two hidden layers only"
    if max((dim, *(merge.adapter.hidden if merge.learned else ()))) > WIDEST:
        return f"rows, or layers of the adapter, are wider than kernels take ({WIDEST})"
    return ""


def method_fallback(learner: Learner, round_: int = 1, *, kernels: bool = False) -> str:
    """Why a method is not trained by compiled functions, or by `kernels`, on whatever data; empty: it is."""
    if learner.engine not in COMPILING:
        return f"run.engine = '{learner.engine}'"
    products = learner.products(round_)
    if products is None:
        return "its steps are not known to compiled functions"
    parts = learner.parts()
    if isinstance(products, Products):
        known, merged = {products.items}, products.items
    elif (plan := plan_of(learner, products, round_)) is None:
        return "its updates are not known to compiled functions"
    else:
        known, merged = {*plan.vectors, plan.first, plan.second}, learner.merged
    if any(part.up == "sum" for name, part in parts.items() if name not in known):
        return "it sends up parts that compiled functions do not know"
    if any(learner.clipped(name) < math.inf for name in parts):
        return "its gradients are clipped"
    through_merge = learner.merge.in_training and learner.merged == merged
    if kernels and isinstance(products, Layers):
        return "kernels know no networks"
    if kernels and (found := merge_fallback(learner.merge if through_merge else REPLACE, parts[merged].width)):
        return found
    if through_merge and isinstance(products, Layers) and (products.basis or merged not in products.items):
        return "its network does not see the rows that are merged"
    if through_merge and isinstance(products, Products):
        if products.ridge:
            return "its weight decay passes merged rows"
        if learner.merge.in_batches and products.optimiser != "adam":
            return "its steps through merged rows are not by Adam"
    return ""


def device_fallback(device: torch.device, *, kernels: bool = False) -> str:
    """The same of where tensors are."""
    if not kernels:
        return "" if device.type == "cpu" else f"tensors are on {device.type}"
    if device.type != "cuda" and not (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return "kernels want a GPU"
    return _no_kernels(device)


@cache
def _no_kernels(device: torch.device) -> str:
    """Why kernels do not run; they want a driver, and a C compiler once."""
    try:
        from fedem_flwr.engine.gpu.rows import try_out

        try_out(device)
    except ImportError:
        return "Triton is not installed"
    except Exception as error:  # whatever it is, torch can train
        *_, last = (str(error).strip() or repr(error)).splitlines()
        return f"Triton's kernels do not run here ({last})"
    return ""


def fallback(cohort: Cohort, size: Tensor, round_: int) -> str:
    """The same for a round of some of a cohort's users, with so many samples (k,)."""
    learner = cohort.learner
    kernels = by_kernels(learner.engine)
    if found := method_fallback(learner, round_, kernels=kernels) or device_fallback(cohort.device, kernels=kernels):
        return found
    if any(values.dtype != torch.float32 or not values.is_contiguous() for values in cohort.state.values()):
        return "its users' state is not in single precision, without gaps"
    longest = int(size.max()) if len(size) else 0
    if longest >= 1 << POSITION_BITS or longest * max(learner.local.epochs, learner.merge.epochs) > LONGEST:
        return "a user has too many samples and epochs for one call that nobody can stop"
    return ""
