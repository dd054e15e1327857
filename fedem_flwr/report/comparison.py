"""How a run's reported round compares with a control, user by user: differences with intervals, in figures and words.

All is read from ``summary["comparison"]``, which not every run has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedem_flwr.report.labels import control_label
from fedem_flwr.report.run_directory import number_at

_METRICS = (
    ("NDCG@10", ("ndcg@10",)),
    ("HR@10", ("hr@10",)),
    ("NDCG@10, 99 negatives", ("sampled99", "ndcg@10")),
    ("HR@10, 99 negatives", ("sampled99", "hr@10")),
)


@dataclass(frozen=True)
class Difference:
    """The run minus the control in one metric: mean over users and the ends of the interval."""

    metric: str
    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0, on the side of the run or of the control; 0 where it does not."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(frozen=True)
class Comparison:
    """A run against one control."""

    control: str
    level: str
    round: int | None
    users: int | None
    differences: tuple[Difference, ...]

    def words(self, difference: Difference) -> str:
        """Say whether the interval excludes 0, and what that means."""
        if difference.sign == 0:
            return f"includes 0: not told apart from {self.control}"
        return f"excludes 0: {'better' if difference.sign > 0 else 'worse'} than {self.control}"


def comparison_of(summary: Mapping[str, object]) -> Comparison | None:
    """Read the comparison of a summary; None if it has none, or nothing in it is whole."""
    section = summary.get("comparison")
    if not isinstance(section, Mapping):
        return None
    found = []
    for name, keys in _METRICS:
        ends = [number_at(section, "metrics", *keys, end) for end in ("mean", "low", "high")]
        mean, low, high = ends
        if mean is not None and low is not None and high is not None:
            found.append(Difference(name, mean, low, high))
    if not found:
        return None
    level, number, users = (number_at(section, key) for key in ("level", "round", "users"))
    return Comparison(
        control=control_label(str(section.get("control", "the control"))),
        level=f"{100 * level:g} % interval" if level is not None else "interval",
        round=None if number is None else int(number),
        users=None if users is None else int(users),
        differences=tuple(found),
    )


def signed(value: float) -> str:
    """Return a difference with its sign: ``+0.0120``; what rounds to nothing has none."""
    text = f"{value:+.4f}"
    return text[1:] if float(text) == 0 else text


def comparison_text(summary: Mapping[str, object]) -> str:
    """Say the first difference in a line for the terminal; empty if there is no comparison."""
    compared = comparison_of(summary)
    if compared is None:
        return ""
    first = compared.differences[0]
    ends = f"{signed(first.low)} to {signed(first.high)}"
    return f"{first.metric} against {compared.control}: {signed(first.mean)}, {compared.level} {ends}"
