"""Our centralised controls beside independent implementations, on the same split, by the same ranks.

    FEDEM_DATA=... python -m benchmarks.independent --python OTHER_PYTHON --data filmtrust --epochs 20 --theirs 20 100

OTHER_PYTHON is an interpreter with one or more of implicit, torch-geometric and cornac (an environment of its own);
pairs whose library it lacks are left out, and named. Compared are pairs of the same model:

    mf-central          cross-entropy          implicit's `lmf`
    lightgcn-central    BPR, no layer          implicit's `bpr`
    lightgcn-central    BPR, three layers      torch-geometric's `LightGCN`
    mlp-central         cross-entropy          Cornac's `MLP`
    neumf-central       cross-entropy          Cornac's `NeuMF`

Losses and widths are the same; optimisers, initial values, and how many negatives a positive gets, are each program's
own, and both sides take the last epoch: nothing is chosen on any held-out item. implicit's epochs are cheaper and go
less far (one negative a positive, plain SGD): `--theirs` gives the others more of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.config import resolve
from fedem_flwr.evaluation.cohort import evaluate_cohort, means_of, nested
from fedem_flwr.evaluation.ranking import Part
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun

DIM = 32


@dataclass(frozen=True)
class Pair:
    """A model here and there.

    Attributes:
        ours: the preset. settings: of the method, beyond the preset's.
        library, theirs: where the other one is. told: what it is told, but for dimension, epochs and seed.
        names: what its library calls those three.
    """

    ours: str
    settings: dict[str, Any]
    library: str
    theirs: str
    told: dict[str, Any]
    names: tuple[str, str, str]


IMPLICIT, NCF = ("factors", "iterations", "random_state"), ("num_factors", "num_epochs", "seed")
NETWORK = {"layers": [64, 32, 16, 8], "lr": 0.005, "batch_size": 1024, "num_neg": 4}
PAIRS = (
    Pair("mf-central", {}, "implicit", "lmf", {"learning_rate": 0.5, "regularization": 0.6}, IMPLICIT),
    Pair(
        "lightgcn-central",
        {"options": {"layers": 0}},
        "implicit",
        "bpr",
        {"learning_rate": 0.05, "regularization": 0.01, "verify_negative_samples": True},
        IMPLICIT,
    ),
    Pair(
        "lightgcn-central",
        {},
        "torch_geometric",
        "LightGCN",
        {"layers": 3, "rate": 0.005, "batch": 1024, "ridge": 1e-3},
        ("dim", "epochs", "seed"),
    ),
    Pair("mlp-central", {}, "cornac", "MLP", NETWORK, ("", "num_epochs", "seed")),
    Pair("neumf-central", {}, "cornac", "NeuMF", {**NETWORK, "layers": [64, 48, DIM]}, NCF),
)


class Scores:
    """Users by the scores that they have; see `evaluation.cohort.Scorer`."""

    by_part = False
    device = torch.device("cpu")

    def __init__(self, split: Split, scores: np.ndarray) -> None:
        self.users, self._split, self._scores = np.arange(split.users), split, torch.from_numpy(scores)

    def counts(self) -> np.ndarray:
        """See `Scorer`."""
        return np.diff(np.asarray(self._split.train_offsets))

    def blocks(self) -> Sequence[Tensor]:
        """See `Scorer`."""
        return torch.arange(len(self.users)).split(256)

    def scores(self, who: Tensor, part: Part) -> tuple[Tensor, None]:
        """See `Scorer`."""
        return self._scores[who], None


def theirs(split: Split, python: str, pair: Pair, epochs: int, seed: int) -> tuple[dict[str, float], str]:
    """The other implementation's figures, and its version."""
    told = pair.told | {name: v for name, v in zip(pair.names, (DIM, epochs, seed), strict=True) if name}
    offsets = np.asarray(split.train_offsets)
    pairs = np.stack([np.repeat(np.arange(split.users), np.diff(offsets)), np.asarray(split.train_items)], 1)
    pairs = np.unique(pairs, axis=0)
    with tempfile.TemporaryDirectory() as room:
        train, out = Path(room) / "train.npz", Path(room) / "out.npz"
        np.savez(train, users=pairs[:, 0], items=pairs[:, 1], shape=[split.users, split.items])
        script = Path(__file__).with_name("their_scores.py")
        words = [python, str(script), str(train), str(out), pair.library, pair.theirs, json.dumps(told)]
        subprocess.run(words, check=True)
        with np.load(out) as found:
            scorer, version = Scores(split, found["scores"]), str(found["version"])
    return _figures(nested(means_of(evaluate_cohort(scorer, split), ""), "strict")["test"]), version


def ours(split: Split, data: str, pair: Pair, epochs: int, seed: int) -> dict[str, float]:
    """This project's figures of the last epoch."""
    tree = {
        "data": {"dataset": data},
        "method": {"name": pair.ours, **pair.settings},
        "model": {"dim": DIM},
        "run": {"rounds": epochs, "seed": seed, "threads": 1, "checkpoint_every": 10**6},
        "evaluation": {"controls": False, "local_only": False, "every": epochs},
    }
    with tempfile.TemporaryDirectory() as room:
        run = PreparedRun.create(RunDirectory(Path(room) / "run").create(), resolve({}, tree), split)
        carry_out_rounds(run, lambda _: None)
        return _figures(run.directory.read_metrics()[-1]["test"])


def has(python: str, library: str) -> bool:
    """Whether an interpreter has a library."""
    return subprocess.run([python, "-c", f"import {library}"], check=False, capture_output=True).returncode == 0


def _figures(test: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"{ways}/{m}": test[ways][m] for ways in ("full", "sampled99") for m in ("hr@10", "ndcg@10")}


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="an interpreter with one or more of the libraries")
    parser.add_argument("--data", default="filmtrust")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--theirs", type=int, nargs="+", help="epochs of the other implementation; default: as many")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    config = resolve({}, {"data": {"dataset": args.data}, "method": {"name": "mf-central"}})
    split = split_of(config, load_interactions(config))
    absent = {pair.library for pair in PAIRS if not has(args.python, pair.library)}
    print(f"torch {torch.__version__}, {args.epochs} epochs; not there: {', '.join(sorted(absent)) or 'nothing'}\n")
    print("| | HR@10 / NDCG@10, catalogue | HR@10 / NDCG@10, 99 negatives |\n|---|---|---|")
    for pair in PAIRS:
        if pair.library in absent:
            continue
        found = [ours(split, args.data, pair, args.epochs, seed) for seed in args.seeds]
        print(_row(f"`{pair.ours}`{', no layer' if pair.settings else ''}", found), flush=True)
        for epochs in args.theirs or [args.epochs]:
            told = [theirs(split, args.python, pair, epochs, seed) for seed in args.seeds]
            label = f"{pair.library} {told[0][1]}'s `{pair.theirs}`, {epochs} epochs"
            print(_row(label, [one for one, _ in told]), flush=True)


def _row(label: str, found: list[dict[str, float]]) -> str:
    """Means over seeds, and the standard deviation of NDCG where there are several."""
    cells = []
    for ways in ("full", "sampled99"):
        hr, ndcg = ([one[f"{ways}/{metric}@10"] for one in found] for metric in ("hr", "ndcg"))
        spread = f" ± {statistics.stdev(ndcg):.3f}" if len(found) > 1 else ""
        cells.append(f"{statistics.mean(hr):.3f} / {statistics.mean(ndcg):.3f}{spread}")
    return f"| {label} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
