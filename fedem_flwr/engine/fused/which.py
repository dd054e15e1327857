"""Which compiled round trains a method on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedem_flwr.engine.fused.backend import FusedRound
from fedem_flwr.engine.fused.blocks import CompiledRound
from fedem_flwr.engine.fused.layered import LayeredRound
from fedem_flwr.engine.learner import Products
from fedem_flwr.engine.plan import plan_of

if TYPE_CHECKING:
    from fedem_flwr.engine.cohort import Cohort
    from fedem_flwr.engine.downloads import Downloads


def compiled_round(cohort: Cohort, downloads: Downloads, round_: int, reported: bool, keep: bool) -> CompiledRound:
    """One that `engine.fallback` has nothing against; arguments as those of `CompiledRound`."""
    products = cohort.learner.products(round_)
    assert products is not None
    if isinstance(products, Products):
        return FusedRound(cohort, downloads, round_, reported, keep, products)
    plan = plan_of(cohort.learner, products, round_)
    assert plan is not None
    return LayeredRound(cohort, downloads, round_, reported, keep, plan)
