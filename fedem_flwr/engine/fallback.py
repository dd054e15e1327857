"""Whether a cohort's round can be trained by compiled functions, and if not, why."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedem_flwr.engine.learner import Layers, Learner, Products
from fedem_flwr.engine.plan import plan_of
from fedem_flwr.engine.samples import POSITION_BITS

if TYPE_CHECKING:
    from fedem_flwr.engine.cohort import Cohort

COMPILING = ("auto", "fused")  # settings of the engine under which compiled functions are taken where they can be
LONGEST = 1 << 24  # samples that a client goes through in a round: some seconds, in which nobody can stop it


def method_fallback(learner: Learner, round_: int = 1) -> str:
    """Why a method is not trained by compiled functions, on whatever data; empty: it is."""
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
    if through_merge and isinstance(products, Layers):
        return "it trains a network through merged rows"
    if through_merge and isinstance(products, Products) and (products.ridge or products.optimiser != "adam"):
        return "its steps through merged rows are not those of plain Adam"
    return ""


def device_fallback(device: torch.device) -> str:
    """The same of where tensors are."""
    return "" if device.type == "cpu" else f"tensors are on {device.type}"


def fallback(cohort: Cohort, size: Tensor, round_: int) -> str:
    """The same for a round of some of a cohort's users, with so many samples (k,)."""
    learner = cohort.learner
    if found := method_fallback(learner, round_) or device_fallback(cohort.device):
        return found
    if any(values.dtype != torch.float32 or not values.is_contiguous() for values in cohort.state.values()):
        return "its users' state is not in single precision, without gaps"
    longest = int(size.max()) if len(size) else 0
    if longest >= 1 << POSITION_BITS or longest * max(learner.local.epochs, learner.merge.epochs) > LONGEST:
        return "a user has too many samples and epochs for one call that nobody can stop"
    return ""
