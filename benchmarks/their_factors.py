"""Factors of users and items by implicit (https://benfred.github.io/implicit), for `benchmarks.independent`.

    OTHER_PYTHON benchmarks/their_factors.py TRAIN.npz OUT.npz MODEL SETTINGS_AS_JSON

Run by an interpreter that has implicit; it needs nothing of this project. TRAIN.npz holds `users`, `items` (codes of
pairs, each once) and `shape`; MODEL is a class of implicit's: `bpr`, `lmf` or `als`.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

import numpy as np
from scipy.sparse import csr_matrix

CLASSES = {
    "bpr": ("implicit.bpr", "BayesianPersonalizedRanking"),
    "lmf": ("implicit.lmf", "LogisticMatrixFactorization"),
    "als": ("implicit.als", "AlternatingLeastSquares"),
}


def main() -> None:
    """Train, and write the factors."""
    train, out, model, settings = sys.argv[1:]
    with np.load(train) as pairs:
        shape = tuple(int(side) for side in pairs["shape"])
        values = np.ones(len(pairs["users"]), np.float32)
        matrix = csr_matrix((values, (pairs["users"], pairs["items"])), shape=shape)
    module, name = CLASSES[model]
    made = getattr(import_module(module), name)(num_threads=1, **json.loads(settings))
    made.fit(matrix, show_progress=False)
    np.savez(out, users=np.asarray(made.user_factors), items=np.asarray(made.item_factors))


if __name__ == "__main__":
    main()
