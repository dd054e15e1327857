"""The section of a configuration that says what is learnt from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedem_flwr.config.section import Section
from fedem_flwr.data.synthetic import SyntheticConfig
from fedem_flwr.protocol.rules import Protocol


class DataConfig(Section):
    """What is learnt from, and how it is split."""

    dataset: str = Field("synthetic", description="a known name, or the path of a delimited file")
    protocol: Protocol = Field("strict", description="evaluation protocol; `paper` leaks")
    data_dir: str | None = Field(
        None, description="folder with known data sets; else $FEDEM_DATA, the cache, a download"
    )
    min_interactions: int | None = Field(
        None, ge=3, description="rows a user must have; default: the data set's own, or 10"
    )
    format: Literal["rows", "lists", "jsonl", "parquet"] | None = Field(
        None, description="one interaction a line, one user a line, JSON lines, Parquet; default: detected"
    )
    encoding: str | None = Field(
        None, description="of a text (`latin-1`, `utf-16`, ...); default: UTF-8, or its mark's"
    )
    separator: str | None = Field(None, description="of a delimited file; default: detected")
    header: bool | None = Field(None, description="whether the file has a header line; default: detected")
    comment: str | None = Field(None, description="what lines to skip start with; empty: none; default: detected")
    user_column: str | int | None = Field(None, description="name or number (from 0)")
    item_column: str | int | None = Field(None, description="name or number (from 0)")
    rating_column: str | int | None = Field(None, description="name or number (from 0)")
    time_column: str | int | None = Field(None, description="name or number (from 0)")
    time_format: str | None = Field(
        None, description="of dates, as of strptime (`%d/%m/%Y`); `number`: times are none; default: detected"
    )
    order: Literal["time", "rows"] = Field(
        "time", description="rows: the rows are in the order of time, and no column of times is read"
    )
    min_rating: float | None = Field(
        None, description="a row counts as positive from this rating on; default: above 0, or there are no ratings"
    )
    synthetic: SyntheticConfig = SyntheticConfig()
