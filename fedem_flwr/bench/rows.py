"""What is measured, as bench.json keeps it: every sample, and from them medians, ratios and exponents."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedem_flwr.bench.statistics import Estimate, exponent, median_of

Kind = Literal["ratio", "growth"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # figures are written beside, and computed anew


class Series(_Kept):
    """Samples of one side.

    Attributes:
        label: of the side.
        wall: seconds by the clock, one a turn.
        cpu: seconds of the processor; empty where the work is done in other processes.
        bytes: what it sends.
    """

    label: str
    wall: tuple[Positive, ...] = Field(min_length=1)
    cpu: tuple[Positive, ...] = ()
    bytes: int | None = Field(None, gt=0)


class Row(_Kept):
    """One benchmark's result.

    Attributes:
        name: of the benchmark.
        what: it does, in words.
        setting: sizes of the work; only equal ones are compared.
        kind: "ratio": ours (the first series) against a plain way to do the same (the second). "growth": ours at
            several sizes, smallest first.
        sizes: of a growth, one a series.
        yardstick: work that is not ours, in the same turns; none where the work is done in other processes.
        remark: what else was found, as how far the sides' results are apart.
    """

    name: str
    what: str
    setting: str
    kind: Kind
    series: tuple[Series, ...] = Field(min_length=2)
    sizes: tuple[Positive, ...] = ()
    yardstick: Series | None = None
    remark: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Row:
        turns = {len(series.wall) for series in self.series}
        if len(turns) > 1:
            raise ValueError(f"{self.name}: its series have {sorted(turns)} samples, and should have equally many")
        if any(series.cpu and len(series.cpu) != len(series.wall) for series in self.series):
            raise ValueError(f"{self.name}: not as many seconds of the processor as by the clock")
        if self.kind == "ratio" and len(self.series) != 2:
            raise ValueError(f"{self.name}: a ratio has two series, not {len(self.series)}")
        if self.kind == "growth" and (len(self.sizes) != len(self.series) or len(set(self.sizes)) < 2):
            raise ValueError(f"{self.name}: a growth has a size for each series, and two of them differ")
        if self.yardstick is not None and len(self.yardstick.wall) not in turns:
            raise ValueError(f"{self.name}: its yardstick was not measured in the same turns")
        return self

    @property
    def turns(self) -> int:
        """Samples of each series."""
        return len(self.series[0].wall)

    @property
    def ours(self) -> Series:
        """What is ours: of a growth, at its largest size."""
        return self.series[0] if self.kind == "ratio" else self.series[-1]

    @property
    def ratios(self) -> tuple[float, ...]:
        """How many times as fast as the other side ours was, turn by turn; empty for a growth."""
        if self.kind == "growth":
            return ()
        ours, theirs = self.series
        return tuple(b / a for a, b in zip(ours.wall, theirs.wall, strict=True))

    @property
    def ratios_cpu(self) -> tuple[float, ...]:
        """The same of seconds of the processor; empty where they are not known."""
        if self.kind == "growth" or not all(series.cpu for series in self.series):
            return ()
        ours, theirs = self.series
        return tuple(b / a for a, b in zip(ours.cpu, theirs.cpu, strict=True))

    @property
    def exponents(self) -> tuple[float, ...]:
        """How seconds grow with the size, turn by turn; empty for a ratio.

        Of the processor's seconds where they are known: a machine that is busy for a moment would bend the curve.
        """
        if self.kind == "ratio":
            return ()
        taken = [series.cpu or series.wall for series in self.series]
        return tuple(exponent(self.sizes, [one[turn] for one in taken]) for turn in range(self.turns))

    @property
    def pace(self) -> tuple[float, ...]:
        """Ours in yardsticks, turn by turn, by seconds of the processor; empty where there is no yardstick."""
        if self.yardstick is None or not self.ours.cpu or not self.yardstick.cpu:
            return ()
        return tuple(a / b for a, b in zip(self.ours.cpu, self.yardstick.cpu, strict=True))

    @property
    def ratio(self) -> Estimate | None:
        """Median of `ratios`; None for a growth."""
        return median_of(self.ratios) if self.ratios else None

    @property
    def ratio_cpu(self) -> Estimate | None:
        """Median of `ratios_cpu`; None where there are none."""
        return median_of(self.ratios_cpu) if self.ratios_cpu else None

    @property
    def exponent(self) -> Estimate | None:
        """Median of `exponents`; None for a ratio."""
        return median_of(self.exponents) if self.exponents else None

    def figures(self) -> dict[str, object]:
        """What bench.json says beside the samples, for readers that compute nothing."""

        def shown(estimate: Estimate | None) -> dict[str, float] | None:
            return None if estimate is None else estimate._asdict()

        return {
            "median_wall": {series.label: median_of(series.wall).median for series in self.series},
            "median_cpu": {series.label: median_of(series.cpu).median for series in self.series if series.cpu},
            "ratio": shown(self.ratio),
            "ratio_cpu": shown(self.ratio_cpu),
            "exponent": shown(self.exponent),
        }


def seconds_text(seconds: float) -> str:
    """Three digits with a unit."""
    unit, name = next(((u, n) for u, n in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if seconds >= u), (1e-9, "ns"))
    value = seconds / unit
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f} {name}"


def times_text(ratio: float) -> str:
    """A ratio with three digits, thousands with a comma."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
