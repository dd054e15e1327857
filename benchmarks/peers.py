"""A round of one averaged item table with private user vectors: `fedmf-sr`, and the same task in pfl-research.

    python3.11 -m venv PEERS && PEERS/bin/pip install . pfl==0.6.0
    PEERS/bin/python -m benchmarks.peers --users 300 --items 1000 --rounds 5

The same task on both sides: matrix factorisation, d = 16, binary cross-entropy, five samples a positive, ten epochs of
batches of 256, Adam with rate .1 made anew for each user; every user trains its own vector, which stays, and the table,
whose change goes up whole and is averaged. Both run in this process, in turns, on equally many threads. What is not
equal is to the peer's advantage: its samples are drawn once before the first round and not shuffled, ours anew in each
round and for each epoch; and our round evaluates every user, writes a line, and goes through Flower's messages.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from datetime import date
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from fedem_flwr.bench.timing import CLOCK
from fedem_flwr.bench.whole import rounds_in_turns
from fedem_flwr.bench.worlds import config_of, shape
from fedem_flwr.protocol.split import Split
from fedem_flwr.runtime.inputs import load_interactions, split_of

_NEGATIVES = 4


class Factorisation(nn.Module):
    """The shared table; the vector of whoever trains at the moment is not one of its parameters, and stays private."""

    def __init__(self, split: Split, width: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.items = nn.Embedding.from_pretrained(torch.randn(split.items, width, generator=draw), freeze=False)
        self._users = [torch.randn(width, generator=draw).requires_grad_() for _ in range(split.users)]
        self._now = 0

    def become(self, user: int) -> None:
        """Let this user train next."""
        self._now = user

    def optimiser(self, shared: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """Of the table and of the user's own vector."""
        return torch.optim.Adam([*shared, self._users[self._now]], lr=lr)

    def loss(self, items: Tensor, labels: Tensor, **given: Any) -> Tensor:
        """Mean cross-entropy of a batch (b,)."""
        return bce(self.items(items) @ self._users[self._now], labels)

    def metrics(self, items: Tensor, labels: Tensor, **given: Any) -> dict[str, Any]:
        """Nothing is measured."""
        return {}


class OneRound(TrainingProcessCallback[PyTorchModel]):
    """Stops after each round; the algorithm goes on from there when it is run again."""

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """See pfl."""
        return True, Metrics()


class Peer:
    """Federated averaging by pfl-research over a split's users, with their samples drawn once."""

    def __init__(self, split: Split, epochs: int) -> None:
        self._net = Factorisation(split, 16)
        samples = list(_samples(split))

        def dataset(user: int) -> PyTorchTensorDataset:
            self._net.become(user)
            return PyTorchTensorDataset(samples[user])

        central = torch.optim.SGD(self._net.parameters(), lr=1.0)
        self._model = PyTorchModel(self._net, self._net.optimiser, central)
        sampler = get_user_sampler("minimize_reuse", list(range(split.users)))
        self._backend = SimulatedBackend(training_data=FederatedDataset(dataset, sampler), val_data=None)
        self._algorithm = FederatedAveraging()
        self._rounds = NNAlgorithmParams(
            central_num_iterations=10**6, evaluation_frequency=10**6, train_cohort_size=split.users, val_cohort_size=0
        )
        self._local = NNTrainHyperParams(local_num_epochs=epochs, local_learning_rate=0.1, local_batch_size=256)

    def round(self) -> None:
        """Every user trains, and the table is averaged."""
        self._algorithm.run(
            self._rounds,
            self._backend,
            self._model,
            self._local,
            callbacks=[OneRound()],
            send_metrics_to_platform=False,
        )

    def loss(self, split: Split) -> float:
        """Mean cross-entropy of all users' samples with the averaged table."""
        losses = []
        with torch.no_grad():
            for user, (items, labels) in enumerate(_samples(split)):
                self._net.become(user)
                losses.append(float(self._net.loss(items, labels)))
        return float(np.mean(losses))


def _samples(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """(s,) items and labels of each user: its training items, and four others for each, in a shuffled order."""
    draw = np.random.default_rng(0)
    for user in range(split.users):
        met = np.asarray(split.train_items[split.train_offsets[user] : split.train_offsets[user + 1]])
        others = np.setdiff1d(np.arange(split.items), met)
        items = np.concatenate([met, draw.choice(others, (len(met) * _NEGATIVES))])
        labels = np.concatenate([np.ones(len(met)), np.zeros(len(met) * _NEGATIVES)])
        order = draw.permutation(len(items))
        yield torch.from_numpy(items[order].astype(np.int64)), torch.from_numpy(labels[order].astype(np.float32))


def main() -> None:
    """Take turns, and print medians of rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("users", 300), ("items", 1000), ("rounds", 5), ("threads", 1), ("epochs", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = {"rounds": args.rounds + 1, "threads": args.threads}
    config = config_of("fedmf-sr", shape(args.users, args.items), {"run": run, "local": {"epochs": args.epochs}})
    split = split_of(config, load_interactions(config))
    peer = Peer(split, args.epochs)
    before = peer.loss(split)
    with tempfile.TemporaryDirectory() as folder:
        taken = rounds_in_turns(config, [peer.round], Path(folder) / "run", CLOCK)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("pfl", "torch", "flwr"))
    print(f"{date.today()}: {versions}; {split.users} users, {split.items} items, {args.threads} threads")
    for label, one in zip(("fedmf-sr", "pfl-research"), taken, strict=True):
        wall, cpu = zip(*one[1:], strict=True)
        print(f"{label:14s} {median(wall):8.3f} s a round, {median(cpu):8.3f} s of the processor: {len(wall)} rounds")
    ratios = [b[1] / a[1] for a, b in zip(taken[0][1:], taken[1][1:], strict=True)]
    print(f"ours is {median(ratios):.1f} times as fast, by the processor ({min(ratios):.1f} to {max(ratios):.1f})")
    print(f"the peer's loss went from {before:.3f} to {peer.loss(split):.3f}")


if __name__ == "__main__":
    main()
