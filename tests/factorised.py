"""Matrix factorisation on arrays: methods with given settings, cohorts of them, and what these download."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedem_flwr.config import merge_trees
from fedem_flwr.config.resolved import build
from fedem_flwr.contract import Method
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.engine.merge import MergeMode, Schedule
from fedem_flwr.engine.samples import TrainingItems

CPU = torch.device("cpu")


def learner(name: str, items: int, mode: MergeMode, schedule: Schedule = "paper", **sections: Any) -> Method:
    """A method with the defaults of the fields, and nothing of its preset.

    `fedmf` adds up rows, and keeps tables unless they are replaced; `fedem` keeps them in every mode.
    """
    own = {
        "method": {"name": name, "strategy": name},
        "merge": {"mode": mode, "schedule": schedule},
        "aggregate": {"weights": "rows" if name == "fedmf" else "eq13"},
    }
    return method_of(build(merge_trees(own, sections), "a test"), items)


def cohort_of(data: TrainingItems, method: Method) -> Cohort:
    """Users who have not trained yet."""
    return method.cohort(data, method.initial_state(len(data.users), CPU))


def received(tables: Tensor, slot: Tensor) -> Downloads:
    """Item tables (r, m, d), and whose each is."""
    return {"items": Download(tables, slot)}


def of_users(downloads: Downloads, users: Tensor) -> Downloads:
    """What some of the users received."""
    return {name: Download(one.values, one.slot[users]) for name, one in downloads.items()}
