"""Methods whose clients keep nothing: users are solved or scored from their histories and what was downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from fedem_flwr.config import Config
from fedem_flwr.contract.asked import Asked, Device
from fedem_flwr.contract.method import Method
from fedem_flwr.engine.parts import Part
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.scorers import Component, HistoryScorer


class FromHistory(Method):
    """A subclass gives `components`, `sends` and `start`, and its phases."""

    FEDERATED_ONLY = True  # a table of one's own history alone knows no other item
    LOW_RANK = True
    TUNES: ClassVar[tuple[str, ...]] = ("ials.weight", "ials.ridge", "ials.kappa")

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        if config.gradients.sharp:
            raise InputError(f"{config.gradients.sharp}: {type(self).__name__} takes no local steps; set it to 0")

        if config.gradients.clip is not None:
            raise InputError(
                f"gradients.clip = {config.gradients.clip:g}: {type(self).__name__} takes no local steps; leave it out"
            )

    def parts(self) -> Mapping[str, Part]:
        """None is trained by the engine."""
        return {}

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See `components`.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{type(self).__name__} scores histories, not parts")

    def table(self, state: Mapping[str, Tensor]) -> Tensor | None:
        """The table for all."""
        return state.get("table")

    def scorer(self, device: Device, asked: Asked) -> HistoryScorer:
        """All users, from their histories."""
        return history_scorer(device, self.components(asked))


def history_scorer(device: Device, components: Sequence[tuple[float, Component]]) -> HistoryScorer:
    """All users of a node, from what they are scored from."""
    apart = device.open_scored is not None
    return HistoryScorer(device.scored, device.place, components, device.newest, needs_history=apart)
