"""Under ``temporal``: warm users, users with some rows, and newcomers apart; and what is said of such a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.contract.finding import method_of
from fedem_flwr.contract.serving import way_of
from fedem_flwr.evaluation.control_cache import UserMetrics
from fedem_flwr.evaluation.lists import Served
from fedem_flwr.evaluation.ranking import NEW, UNSERVED
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.account import moment
from fedem_flwr.report.groups import METHOD, TEMPORAL
from fedem_flwr.runtime.prepared import PreparedRun

__all__ = ["TEMPORAL", "described", "drawn", "groups_of"]
_WARM = 10  # training rows, where a split does not say how many its users have at least


def groups_of(split: Split, method: str, found: Served, controls: Mapping[str, UserMetrics]) -> list[dict[str, Any]]:
    """Test figures of everybody who is asked, and of each group, with those of the controls.

    Args:
        found: what the served model gives. controls: their test metrics of each user.
    """
    ranks, rows = found.ranks["full"], split.trained_on(split.codes)
    groups = []
    for label, inside in _members(split, rows, ranks):
        some = np.flatnonzero(inside)
        groups.append(
            {
                "label": label,
                "users": len(some),
                "new_items": int((ranks[some] == NEW).sum()),
                "unserved": int((ranks[some] == UNSERVED).sum()),
                "mean_interactions": float(rows[some].mean()) if len(some) else 0.0,
                "figures": {
                    name: {path: float(np.nanmean(values[some])) for path, values in metrics.items()}
                    for name, metrics in {METHOD: found.metrics, **controls}.items()
                    if len(some)
                },
            }
        )
    return groups


def _members(
    split: Split, rows: NDArray[np.int64], ranks: NDArray[np.int32]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    warm = _WARM if split.account is None else split.account.min_interactions
    asked = np.zeros(split.users, np.bool_)
    asked[split.everybody] = True
    yield "everybody", asked
    yield f"warm users (≥ {warm} rows)", asked & (rows >= warm)
    yield f"some rows (1 to {warm - 1})", asked & (rows > 0) & (rows < warm)
    yield "newcomers (no row)", asked & (rows == 0)
    yield "known items only", asked & (ranks != NEW)


def described(run: PreparedRun, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What summary.json says of a second training: its instants, what was asked, what devices did, and the groups."""
    split, config = run.split, run.config
    assert split.histories is not None
    method = method_of(config, split.items) if not config.method.strategy.startswith("flwr.") else None
    return {
        "instant": split.histories.instant,
        "date": moment(split.histories.instant),
        "target": split.histories.target,
        "device": "stale" if method is None else way_of(method),
        "rounds": config.temporal.rounds,
        "chosen": config.temporal.chosen,
        "groups": list(groups),
    }


def drawn(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The groups as the report's picture of users takes them."""
    apart = [group for group in groups[1:4] if group["users"]]
    return [
        {
            "label": group["label"].partition(" (")[0],
            "users": group["users"],
            "mean_interactions": group["mean_interactions"],
            **{name: group["figures"][METHOD][f"full/{name}"] for name in ("hr@10", "ndcg@10")},
        }
        for group in apart
    ]
