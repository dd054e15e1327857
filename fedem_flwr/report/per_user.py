"""A run's figures of each user, kept in its directory, so that any two runs on one split can be compared afterwards.

They are of the model that the run serves: the best round's by validation where clients keep nothing, else the last
round's. Nothing of them was part of what clients upload: whoever carries out the experiment has the data, and looks.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedem_flwr.errors import FedemError
from fedem_flwr.evaluation.ranking import user_terms
from fedem_flwr.files import write_atomically
from fedem_flwr.report.run_directory import USERS

_FORMAT = 1
_ABOUT, _RANKS, _CONTROLS = "about", "ranks", "controls"


@dataclass(frozen=True, eq=False)
class PerUser:
    """Test figures of each user.

    Attributes:
        split: digest of the split's content. people: digest of the users' ids, in their order.
        round: whose model was looked at.
        ranks: list (``full``, ``sampled99``) to (n,) int32 rank of the target from 1; 0 where its score was not finite,
            -1 where nobody scored
            the user; and as of `ranking.NEW`, `ranking.UNSERVED`.
        controls: control to metric, such as ``full/ndcg@10``, to (n,) float32.
    """

    split: str
    people: str
    round: int
    ranks: Mapping[str, NDArray[np.int32]]
    controls: Mapping[str, Mapping[str, NDArray[np.float32]]]

    def metric(self, way: str, name: str) -> NDArray[np.float32]:
        """(n,) ``hr@10`` or ``ndcg@10`` in a list; NaN where nobody scored the user."""
        ranks = self.ranks[way]
        found: NDArray[np.float32] = user_terms(torch.from_numpy(np.maximum(ranks, 0).astype(np.int64)))[name].numpy()
        return np.where(ranks == -1, np.float32(np.nan), found)

    def save(self, directory: Path) -> None:
        """Write it, for nobody else's eyes.

        Raises:
            FedemError: it cannot be written.
        """
        about = {"format": _FORMAT, "split": self.split, "people": self.people, "round": self.round}
        arrays: dict[str, NDArray[Any]] = {_ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)}
        arrays |= {f"{_RANKS}/{way}": values for way, values in self.ranks.items()}
        arrays |= {
            f"{_CONTROLS}/{control}/{metric}": values
            for control, metrics in self.controls.items()
            for metric, values in metrics.items()
        }
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **arrays)
        write_atomically(directory / USERS, file.getvalue(), private=True)

    @classmethod
    def load(cls, directory: Path) -> PerUser | None:
        """Read it; None of a run that kept none: of an earlier version, or whose data are elsewhere.

        Raises:
            FedemError: it is damaged.
        """
        place = directory / USERS
        if not place.exists():
            return None
        ranks: dict[str, NDArray[np.int32]] = {}
        controls: dict[str, dict[str, NDArray[np.float32]]] = {}
        try:
            with np.load(place, allow_pickle=False) as arrays:
                about = json.loads(arrays[_ABOUT].tobytes())
                for name in arrays.files:
                    kind, _, rest = name.partition("/")
                    if kind == _RANKS:
                        ranks[rest] = arrays[name]
                    elif kind == _CONTROLS:
                        control, _, metric = rest.partition("/")
                        controls.setdefault(control, {})[metric] = arrays[name]
            lengths = {len(values) for values in (*ranks.values(), *(v for m in controls.values() for v in m.values()))}
            if set(ranks) != {"full", "sampled99"} or len(lengths) != 1:
                raise ValueError("not a figure for each user")
            return cls(str(about["split"]), str(about["people"]), int(about["round"]), ranks, controls)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise FedemError(f"{place} is damaged ({error}): delete it, and compare without it") from error
