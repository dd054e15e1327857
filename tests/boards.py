"""Finished runs that were never carried out, for leaderboards that take no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from example_runs import metrics_line

from fedem_flwr.report.per_user import PerUser
from fedem_flwr.report.run_directory import RunDirectory


def both(hits: float, gain: float, protocol: str) -> dict[str, Any]:
    full, sampled = {"hr@10": hits / 3, "ndcg@10": gain / 3}, {"hr@10": hits, "ndcg@10": gain}
    return {**(sampled if protocol == "paper" else full), "full": full, "sampled99": sampled}


def finished(
    folder: Path, method: str, seed: int, hits: float, protocol: str = "strict", dataset: str = "ml-100k"
) -> Path:
    """A run whose HR@10 among 99 negatives is `hits`, NDCG@10 half of it, a third of both in the whole catalogue."""
    directory = RunDirectory(folder / f"{dataset}-{protocol}-{method.replace('/', '_')}-{seed}").create()
    directory.write_config("")
    for number in (1, 2, 3):
        line = both(hits * number / 3, hits * number / 6, protocol)
        directory.append_metrics(metrics_line(number, test=line, validation=line))
    rule = "best_test" if protocol == "paper" else "best_validation"
    controls = {name: both(h, h / 2, protocol) for name, h in (("popularity", 0.4), ("ease", 0.6))}
    summary = {
        **{"dataset": dataset, "protocol": protocol, "method": method, "seed": seed, "rounds": 3, "selected": rule},
        "metrics": {rule: {"round": 3, **both(hits, hits / 2, protocol)}},
        "controls": {**controls, "local_only": both(0.1, 0.05, protocol)},
        **{"seconds_per_round": 10 * hits, "bytes_up": 1000, "bytes_down": 3000, "peak_rss_bytes": 5e8},
    }
    directory.write_summary(summary)
    groups = [
        {"label": label, "users": 30, "mean_interactions": mean, "hr@10": hits * share, "ndcg@10": hits * share / 2}
        for label, mean, share in (("1 (sparsest)", 9, 0.5), ("2 (most active)", 80, 1.0))
    ]
    lists = {"coverage": 0.25, "gini": 0.912, "novelty": 4.25, "long_tail": 0.15, "popularity_recommended": 0.1}
    directory.write_diagnostics({"lists": lists, "groups": groups})
    ranks = np.random.default_rng([seed, int(100 * hits)]).integers(1, int(20 / hits), 60).astype(np.int32)
    metrics = {f"{way}/ndcg@10": np.full(60, 0.3, np.float32) for way in ("full", "sampled99")}
    PerUser(f"{seed}", "people", 3, {"full": ranks, "sampled99": ranks}, {"ease": metrics}).save(directory.path)
    (directory.path / "report.html").write_text("report")
    return directory.path
