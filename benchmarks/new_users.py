"""Half of the users are never in training: how well are they served by one solve, beside the users who were?

    python -m benchmarks.new_users --data ml-1m --out FOLDER [--method fedials] [--seed 0]

Both halves are evaluated in the same way, on the last item of each user's own history; the random half that trains is
drawn by the seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from fedem_flwr.config import resolve
from fedem_flwr.data import KNOWN_DATASETS, gather, hold_out_users, load_dataset, with_known_items
from fedem_flwr.engine.history import History
from fedem_flwr.evaluation.cohort import Sums, evaluate_cohort, means_of
from fedem_flwr.evaluation.scorers import HistoryScorer
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.protocol.splits import make_split
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inputs import adapted
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.served import ServedModel


def main() -> None:
    """Train on one half, evaluate both, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-1m")
    parser.add_argument("--method", default="fedials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    options = {"data": {"dataset": args.data}, "method": {"name": args.method}, "run": {"seed": args.seed}}
    config = resolve({}, options)
    fewest = KNOWN_DATASETS[args.data].min_interactions("strict")
    train, new = (gather(part) for part in hold_out_users(load_dataset(args.data), 0.5, args.seed))
    split = make_split(train, "strict", seed=args.seed, min_interactions=fewest)
    run = PreparedRun.create(RunDirectory(args.out).create(overwrite=True), adapted(config, split), split)
    carry_out_rounds(run, lambda line: None)
    model = ServedModel.open(run)
    trained = model.scorer(0)
    assert isinstance(trained, HistoryScorer) and run.nodes == 1
    known = with_known_items(new, split.item_ids)
    others = make_split(known.interactions, "strict", seed=args.seed, min_interactions=fewest, keep_items=True)
    history = History(np.arange(others.users), others.items, others.train_offsets, others.train_items)
    unseen = HistoryScorer(history, trained.device, trained.components)

    def row(name: str, users: int, sums: Sums) -> str:
        means = means_of(sums)
        cells = [
            f"{means[f'test/{way}/hr@10']:.4f} / {means[f'test/{way}/ndcg@10']:.4f}" for way in ("sampled99", "full")
        ]
        return f"| {name} | {users:,} | {cells[0]} | {cells[1]} |"

    print(
        f"{args.data}, {args.method}, served round {model.point.round}; rows of unknown items: {known.dropped_rows}\n"
    )
    print("| users | how many | HR@10 / NDCG@10, 99 negatives | whole catalogue |")
    print("|---|---|---|---|")
    print(row("in training", split.users, evaluate_cohort(trained, split)))
    print(row("never in training", others.users, evaluate_cohort(unseen, others)))


if __name__ == "__main__":
    main()
