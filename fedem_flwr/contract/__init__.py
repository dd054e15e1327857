"""The contract of a method: what it declares, and what is derived from that on both sides. See docs/extending.md."""

from __future__ import annotations

from fedem_flwr.contract.asked import Asked, Device
from fedem_flwr.contract.fields import Field, indexed
from fedem_flwr.contract.method import Method
from fedem_flwr.contract.phases import Gathered, Phase, Task, Upload
from fedem_flwr.contract.tuning import Tuning, Wanted
from fedem_flwr.engine.learner import Layers
from fedem_flwr.engine.optimizer import Pull, Update, moments
from fedem_flwr.engine.parts import Part, State, weights_of

__all__ = [
    "Asked",
    "Device",
    "Field",
    "Gathered",
    "Layers",
    "Method",
    "Part",
    "Phase",
    "Pull",
    "State",
    "Task",
    "Tuning",
    "Update",
    "Upload",
    "Wanted",
    "indexed",
    "moments",
    "weights_of",
]
