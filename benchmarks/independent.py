"""Our centralised controls beside an independent implementation, on the same split, by the same ranks.

    FEDEM_DATA=... python -m benchmarks.independent --python OTHER_PYTHON --data filmtrust --epochs 20 --theirs 20 100

OTHER_PYTHON is an interpreter with implicit (`pip install implicit` in an environment of its own). Compared are pairs
of the same model: matrix factorisation with BPR (`lightgcn-central` with no layer; implicit's `bpr`), and with the
cross-entropy (`mf-central`; implicit's `lmf`). Losses and widths are the same; optimisers, and how many negatives a
positive gets, are each program's own, and both sides take the last epoch: nothing is chosen on any held-out item.
implicit's epochs are cheaper and go less far (one negative a positive, plain SGD): `--theirs` gives it more of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

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
THEIRS = {
    "lightgcn-central": ("bpr", {"learning_rate": 0.05, "regularization": 0.01, "verify_negative_samples": True}),
    "mf-central": ("lmf", {"learning_rate": 0.5, "regularization": 0.6}),
}
OURS = {"lightgcn-central": {"options": {"layers": 0}}, "mf-central": {}}


class Factors:
    """Users scored by factors; see `evaluation.cohort.Scorer`."""

    by_part = False
    device = torch.device("cpu")

    def __init__(self, split: Split, users: np.ndarray, items: np.ndarray) -> None:
        self.users, self._split = np.arange(split.users), split
        self._user, self._items = torch.from_numpy(users).float(), torch.from_numpy(items).float()

    def counts(self) -> np.ndarray:
        """See `Scorer`."""
        return np.diff(np.asarray(self._split.train_offsets))

    def blocks(self) -> Sequence[Tensor]:
        """See `Scorer`."""
        return torch.arange(len(self.users)).split(256)

    def scores(self, who: Tensor, part: Part) -> tuple[Tensor, None]:
        """See `Scorer`."""
        return self._user[who] @ self._items.T, None


def theirs(split: Split, python: str, name: str, epochs: int, seed: int) -> dict[str, float]:
    """The other implementation's figures."""
    model, settings = THEIRS[name]
    told = {**settings, "factors": DIM, "iterations": epochs, "random_state": seed}
    offsets = np.asarray(split.train_offsets)
    pairs = np.stack([np.repeat(np.arange(split.users), np.diff(offsets)), np.asarray(split.train_items)], 1)
    pairs = np.unique(pairs, axis=0)
    with tempfile.TemporaryDirectory() as room:
        train, out = Path(room) / "train.npz", Path(room) / "out.npz"
        np.savez(train, users=pairs[:, 0], items=pairs[:, 1], shape=[split.users, split.items])
        script = Path(__file__).with_name("their_factors.py")
        subprocess.run([python, str(script), str(train), str(out), model, json.dumps(told)], check=True)
        with np.load(out) as found:
            scorer = Factors(split, found["users"], found["items"])
    return _figures(nested(means_of(evaluate_cohort(scorer, split), ""), "strict")["test"])


def ours(split: Split, data: str, name: str, epochs: int, seed: int) -> dict[str, float]:
    """This project's figures of the last epoch."""
    tree = {
        "data": {"dataset": data},
        "method": {"name": name, **OURS[name]},
        "model": {"dim": DIM},
        "run": {"rounds": epochs, "seed": seed, "threads": 1, "checkpoint_every": 10**6},
        "evaluation": {"controls": False, "local_only": False, "every": epochs},
    }
    with tempfile.TemporaryDirectory() as room:
        run = PreparedRun.create(RunDirectory(Path(room) / "run").create(), resolve({}, tree), split)
        carry_out_rounds(run, lambda _: None)
        return _figures(run.directory.read_metrics()[-1]["test"])


def _figures(test: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"{ways}/{m}": test[ways][m] for ways in ("full", "sampled99") for m in ("hr@10", "ndcg@10")}


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="an interpreter with implicit")
    parser.add_argument("--data", default="filmtrust")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--theirs", type=int, nargs="+", help="epochs of the other implementation; default: as many")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    versions = "import implicit, numpy, scipy; print(implicit.__version__, numpy.__version__, scipy.__version__)"
    said = subprocess.run([args.python, "-c", versions], check=True, capture_output=True, text=True).stdout.split()
    print(f"implicit {said[0]} (numpy {said[1]}, scipy {said[2]}), torch {torch.__version__}, {args.epochs} epochs\n")
    config = resolve({}, {"data": {"dataset": args.data}, "method": {"name": "mf-central"}})
    split = split_of(config, load_interactions(config))
    print("| | HR@10 / NDCG@10, catalogue | HR@10 / NDCG@10, 99 negatives |\n|---|---|---|")
    for name, (model, _) in THEIRS.items():
        found = [ours(split, args.data, name, args.epochs, seed) for seed in args.seeds]
        print(_row(f"`{name}`{', no layer' if OURS[name] else ''}", found), flush=True)
        for epochs in args.theirs or [args.epochs]:
            found = [theirs(split, args.python, name, epochs, seed) for seed in args.seeds]
            print(_row(f"implicit's `{model}`, {epochs} epochs", found), flush=True)


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
