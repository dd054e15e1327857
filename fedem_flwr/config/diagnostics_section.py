"""The section of a configuration that says what a simulation looks at inside its clients."""

from __future__ import annotations

from pydantic import Field

from fedem_flwr.config.section import Section


class DiagnosticsConfig(Section):
    """What no federation could see: measured in one process only, and refused elsewhere."""

    bottleneck: bool = Field(
        False,
        description="the aggregation bottleneck of the FedEM paper, by round, of methods whose clients keep a table: "
        "shares of users of Lemmas 1 and 2, and ρ beside A / (A + C)",
    )
    tables: bool = Field(
        False,
        description="one user's item table in a plane by t-SNE, as it trained it, as it was received and as merged; "
        "the user is drawn by the seed (`pip install 'fedem-flwr[tsne]'`)",
    )
    users: int = Field(
        1000, ge=1, description="of `bottleneck`: at most so many users are looked at, drawn by the seed"
    )
