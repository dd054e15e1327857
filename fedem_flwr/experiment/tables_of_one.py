"""`diagnostics.tables`: one user's item table as it trained it, as it was received and as merged, in a plane.

It is FedEM's Figure 5. The three tables go through one t-SNE together, so that distances between them can be seen.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedem_flwr.config import Config
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.bottleneck import check_merged_tables
from fedem_flwr.protocol.shards import user_range
from fedem_flwr.randomness import keyed_permutation
from fedem_flwr.serving.served import ServedModel

TABLES = ("local", "global", "merged")
MOST = 2000  # items that are drawn: a larger catalogue is a sample beside the user's own
_PERPLEXITY = 30.0


def check_tables(config: Config) -> None:
    """Find out whether a user's tables can be looked at.

    Raises:
        InputError: they cannot.
    """
    if not config.diagnostics.tables:
        return
    check_merged_tables(config, "diagnostics.tables")
    if find_spec("sklearn") is None:
        raise InputError("diagnostics.tables needs scikit-learn: pip install 'fedem-flwr[tsne]'")


def tables_of_one(model: ServedModel) -> dict[str, Any] | None:
    """For diagnostics.json: where the rows of one user's tables lie in a plane; None where nothing was asked for.

    The user is drawn by the seed, of those who trained. ``points`` has (s, 2) coordinates for each of `TABLES`,
    ``mine`` whether the user trained on an item, ``apart`` the mean distance of an item's row in one table from that in
    another, in the tables themselves, and ``apart_mine`` the same over the user's items.
    """
    config, split = model.run.config, model.run.split
    if not config.diagnostics.tables:
        return None
    seed = config.run.seed
    trains = np.diff(split.train_offsets) > 0
    user = next(int(each) for each in keyed_permutation(split.users, seed, "tables/user") if trains[int(each)])
    own = np.unique(split.train_items[split.train_offsets[user] : split.train_offsets[user + 1]])
    order = keyed_permutation(split.items, seed, "tables/items").numpy()
    others = order[~np.isin(order, own)]
    items = np.sort(np.concatenate([own, others[: max(0, MOST - len(own))]]))
    found = _tables(model, user)
    if found is None:
        return {"user": str(split.user_ids[user]), "received": False}
    rows = {name: table[items] for name, table in found.items()}
    points = _plane(np.concatenate([rows[name] for name in TABLES]), seed).reshape(len(TABLES), len(items), 2)
    mine = np.isin(items, own)
    pairs = (("local", "global"), ("local", "merged"), ("merged", "global"))
    apart = {f"{a} {b}": np.linalg.norm(rows[a] - rows[b], axis=1) for a, b in pairs}
    return {
        "user": str(split.user_ids[user]),
        "received": True,
        "items": len(items),
        "catalogue": split.items,
        "mine": mine.tolist(),
        "points": {name: np.round(each, 2).tolist() for name, each in zip(TABLES, points, strict=True)},
        "apart": {pair: float(each.mean()) for pair, each in apart.items()},
        "apart_mine": {pair: float(each[mine].mean()) for pair, each in apart.items()},
    }


def _tables(model: ServedModel, user: int) -> dict[str, NDArray[np.float32]] | None:
    """(m, d) each, as the user's device has them; None where it has received none."""
    run = model.run
    node = next(n for n in range(run.nodes) if user < user_range(run.split.users, run.nodes, n)[1])
    client = model.client(node)
    arrays, settings = model.message(client.users)
    side = client.host.side(node, model.point.round)
    asked = client.asked(side, [arrays[name] for name in client.DOWNLOAD], settings)
    method = client.method
    downloads, cohort, name = method.downloads(side, asked), method.training_cohort(side), method.merged
    who = torch.from_numpy(np.flatnonzero(client.users == user)).to(cohort.device)
    if name not in downloads or not bool(downloads[name].received[who].all()):
        return None
    local, _ = cohort.seen(who, downloads, merge=False)
    merged, _ = cohort.seen(who, downloads)
    tables = {"local": local[name], "global": downloads[name].of(who), "merged": merged[name]}
    return {key: table[0].detach().float().cpu().numpy() for key, table in tables.items()}


def _plane(rows: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """t-SNE of rows (r, d): (r, 2)."""
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
    found: NDArray[np.float32] = TSNE(2, perplexity=perplexity, init="pca", random_state=seed % 2**32).fit_transform(
        rows
    )
    return found
