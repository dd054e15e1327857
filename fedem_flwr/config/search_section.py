"""Section of the search for settings inside a run (`auto`)."""

from __future__ import annotations

from itertools import product
from typing import Annotated

from pydantic import Field

from fedem_flwr.config.section import Section

_HALF = 3**0.5  # half a step of grids that go by factors of about 3
Positive = Annotated[float, Field(gt=0)]


class SearchConfig(Section):
    """The search inside a run of `auto`: tables trained side by side, of which validation sums keep the best.

    A setting that is given (`ials.weight`, `ials.ridge`) is used, not searched.
    """

    presets: bool = Field(True, description="false: settings that ship for a data set (configs/datasets) are not used")
    budget: int = Field(12, ge=1, le=64, description="tables at first, side by side; 1: no search")
    rounds: int = Field(12, ge=1, description="of the search and the table; the run's others are those of order")
    learn: int = Field(3, ge=1, description="rounds that tables learn before they are compared for the first time")
    weights: list[Positive] = Field(
        [0.3, 0.1, 0.03], min_length=1, description="grid of a, the likeliest first; just `ials.weight` if given"
    )
    ridges: list[Positive] = Field(
        [0.01, 0.003, 0.03, 0.001],
        min_length=1,
        description="grid of λ; just `ials.ridge` if given",
    )
    half_lives: list[Annotated[float, Field(ge=0)]] = Field(
        [0.0, 3.0, 10.0], min_length=1, description="grid of h that tables are compared under, each with its best"
    )
    refine: bool = Field(
        True,
        description="tables that go on from the best of the first comparison, with λ or a a factor of √3 away, join "
        "those that stay",
    )
    order: bool = Field(True, description="also train the encoder and the map, where the data have times")

    def grid(self) -> list[tuple[float, float]]:
        """(a, λ) of the tables, at most `budget`."""
        return list(product(self.weights, self.ridges))[: self.budget]

    def near(self, weight: float, ridge: float) -> list[tuple[float, float]]:
        """(a, λ) half a step of the grids from these, λ first; what is given, or not searched, stays."""
        tried_weights, tried_ridges = (len({*values}) > 1 for values in zip(*self.grid(), strict=True))
        ridges = [(weight, ridge / _HALF), (weight, ridge * _HALF)] if tried_ridges else []
        weights = [(weight / _HALF, ridge), (weight * _HALF, ridge)] if tried_weights else []
        return [*ridges, *weights] if self.refine else []
