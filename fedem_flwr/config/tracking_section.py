"""The section of a configuration that says who else is told of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedem_flwr.config.section import Section


class TrackingConfig(Section):
    """An experiment tracker that a run is told to, beside its directory."""

    to: Literal["none", "mlflow"] = Field(
        "none", description="mlflow (`pip install 'fedem-flwr[mlflow]'`): configuration, metrics a round, artefacts"
    )
    uri: str = Field("", description="where it keeps them; empty: as MLflow is set up (`MLFLOW_TRACKING_URI`)")
    experiment: str = Field("fedem-flwr", min_length=1, description="the experiment's name there")
