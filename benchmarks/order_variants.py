"""Ways to learn what follows what, beside one another on a finished run of fedials-order.

    python -m benchmarks.order_variants RUN_DIR

Every variant is added to the run's fold-in scores with a weight chosen on validation NDCG@10 in the whole catalogue.
The directional maps need one round: clients send sums over their positions of x xᵀ and x yᵀ, x the decayed newest items
and y the decayed next ones; the server solves a ridge regression.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix

from fedem_flwr.evaluation.ranking import MetricSums, Part, evaluate_scores
from fedem_flwr.evaluation.scorers import HistoryScorer
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.served import ServedModel

BEFORE, AFTER = 20, 6  # items that x and y look at
DECAY_BEFORE, DECAY_AFTER = 0.8, 0.7
RIDGES = (30.0, 100.0, 300.0, 1000.0)
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0)
TOP = 256  # entries of a row that the sparse map keeps
Scores = Callable[[np.ndarray], torch.Tensor]  # (k,) users -> (k, m)


def windows(split: Split) -> tuple[csr_matrix, csr_matrix, csr_matrix, float]:
    """x and y of positions with a next item, (positions, m) each; x of every user's end; pairs that a user sends."""
    offsets, items = np.asarray(split.train_offsets), np.asarray(split.train_items)
    place = np.arange(len(items))
    owner = np.repeat(np.arange(split.users), np.diff(offsets))

    def decayed(lags: range, decay: float) -> csr_matrix:
        rows, columns, values = [], [], []
        for step, lag in enumerate(lags):
            other = place + lag
            inside = (other >= 0) & (other < len(items))
            inside[inside] &= owner[other[inside]] == owner[inside]
            rows.append(place[inside])
            columns.append(items[other[inside]])
            values.append(np.full(int(inside.sum()), decay**step, np.float32))
        where = (np.concatenate(rows), np.concatenate(columns))
        return csr_matrix((np.concatenate(values), where), shape=(len(items), split.items))

    x = decayed(range(0, -BEFORE, -1), DECAY_BEFORE)
    y = decayed(range(1, AFTER + 1), DECAY_AFTER)
    follows = np.diff(y.indptr) > 0
    ends = x[offsets[1:] - 1]
    pairs = float(np.minimum(np.diff(offsets), BEFORE).mean() * np.diff(offsets).mean())
    return x[follows], y[follows], ends, pairs


def standard(scores: torch.Tensor) -> torch.Tensor:
    """Rows of mean 0 and standard deviation 1."""
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp(min=1e-12)


def measure(split: Split, score: Scores, part: Part) -> dict[str, MetricSums]:
    """Metric sums over all users."""
    total = {way: MetricSums.empty() for way in ("full", "sampled99")}
    for users in np.array_split(np.arange(split.users), max(1, split.users * split.items // 2**23)):
        for way, sums in evaluate_scores(split, users, score(users), which=part).items():
            total[way] += sums
    return total


def validation_gain(split: Split, scores: torch.Tensor) -> float:
    """Validation NDCG@10 in the whole catalogue, of (n, m) scores."""
    return measure(split, lambda users: scores[users], "validation")["full"].means()["ndcg@10"]


def best_mixture(split: Split, base: torch.Tensor, others: list[torch.Tensor]) -> tuple[list[float], torch.Tensor]:
    """Weights of the other scores beside the base's, one after the other, and the mixture."""
    chosen, mixed = [], base
    for other in others:
        gains = [validation_gain(split, mixed + w * other) for w in WEIGHTS]
        chosen.append(WEIGHTS[int(np.argmax(gains))])
        mixed = mixed + chosen[-1] * other
    return chosen, mixed


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = PreparedRun.open(RunDirectory(parser.parse_args().run).open())
    split, model = run.split, ServedModel.open(run)
    scorer = model.scorer(0)
    assert isinstance(scorer, HistoryScorer) and len(scorer.components) == 2 and run.nodes == 1
    found = [scorer.standardised(block, "validation") for block in scorer.blocks()]
    table, encoder = (torch.cat([each[i] for each in found]) for i in (0, 1))

    began = time.perf_counter()
    x, y, ends, pairs = windows(split)
    gram, cross = (x.T @ x).toarray().astype(np.float64), (x.T @ y).toarray().astype(np.float64)
    sums_seconds = time.perf_counter() - began
    item_rows = model.strategy.table().numpy()  # (m, d)
    dim = item_rows.shape[1]

    def full(ridge: float) -> np.ndarray:
        return np.linalg.solve(gram + ridge * np.eye(split.items), cross).astype(np.float32)

    def low_rank(ridge: float) -> np.ndarray:
        inner = item_rows.T @ gram @ item_rows + ridge * np.eye(dim) * np.trace(item_rows.T @ item_rows) / split.items
        return (item_rows @ np.linalg.solve(inner, item_rows.T @ cross @ item_rows) @ item_rows.T).astype(np.float32)

    def sparse(ridge: float) -> np.ndarray:
        weights = full(ridge)
        least = np.partition(np.abs(weights), -TOP, axis=1)[:, -TOP, None]
        return np.where(np.abs(weights) >= least, weights, 0)

    def scored(weights: np.ndarray) -> torch.Tensor:
        return standard(torch.from_numpy(np.asarray(ends @ weights)))

    rows: list[tuple[str, list[torch.Tensor], str]] = [("fold-in alone", [], "0")]
    matrix = {"full": pairs * 12, "sparse": pairs * 12, "low rank": dim * dim * 8}
    maps: dict[str, torch.Tensor] = {}
    for name, build in (("full", full), ("sparse", sparse), ("low rank", low_rank)):
        began = time.perf_counter()
        options = [scored(build(ridge)) for ridge in RIDGES]
        alone = [validation_gain(split, scores) for scores in options]
        maps[name] = options[int(np.argmax(alone))]
        seconds = time.perf_counter() - began
        print(
            f"{name} map: ridge {RIDGES[int(np.argmax(alone))]:g}, {seconds:.1f} s for {len(RIDGES)} ridges", flush=True
        )
        rows.append((f"+ {name} directional map", [maps[name]], f"{matrix[name] / 1e3:.0f} once"))
    rows += [("+ encoder", [encoder], "every round"), ("+ encoder + full map", [encoder, maps["full"]], "both")]
    rows += [("+ encoder + sparse map", [encoder, maps["sparse"]], "both")]
    print(f"sums of the maps: {sums_seconds:.1f} s\n")
    print("| variant | weights | HR@10 / NDCG@10, catalogue | 99 negatives | validation NDCG@10 | kB up a user |")
    print("|---|---|---|---|---|---|")
    for name, others, upload in rows:
        weights, mixed = best_mixture(split, table, others)
        test, validation = (measure(split, lambda u, s=mixed: s[u], part) for part in ("test", "validation"))
        cells = [
            f"{test[way].means()['hr@10']:.4f} / {test[way].means()['ndcg@10']:.4f}" for way in ("full", "sampled99")
        ]
        shown = ", ".join(f"{w:g}" for w in weights) or "–"
        gain = validation["full"].means()["ndcg@10"]
        print(f"| {name} | {shown} | {cells[0]} | {cells[1]} | {gain:.4f} | {upload} |", flush=True)


if __name__ == "__main__":
    main()
