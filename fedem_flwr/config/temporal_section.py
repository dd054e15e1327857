"""The section of a configuration that the protocol `temporal` has for itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedem_flwr.config.section import Section

Instant = Annotated[float, Field(gt=0)] | str


class TemporalConfig(Section):
    """A model up to an instant, then served from histories (`data.protocol = "temporal"`)."""

    instants: tuple[Instant, Instant] = Field(
        (0.5, 0.75),
        description="until when the model that chooses, and the one that is tested, are trained: below 1 the share of "
        'users whose last interaction is before it; else a time in the data\'s unit, or a date (`"2008-01-01"`)',
    )
    target: Literal["last", "first"] = Field(
        "last", description="which of a user's interactions from the instant on is asked for"
    )
    device: Literal["adapted", "stale"] = Field(
        "adapted",
        description="what a device with a trained state does before it is asked. adapted: trains its private parts on "
        "its history, the shared ones as they are; stale: nothing. Methods that solve users from histories do so",
    )
    adapt_rounds: int = Field(10, ge=1, le=1000, description="local rounds of that training")
    rounds: int = Field(0, ge=0, description="of the second training; set by a run, in its folder `split/second`")
    chosen: dict[str, dict[str, float]] = Field(
        {}, description="settings that the first training chose, by grid; set by a run"
    )
