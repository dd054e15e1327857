"""A control for leaks through order: with the order inside each history shuffled, recency and order must give nothing.

    python -m benchmarks.shuffled_order --data ml-100k --out FOLDER [--method fedials-order] [--seed 0]

The training rows of each user are shuffled (keyed by seed and user); the held-out items stay. The table prints the
fold-in without recency, with the recency that validation chose, and with the order component, on both histories.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from fedem_flwr.config import resolve
from fedem_flwr.data import load_dataset
from fedem_flwr.engine.ials import EVERYTHING, FoldInScores
from fedem_flwr.evaluation.cohort import evaluate_cohort, means_of
from fedem_flwr.evaluation.scorers import HistoryScorer
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.protocol.splits import Split
from fedem_flwr.protocol.variants import shuffle_order
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inputs import split_of
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.served import ServedModel


def rows(split: Split, folder: Path, options: dict[str, dict[str, object]]) -> list[tuple[str, dict[str, float]]]:
    """Test means of the served model without recency and order, with recency, and with all that was chosen."""
    run = PreparedRun.create(RunDirectory(folder).create(overwrite=True), resolve({}, options), split)
    carry_out_rounds(run, lambda line: None)
    scorer = ServedModel.open(run).scorer(0)
    assert isinstance(scorer, HistoryScorer)
    (weight, fold_in), *others = scorer.components
    assert isinstance(fold_in, FoldInScores)
    plain = replace(fold_in, recency=EVERYTHING)
    chosen = ", ".join(f"{w:g}" for w, _ in others)
    variants = {
        "fold-in": [(weight, plain)],
        f"+ recency, h = {fold_in.recency.half_life:g}": [(weight, fold_in)],
        f"+ order, weights {chosen}": scorer.components,
    }
    return [
        (name, means_of(evaluate_cohort(replace(scorer, components=parts), split))) for name, parts in variants.items()
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--method", default="fedials-order")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    options: dict[str, dict[str, object]] = {
        "data": {"dataset": args.data},
        "method": {"name": args.method},
        "run": {"seed": args.seed},
    }
    split = split_of(resolve({}, options), load_dataset(args.data))
    print("| histories | scores | HR@10 / NDCG@10, 99 negatives | whole catalogue |")
    print("|---|---|---|---|")
    for name, variant in (("as they are", split), ("shuffled", shuffle_order(split, args.seed))):
        for scores, means in rows(variant, args.out / name.replace(" ", "-"), options):
            cells = [
                f"{means[f'test/{way}/hr@10']:.4f} / {means[f'test/{way}/ndcg@10']:.4f}"
                for way in ("sampled99", "full")
            ]
            print(f"| {name} | {scores} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
