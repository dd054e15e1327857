"""The client of fedials with order: sums for the table, for a map between items, and gradients of an encoder.

Private: interactions, sequences, embeddings and evaluation targets. It keeps nothing between rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from clients.base import Arrays, Scalar
from clients.fedials import FedialsClient
from fedem_flwr.engine.order import OrderScores, OrderSums, order_sums
from fedem_flwr.engine.transitions import MapScores, pair_sums
from fedem_flwr.evaluation.scorers import Component
from fedem_flwr.evaluation.settings_grid import mixture_sums
from fedem_flwr.methods.settings import order_task


class FedialsOrderClient(FedialsClient):
    """Hosts the users of one node."""

    DOWNLOAD: ClassVar[tuple[str, ...]] = (
        *FedialsClient.DOWNLOAD,
        "rows",
        "weights",
        "map-items",
        "map-values",
    )
    UPLOADS: ClassVar[dict[str, tuple[str, ...]]] = {
        **FedialsClient.UPLOADS,
        "pairs": ("pairs", "pair-gram", "pair-cross"),
        "order": ("items", "rows", "weights", "positions"),
    }

    def train(self, parameters: Arrays, config: Mapping[str, Scalar]) -> tuple[Arrays, int, float | None]:
        """The sums of the phase."""
        history, who = self.host.history(self.node), self.asked(parameters[0])
        if config["upload"] == "pairs":
            pairs = pair_sums(history, who)
            return [pairs.pairs, pairs.gram.astype(np.float32), pairs.cross.astype(np.float32)], len(who), None
        if config["upload"] == "order":
            rows, weights = (self.tensor(array) for array in parameters[3:5])
            task = order_task(self.host.config, self.host.secret(self.node))
            sums = order_sums(task, weights, rows, history, who, int(config["server-round"]))
            return self.pack_order(sums), sums.positions, sums.loss
        return super().train(parameters, config)

    def tune(self, parameters: Arrays, config: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Also the grid of the components' weights."""
        sums = super().tune(parameters, config) if config["tune"] else {}
        if config["mix"]:
            mixtures = [(1.0, row["order_weight"], row["map_weight"]) for row in self.host.config.order.grid()]
            scorer = self.model(0, parameters, config)
            sums |= mixture_sums(scorer, [row[: len(scorer.components)] for row in mixtures], self.host.split, "order")
        return sums

    def components(self, parameters: Arrays, config: Mapping[str, Scalar]) -> list[tuple[float, Component]]:
        """Also what the encoder and the map say comes next, once there are any."""
        rows, weights, items, values = (self.tensor(array) for array in parameters[3:])
        found = super().components(parameters, config)
        if len(weights):
            order = OrderScores(order_task(self.host.config).encoder, weights, rows)
            found.append((float(config["order_weight"]), order))
            if len(items):
                found.append((float(config["map_weight"]), MapScores(items, values)))
        return found

    def pack_order(self, sums: OrderSums) -> Arrays:
        """The touched rows, the weights' gradient and the number of positions."""
        touched = sums.touched.nonzero().squeeze(1)
        arrays = [array.cpu().numpy() for array in (touched.int(), sums.rows[touched].float(), sums.weights.float())]
        return [*arrays, np.array([sums.positions])]
