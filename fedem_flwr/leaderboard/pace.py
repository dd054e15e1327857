"""How long cells take: what finished and running ones took tells the rest."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedem_flwr.leaderboard.cells import Prepared, read_record

Kind = tuple[str, str]  # data set and method: seeds and protocols hardly matter


@dataclass
class Pace:
    """Seconds that a cell takes for each of its rounds, controls and report included, by kind."""

    known: dict[Kind, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, cells: Iterable[Prepared]) -> Pace:
        """What the records of finished cells say."""
        pace = cls()
        for cell in cells:
            seconds = read_record(cell.directory).get("seconds")
            if cell.finished and isinstance(seconds, int | float):
                pace.took(cell, float(seconds))
        return pace

    def took(self, cell: Prepared, seconds: float) -> None:
        """A cell has ended after so long."""
        self.known.setdefault(kind_of(cell), []).append(seconds / cell.config.run.rounds)

    def of_round(self, cell: Prepared) -> float | None:
        """What a round of a cell will take, by its own kind, or by all kinds of its data set, or by all."""
        own = self.known.get(kind_of(cell))
        near = [s for (data, _), each in self.known.items() if data == cell.name.dataset for s in each]
        found = own or near or [s for each in self.known.values() for s in each]
        return statistics.mean(found) if found else None


def kind_of(cell: Prepared) -> Kind:
    """What cells that take about as long have in common."""
    return cell.name.dataset, cell.name.method


def seconds_left(waiting: Sequence[Prepared], running: Mapping[Prepared, float], pace: Pace, jobs: int) -> float | None:
    """About how long it will take until all cells have ended; None before anything is known.

    Args:
        running: cells, and for how many seconds.
    """
    now = Pace({kind: list(each) for kind, each in pace.known.items()})
    for cell, seconds in running.items():
        done = cell.rounds_done
        if done and kind_of(cell) not in pace.known:
            now.known.setdefault(kind_of(cell), []).append(seconds / done)
    left = [
        (each, rounds)
        for each, rounds in (
            *((cell, cell.config.run.rounds) for cell in waiting),
            *((cell, max(0, cell.config.run.rounds - cell.rounds_done)) for cell in running),
        )
    ]
    paces = [(now.of_round(cell), rounds) for cell, rounds in left]
    if any(each is None for each, _ in paces):
        return None
    work = [each * rounds for each, rounds in paces if each is not None]
    return max([sum(work) / max(1, jobs), *work], default=0.0)
