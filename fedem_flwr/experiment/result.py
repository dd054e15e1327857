"""A run's result in Python, read from its directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedem_flwr.config import Config
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.flow import beside_of
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.report.tables import figure_text, selected_key, title_text
from fedem_flwr.runtime.consent import read_config
from fedem_flwr.serving.recommender import Recommender

if TYPE_CHECKING:
    import pandas as pd

_EVALUATED = ("validation", "test", "rho")  # sections of a metrics line that a round may lack


@dataclass(frozen=True)
class Result:
    """A run, read from its directory whenever it is asked.

    Attributes:
        path: the directory. trust: whether code that its configuration names may be imported, whoever has made it.
    """

    path: Path
    trust: bool = field(default=False, compare=False)

    @property
    def config(self) -> Config:
        """Everything the run depended on."""
        return read_config(RunDirectory(self.path), trusted=self.trust)

    @property
    def metrics(self) -> pd.DataFrame:
        """A row a round: loss, seconds, bytes, and the figures by path, as in ``"validation.sampled99.ndcg@10"``.

        The index is the round. What a round lacks is NaN: figures are there where it was evaluated.
        """
        import pandas as pd

        lines = [dict(_flat(line)) for line in RunDirectory(self.path).read_metrics()]
        rounds = pd.Index([line.pop("round") for line in lines], name="round", dtype="int64")
        return pd.DataFrame(lines, index=rounds)

    @property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds: figures of the reported and other rounds, controls, seconds, bytes, warnings.

        Raises:
            InputError: the run has not finished.
        """
        return RunDirectory(self.path).read_summary()

    @property
    def report(self) -> Path:
        """The HTML report, one file.

        Raises:
            InputError: there is none, as the run has not finished.
        """
        path = RunDirectory(self.path).report_path
        if not path.is_file():
            raise InputError(f"{path} is missing: the run has not finished; continue it with fedem_flwr.resume")
        return path

    @property
    def against(self) -> dict[str, Result]:
        """The runs beside this one, by method."""
        return {place.path.name: Result(place.path, self.trust) for place in beside_of(RunDirectory(self.path))}

    def recommender(self) -> Recommender:
        """What the run serves; `Recommender.load` of its directory.

        Raises:
            InputError: there is no checkpoint yet.
        """
        return Recommender.load(self.path, trust=self.trust)

    def __repr__(self) -> str:
        try:
            summary = self.summary
        except InputError:
            return f"<unfinished run in {self.path}>"
        key = selected_key(summary)
        figures = {name: figure_text(summary["metrics"][key].get(name)) for name in ("hr@10", "ndcg@10")}
        shown = ", ".join(f"{name} {figure}" for name, figure in figures.items())
        return f"<{title_text(summary)}: {shown} ({key.replace('_', ' ')}), in {self.path}>"


def _flat(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers of a metrics line by path; lists (histograms) and sections that the round lacks are left out."""
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list) and not (value is None and key in _EVALUATED):
            yield f"{prefix}{key}", value
