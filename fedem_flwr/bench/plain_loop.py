"""FedEM (elastic merging) as a plain per-client PyTorch loop: the yardstick of the speed figures.

One `fedem-released` round the way one writes it first: a module, a DataLoader and two Adam optimisers a
client, clients one after another. It imports nothing from `fedem_flwr`, so that it can disagree with it. Its
protocol is `paper`: its accuracy says how well it reproduces the literature, nothing about recommending.

A round, for every client: where it holds a server table G, its table Q becomes merge(Q, G); then up to ten
epochs, each batch an adapter step and a (p, Q) step through the merged rows; the unmerged Q goes up. The
server combines the tables of a random tenth of the clients, G_u = sum_v w_uv Q_v; only they hold a G next.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import backward
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

WIDTH = 16  # d
EPOCHS = 10  # E, at most
BATCH_SIZE = 256  # B
LEARNING_RATE = 0.1  # η of (p, Q) and β of the adapter
NEGATIVES = 4  # a positive
TOLERANCE = 1e-4  # relative change of the running mean loss at which a client stops
ALPHA = 0.9  # α, what similarity weighs beside the share of the data
AGGREGATED_SHARE = 0.1  # of the participants


class LeaveOneOut(NamedTuple):
    """The `paper` split: n users, m items; the lists have one entry a user."""

    n: int
    m: int
    train: list[list[int]]  # oldest first, duplicates kept
    unseen: list[list[int]]  # items the user never interacted with, in any split: where negatives come from
    test: list[int]
    negatives: list[list[int]]  # 99 a user, fewer only where the catalogue is too small


def load(
    path: Path, separator: str = ",", min_interactions: int = 10, users: int | None = None, seed: int = 0
) -> LeaveOneOut:
    """Read `user item rating [time]` rows and hold out each user's last two items (validation, test).

    Without times an item's order of first appearance stands in for them; equal times keep the file's order.
    `users` keeps the first so many users over the same catalogue.
    """
    with path.open(encoding="utf-8") as file:
        rows = [line.split(None if separator.isspace() else separator) for line in file if line.strip()]
    rows = [row for row in rows if float(row[2]) > 0]
    count = Counter(row[0] for row in rows)
    item_codes: dict[str, int] = {}
    dated: dict[str, list[tuple[float, int]]] = {}
    for row in rows:
        if count[row[0]] >= min_interactions:
            item = item_codes.setdefault(row[1], len(item_codes))
            moment = float(row[3]) if len(row) > 3 else float(item)
            dated.setdefault(row[0], []).append((moment, item))
    ordered = [[item for _, item in sorted(rows, key=lambda row: row[0])] for rows in dated.values()][:users]
    train = [items[:-2] for items in ordered]
    test = [items[-1] for items in ordered]
    unseen = [sorted(set(item_codes.values()).difference(items)) for items in ordered]
    draw = random.Random(seed)
    negatives = [draw.sample(pool, min(99, len(pool))) for pool in unseen]
    return LeaveOneOut(len(train), len(item_codes), train, unseen, test, negatives)


class Client(nn.Module):
    """What one user keeps on the device: the vector p (d,), the table Q (m, d) and the adapter."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.user = nn.Parameter(torch.randn(WIDTH))
        self.items = nn.Embedding(m, WIDTH)
        hidden = [nn.Linear(2 * WIDTH, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU()]
        self.adapter = nn.Sequential(*hidden, nn.Linear(8, 1), nn.Sigmoid())

    def merge(self, local: Tensor, server: Tensor) -> Tensor:
        """Eq. 9-10: move each row (b, d) of `local` towards `server` by the adapter's share (b, 1)."""
        gap = server - local
        share: Tensor = self.adapter(torch.cat([local, gap], dim=-1))
        return local + share * gap

    def forward(self, items: Tensor, server: Tensor | None) -> Tensor:
        """Logits (b,) of `items` (b,), through the merged rows where there is a server table (m, d)."""
        rows: Tensor = self.items(items)
        return (rows if server is None else self.merge(rows, server[items])) @ self.user

    def adapter_logits(self, items: Tensor, server: Tensor) -> Tensor:
        """The same logits (b,) with p and Q frozen: gradients reach the adapter only."""
        return self.merge(self.items(items).detach(), server[items]) @ self.user.detach()


@dataclass
class PlainFedEM:
    """All clients and the server of `fedem-released`, one client at a time; the lists are LeaveOneOut's."""

    n: int
    m: int
    train: list[list[int]]
    unseen: list[list[int]]
    test: list[int]
    negatives: list[list[int]]
    weights: Literal["cvxpy", "closed"] = "cvxpy"
    fetch: Literal["samples", "batches"] = "samples"  # what the loader asks the data for: the second is quicker
    seed: int = 0

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.shuffle = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.clients = [Client(self.m) for _ in range(self.n)]
        for client in self.clients[1:]:  # everyone starts from the same values
            client.load_state_dict(self.clients[0].state_dict())
        self.server_tables: dict[int, Tensor] = {}  # user -> G_u (m, d)

    def round(self) -> dict[str, float]:
        """Train every client, then aggregate. Returns the seconds spent in "train" and in "aggregate"."""
        start = time.perf_counter()
        for user in range(self.n):
            self._train_client(user)
        trained = time.perf_counter()
        self._aggregate()
        return {"train": trained - start, "aggregate": time.perf_counter() - trained}

    def _samples(self, user: int) -> TensorDataset:
        """The round's items and labels: each positive with its own distinct negatives."""
        positives, unseen = self.train[user], self.unseen[user]
        count = min(NEGATIVES, len(unseen))
        items = [item for positive in positives for item in (positive, *self.draw.sample(unseen, count))]
        labels = [1.0, *[0.0] * count] * len(positives)
        return TensorDataset(torch.tensor(items), torch.tensor(labels))

    def _loader(self, data: TensorDataset) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled batches of (items, labels), fetched sample by sample as is usual, or a batch at a time."""
        if self.fetch == "samples":
            return DataLoader(data, BATCH_SIZE, shuffle=True, generator=self.shuffle)
        order = RandomSampler(data, generator=self.shuffle)
        return DataLoader(data, sampler=BatchSampler(order, BATCH_SIZE, drop_last=False), batch_size=None)

    def _train_client(self, user: int) -> None:
        """Merge, then epochs of an adapter step and a (p, Q) step a batch, with an early stop."""
        client, server = self.clients[user], self.server_tables.get(user)
        loader = self._loader(self._samples(user))
        tables = torch.optim.Adam([client.user, client.items.weight], lr=LEARNING_RATE)
        adapter = torch.optim.Adam(client.adapter.parameters(), lr=LEARNING_RATE)
        if server is not None:
            with torch.no_grad():
                client.items.weight.copy_(client.merge(client.items.weight, server))
        loss_sum, visits, previous = 0.0, 0, math.inf
        for _ in range(EPOCHS):
            for items, labels in loader:
                if server is not None:
                    adapter.zero_grad()
                    backward(bce(client.adapter_logits(items, server), labels))
                    adapter.step()
                tables.zero_grad()
                loss = bce(client(items, server), labels)
                backward(loss)
                tables.step()
                loss_sum += loss.item() * len(items)
                visits += len(items)
            mean = loss_sum / visits  # over all epochs so far, as the released program has it
            if abs(mean - previous) < TOLERANCE * abs(previous + 1e-5):
                break
            previous = mean
        client.zero_grad()  # frees a table's worth of gradients

    @torch.no_grad()
    def _aggregate(self) -> None:
        """Give a random share of the clients, and nobody else, a new server table."""
        chosen = self.draw.sample(range(self.n), max(1, int(AGGREGATED_SHARE * self.n)))
        tables = torch.stack([self.clients[user].items.weight for user in chosen])  # (k, m, d)
        components = torch.stack([first_component(table) for table in tables])  # (k, m)
        distance = torch.cdist(components, components, compute_mode="donot_use_mm_for_euclid_dist")
        similarity = 1 / (1 + distance)  # (k, k)
        similarity[similarity > 0.9] = 1.0
        size = torch.tensor([float(len(self.train[user])) for user in chosen])  # samples / (1 + NEGATIVES)
        self.server_tables = {}
        for user, target in zip(chosen, size / size.sum() + ALPHA * similarity, strict=True):
            weights = solve_cvxpy(target) if self.weights == "cvxpy" else solve_closed(target)
            weights[weights < 1e-20] = 0.0
            self.server_tables[user] = torch.einsum("v,vmd->md", weights / weights.sum(), tables)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Test HR@10 and NDCG@10 among the evaluation negatives, merged with the newest server tables."""
        hits, gain = 0, 0.0
        for user, client in enumerate(self.clients):
            items = torch.tensor([self.test[user], *self.negatives[user]])
            scores = client(items, self.server_tables.get(user))
            rank = 1 + int((~(scores[1:] < scores[0])).sum())  # a tie ranks the negative first
            if rank <= 10 and bool(scores[0].isfinite()):
                hits += 1
                gain += 1 / math.log2(rank + 1)
        return hits / self.n, gain / self.n


def first_component(table: Tensor) -> Tensor:
    """Scores (m,) of a table (m, d) on its first principal component; the sign is the solver's."""
    centred = table - table.mean(dim=0)
    return torch.mv(centred, torch.linalg.svd(centred, full_matrices=False)[2][0])


def solve_cvxpy(target: Tensor) -> Tensor:
    """argmin_w |w|² - 2 w·target on the simplex, (k,), as one quadratic programme."""
    cp: Any = import_module("cvxpy")  # slow to import, and not needed with closed weights
    weights = cp.Variable(len(target))
    cost = cp.sum_squares(weights) - 2 * target.double().numpy() @ weights
    cp.Problem(cp.Minimize(cost), [cp.sum(weights) == 1, weights >= 0]).solve()
    return torch.as_tensor(weights.value, dtype=target.dtype)


def solve_closed(target: Tensor) -> Tensor:
    """The same minimiser (k,) as the Euclidean projection of `target` on the simplex: sort and threshold."""
    ordered = target.sort(descending=True).values
    threshold = (ordered.cumsum(0) - 1) / torch.arange(1, len(target) + 1)
    return (target - threshold[(ordered > threshold).sum() - 1]).clamp(min=0)
