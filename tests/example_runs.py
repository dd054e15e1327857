"""A made-up run and the parts of it: what tests of the report look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedem_flwr.report import RunDirectory

Json = dict[str, Any]


def scores(hits: float, gain: float, negative_hits: float = 0.4, negative_gain: float = 0.2) -> Json:
    return {"hr@10": hits, "ndcg@10": gain, "sampled99": {"hr@10": negative_hits, "ndcg@10": negative_gain}}


def metrics_line(number: int, **changes: Any) -> Json:
    line: Json = {
        "round": number,
        "train_loss": 0.7 / number,
        "validation": scores(0.02 * number, 0.01 * number),
        "test": scores(0.019 * number, 0.009 * number),
        "rho": {"mean": 0.5, "std": 0.1},
        "seconds": 1.2,
        "participants": 20,
        "bytes_up": 1000,
        "bytes_down": 2000,
    }
    return line | changes


def example_summary(**changes: Any) -> Json:
    summary: Json = {
        "dataset": "ml-100k",
        "method": "fedem",
        "protocol": "strict",
        "runtime": "inprocess",
        "seed": 0,
        "rounds": 6,
        "users": 943,
        "items": 1682,
        "interactions": 100000,
        "metrics": {
            "best_validation": {"round": 5, **scores(0.23, 0.12, 0.69, 0.37)},
            "best_test": {"round": 6, **scores(0.30, 0.15, 0.71, 0.38)},
            "last": {"round": 6, **scores(0.22, 0.11)},
        },
        "controls": {
            "random": scores(0.006, 0.003, 0.1, 0.045),
            "popularity": scores(0.08, 0.04),
            "ease": scores(0.25, 0.13, 0.64, 0.38),
            "local_only": scores(0.07, 0.03, 0.14, 0.07),
        },
        "seconds_per_round": 1.234,
        "bytes_up": 107648,
        "bytes_down": 215296,
        "peak_rss_bytes": 1_430_000_000,
        "selected": "best_validation",
        "command": "fedem run configs/ml-100k.toml",
        "notes": ["Three clients were small."],
        "failures": 1,
    }
    return summary | changes


def example_diagnostics() -> Json:
    generator = np.random.default_rng(0)
    return {
        "rho": {
            "edges": np.linspace(0, 1, 21),
            "histograms": {number: generator.integers(0, 50, 20) for number in (1, 3, 5, 6)},
        },
        "weights": {
            "own": generator.uniform(0.4, 0.6, 30),
            "nonzero": generator.integers(5, 15, 30),
            "sample": generator.uniform(0, 1, (12, 12)) * (generator.random((12, 12)) < 0.6),
        },
        "groups": [
            {"label": f"{number}", "users": 20, "mean_interactions": 9.5 * number, **scores(0.1, 0.05)}
            for number in range(1, 6)
        ],
        "failures": [{"round": 2, "node": "3", "reason": "timed out after 30 s"}],
    }


UNEVALUATED: Json = {"validation": None, "test": None, "rho": None, "evaluated_users": 0}


def every_third(count: int) -> list[Json]:
    return [
        metrics_line(n, **({"evaluated_users": 943} if n % 3 == 0 or n == count else UNEVALUATED))
        for n in range(1, count + 1)
    ]


def example_comparison(**changes: Any) -> Json:
    comparison: Json = {
        "control": "ease_recent",
        "metrics": {
            "ndcg@10": {"mean": 0.012, "low": 0.004, "high": 0.020},
            "hr@10": {"mean": -0.001, "low": -0.01, "high": 0.008},
            "sampled99": {
                "ndcg@10": {"mean": -0.02, "low": -0.03, "high": -0.01},
                "hr@10": {"mean": 0.0, "low": 0.0, "high": 0.01},
            },
        },
        "round": 5,
        "users": 943,
        "level": 0.95,
    }
    return comparison | changes


def example_lists() -> Json:
    return {
        "coverage": 0.341,
        "gini": 0.9213,
        "novelty": 3.456,
        "long_tail": 0.015,
        "popularity_recommended": 0.213,
        "popularity_consumed": 0.0912,
        "popularity_histogram": {
            "edges": [0, 0.001, 0.002, 0.004, 0.007, 0.013, 0.021, 0.036, 0.064, 0.12, 0.615],
            "recommended": [0, 0, 0.002, 0.008, 0.02, 0.03, 0.06, 0.12, 0.23, 0.53],
            "consumed": [0.002, 0.004, 0.01, 0.02, 0.03, 0.05, 0.08, 0.13, 0.2, 0.474],
        },
    }


def example_tuning() -> Json:
    rows = [
        {"half_life": half, "ridge": ridge, "ndcg@10": 0.1 + 0.01 * ridge - 0.001 * half, "users": 900}
        for half in (5, 10)
        for ridge in (0.5, 1.0)
    ]
    return {"rows": rows, "chosen": {"half_life": 5, "ridge": 1.0}, "round": 12}


def example_run(path: Path, **changes: Any) -> RunDirectory:
    run = RunDirectory(path).create()
    run.write_config('dataset = "ml-100k"\n')
    for number in range(1, 7):
        run.append_metrics(metrics_line(number))
    run.write_summary(example_summary(**changes))
    run.write_diagnostics(example_diagnostics())
    return run
