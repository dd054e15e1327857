"""What a section of a configuration is, and those of methods and strategies without options of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Widths = tuple[Annotated[int, Field(ge=1)], ...]
"""Of a network's hidden layers."""


@dataclass(frozen=True)
class Search:
    """Where `fedem tune` looks for a number: what stands beside a field's type, as in `Annotated[float, Search(0, 1)]`.

    Attributes:
        low, high: both ends. log: whether even in the logarithm.
    """

    low: float
    high: float
    log: bool = False


class Section(BaseModel):
    """Frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NoOptions(Section):
    """Of methods without settings of their own."""


class Keywords(Section):
    """Keyword arguments of a Flower strategy's class, which checks them itself."""

    model_config = ConfigDict(frozen=True, extra="allow")
