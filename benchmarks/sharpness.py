"""What sharpness-aware gradients change: the same method with and without them, on one data set under `strict`.

    FEDEM_DATA=... python -m benchmarks.sharpness --data filmtrust --method fedrecgel --rho 0 --rho 0.02 --seed 0

FedRecGEL claims a flatter minimum, a steadier validation curve, and better figures on rare items. Measured here:
- **curve**: variance of validation NDCG@10 over the second half of the rounds, about its own straight line;
- **sharpness**: by how much a sample's mean loss grows when all parts of a user's model move by `--radius` along their
  gradient, after the last round, on fresh samples; the mean over users;
- **accuracy**: test HR@10 / NDCG@10 among 99 negatives, for all users, and by how popular the held-out item is: head,
  middle and tail are items that each hold a third of the training interactions.
Figures are means over the seeds; NDCG of all with its standard deviation where there are several.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.config import merge_trees, resolve
from fedem_flwr.contract import Method
from fedem_flwr.engine.block import Batch
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.samples import draw_samples
from fedem_flwr.evaluation.lists import served
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.served import ServedModel

GROUPS = ("head", "middle", "tail")
AT_ONCE = 32  # users whose loss is looked at


def third_of(split: Split) -> np.ndarray:
    """(m,) 0, 1 or 2 for items of the head, the middle and the tail."""
    counts = np.bincount(split.train_items, minlength=split.items)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]  # interactions of more popular items
    found = np.empty(split.items, np.int64)
    found[order] = np.minimum(2, 3 * before // max(1, counts.sum()))
    return found


def roughness(curve: list[float]) -> float:
    """Variance of the second half about a straight line."""
    values = np.asarray(curve[len(curve) // 2 :])
    at = np.arange(len(values))
    return float(np.var(values - np.polyval(np.polyfit(at, values, 1), at)))


def growth(method: Method, scorer: CohortScorer, radius: float, round_: int) -> Iterator[float]:
    """Of each user, how much its mean loss grows at a distance `radius` along the gradient."""
    cohort, names = scorer.cohort, [name for update in method.updates(round_) for name in update.rates]
    for who in cohort.everyone.split(AT_ONCE):
        samples = draw_samples(cohort.data, who, method.local.negatives, Draws(method.seed), round_)
        block = cohort.block_of(who, scorer.downloads, samples, round_, merging=False)
        valid = (torch.arange(samples.row.shape[1]) < samples.size[:, None]).float()
        batch = Batch(block, samples.row, valid)
        before, slope = method.gradients(batch, names)
        length = torch.stack([slope[name].flatten(1).square().sum(1) for name in names]).sum(0).sqrt()
        for name in names:
            by: Tensor = radius / length.clamp(min=1e-12)
            block.parts[name] = block.parts[name] + slope[name] * by.view(-1, *[1] * (slope[name].ndim - 1))
        after = method.gradients(Batch(block, samples.row, valid), names)[0]
        yield from ((after - before) / batch.size.squeeze(1)).tolist()


def measure(args: argparse.Namespace, rho: float, seed: int) -> dict[str, float]:
    """One run's figures."""
    tree = {
        "data": {"dataset": args.data},
        "method": {"name": args.method},
        "gradients": {"sharpness": rho},
        "run": {"seed": seed, "rounds": args.rounds, "checkpoint_every": 100_000},
        "evaluation": {"every": 1, "controls": False, "local_only": False},
    }
    config = resolve({}, merge_trees(tree, {"run": {"participants": args.participants}} if args.participants else {}))
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        split = split_of(config, load_interactions(config))
        run = PreparedRun.create(RunDirectory(Path(folder) / "run").create(), config, split)
        began = time.process_time()
        carry_out_rounds(run, lines.append)
        seconds = time.process_time() - began
        model = ServedModel.open(run)
        users = served(run.split, model.scorers()).metrics
        scorer = model.scorer(0)
        assert isinstance(scorer, CohortScorer)
        grown = list(growth(model.client(0).method, scorer, args.radius, args.rounds + 1))
    curve = [line["validation"]["sampled99"]["ndcg@10"] for line in lines if line.get("validation")]
    found = {"curve": roughness(curve), "growth": float(np.mean(grown)), "seconds": seconds / args.rounds}
    group = third_of(split)[np.asarray(split.test)]
    for number, name in enumerate(("all", *GROUPS)):
        inside = np.ones(len(group), bool) if name == "all" else group == number - 1
        for metric in ("hr", "ndcg"):
            found[f"{name}/{metric}"] = float(users[f"sampled99/{metric}@10"][inside].mean())
        found[f"{name}/users"] = float(inside.sum())
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="filmtrust")
    parser.add_argument("--method", default="fedrecgel")
    parser.add_argument("--rho", action="append", type=float, required=True)
    parser.add_argument("--seed", action="append", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--participants", type=float, help="share of users a round; default: the preset's")
    parser.add_argument("--radius", type=float, default=0.05)
    args = parser.parse_args()
    print(f"{date.today()}, {platform.processor() or platform.machine()}, torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads: `python -m benchmarks.sharpness {' '.join(sys.argv[1:])}`\n")
    print("| ρ | variance of the curve | growth of the loss | all | head | middle | tail | CPU s a round |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for rho in args.rho:
        runs = [measure(args, rho, seed) for seed in args.seed]
        mean = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
        cells = [f"{rho:g}", f"{mean['curve']:.2e}", f"{mean['growth']:.4f}"]
        cells += [f"{mean[f'{name}/hr']:.4f} / {mean[f'{name}/ndcg']:.4f}" for name in ("all", *GROUPS)]
        if len(runs) > 1:
            cells[3] += f" ± {np.std([run['all/ndcg'] for run in runs], ddof=1):.4f}"
        print("| " + " | ".join([*cells, f"{mean['seconds']:.2f}"]) + " |", flush=True)
    users = ", ".join(f"{name} {mean[f'{name}/users']:.0f}" for name in GROUPS)
    print(f"\nHR@10 / NDCG@10 of the test item among 99 negatives. Users by held-out item: {users}.")


if __name__ == "__main__":
    main()
