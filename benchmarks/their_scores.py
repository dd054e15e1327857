"""Scores of all items for all users by models of other libraries, for `benchmarks.independent`.

    OTHER_PYTHON benchmarks/their_scores.py TRAIN.npz OUT.npz LIBRARY MODEL SETTINGS_AS_JSON

Run by an interpreter that has the library; it needs nothing of this project. TRAIN.npz holds `users`, `items` (codes of
pairs, each once) and `shape`. LIBRARY and MODEL are one of

    implicit         bpr, lmf                  https://benfred.github.io/implicit
    torch_geometric  LightGCN                  https://pytorch-geometric.readthedocs.io
    cornac           MLP, NeuMF                https://cornac.preferred.ai (its PyTorch back end)
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

import numpy as np


def of_implicit(
    users: np.ndarray, items: np.ndarray, shape: tuple[int, int], model: str, settings: dict[str, Any]
) -> np.ndarray:
    """Factors of users times factors of items."""
    from scipy.sparse import csr_matrix

    module, name = {
        "bpr": ("implicit.bpr", "BayesianPersonalizedRanking"),
        "lmf": ("implicit.lmf", "LogisticMatrixFactorization"),
    }[model]
    matrix = csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=shape)
    made = getattr(import_module(module), name)(num_threads=1, **settings)
    made.fit(matrix, show_progress=False)
    return np.asarray(made.user_factors) @ np.asarray(made.item_factors).T


def of_torch_geometric(
    users: np.ndarray, items: np.ndarray, shape: tuple[int, int], model: str, settings: dict[str, Any]
) -> np.ndarray:
    """Their model and loss; a step of Adam a batch of positives, each with one item that its user has not met."""
    import torch
    import torch_geometric
    from torch_geometric.nn.models import LightGCN

    torch_geometric.seed_everything(settings["seed"])
    torch.set_num_threads(1)
    who, what = torch.from_numpy(users), torch.from_numpy(items)
    met, graph = who * shape[1] + what, torch.stack([who, what + shape[0]])
    graph = torch.cat([graph, graph.flip(0)], 1)
    made = LightGCN(sum(shape), settings["dim"], settings["layers"])
    torch.nn.init.normal_(made.embedding.weight, std=0.1)
    adam = torch.optim.Adam(made.parameters(), settings["rate"])
    for _ in range(settings["epochs"]):
        for batch in torch.randperm(len(who)).split(settings["batch"]):
            user, other = who[batch], torch.randint(shape[1], (len(batch),))
            while (again := torch.isin(user * shape[1] + other, met)).any():
                other[again] = torch.randint(shape[1], (int(again.sum()),))
            edges = [torch.stack([user, item + shape[0]]) for item in (what[batch], other)]
            nodes = torch.cat([edges[0].flatten(), edges[1][1]])
            ranks = made(graph, torch.cat(edges, 1)).chunk(2)
            loss = made.recommendation_loss(*ranks, node_id=nodes, lambda_reg=settings["ridge"])
            adam.zero_grad()
            loss.backward()
            adam.step()
    with torch.no_grad():
        rows = made.get_embedding(graph)
    return (rows[: shape[0]] @ rows[shape[0] :].T).numpy()


def of_cornac(
    users: np.ndarray, items: np.ndarray, shape: tuple[int, int], model: str, settings: dict[str, Any]
) -> np.ndarray:
    """Their recommender; its own numbers of users and items are translated back. What it has not met scores least."""
    import torch
    from cornac import models
    from cornac.data import Dataset

    torch.set_num_threads(1)
    data = Dataset.from_uir([(int(u), int(i), 1.0) for u, i in zip(users, items, strict=True)], seed=settings["seed"])
    made = getattr(models, model)(backend="pytorch", verbose=False, **settings)
    made.fit(data)
    scores = np.full(shape, -np.inf, np.float32)
    columns = np.asarray(list(data.iid_map))
    for user, number in data.uid_map.items():
        scores[user, columns] = np.asarray(made.score(number))[: len(columns)]
    return scores


LIBRARIES = {"implicit": of_implicit, "torch_geometric": of_torch_geometric, "cornac": of_cornac}


def main() -> None:
    """Train, and write the scores and the library's version."""
    train, out, library, model, settings = sys.argv[1:]
    with np.load(train) as pairs:
        users, items = pairs["users"].astype(np.int64), pairs["items"].astype(np.int64)
        shape = (int(pairs["shape"][0]), int(pairs["shape"][1]))
    scores = LIBRARIES[library](users, items, shape, model, json.loads(settings))
    np.savez(out, scores=scores.astype(np.float32), version=str(import_module(library).__version__))


if __name__ == "__main__":
    main()
