"""What a section of a configuration is, and those of methods and strategies without options of their own."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NoOptions(Section):
    """Of methods without settings of their own."""


class Keywords(Section):
    """Keyword arguments of a Flower strategy's class, which checks them itself."""

    model_config = ConfigDict(frozen=True, extra="allow")
