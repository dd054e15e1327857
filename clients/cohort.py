"""The client of FedEM and FedMF: a cohort of k >= 1 users behind Flower's NumPyClient.

Private: user embeddings p, own item tables Q, adapters Θ, merging weights ρ, interactions and evaluation targets. Up:
the tables of the uploaders, or the cohort's row sums, with counts and metric sums. Down: one table a user, or one for
all.

Everything of a round is one message: what was downloaded is evaluated on receipt (that is the previous round's
model), then the participants train.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from clients.base import Arrays, HostClient, Scalar
from fedem_flwr.engine.cohort import Cohort, TrainResult
from fedem_flwr.engine.merge import GlobalTables
from fedem_flwr.errors import FedemError
from fedem_flwr.evaluation.cohort import evaluate_cohort
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.nodes.host import as_tensor


class CohortClient(HostClient):
    """Hosts the users of one node.

    Args:
        host: where the node's data and state are.
        node: the node's number.

    Attributes:
        DOWNLOAD: names and order of the arrays that `fit` and `evaluate` take: `participants` (p,) users to train,
            `uploaders` (a,) those of them whose table goes up, `receivers` (r,) the users that `tables` (r, m, d) are
            for; one table without receivers is for everybody.
        UPLOADS: names of the arrays that `fit` returns, for each kind of upload that a strategy may ask for.
    """

    DOWNLOAD: ClassVar[tuple[str, ...]] = ("participants", "uploaders", "receivers", "tables")
    UPLOADS: ClassVar[dict[str, tuple[str, ...]]] = {
        "tables": ("users", "tables"),
        "average": ("table", "weight"),
        "rows": ("rows", "counts"),
    }

    def fit(self, parameters: Arrays, config: dict[str, Scalar]) -> tuple[Arrays, int, dict[str, Scalar]]:
        """Evaluate what was received, train the participants, keep the state, and return what the method uploads."""
        round_ = int(config["server-round"])
        participants, uploaders, *_ = parameters
        scorer = self.model(round_ - 1, parameters, config)
        cohort, downloaded = scorer.cohort, scorer.tables
        metrics: dict[str, Scalar] = {}
        if config.get("evaluate"):
            metrics |= evaluate_cohort(scorer, self.host.split)
        upload_kind = str(config["upload"])
        sums, who = upload_kind != "tables", self.positions(participants)
        if sums:
            metrics |= self.withheld(participants)
            who = as_tensor(self.asked(participants), self.host.device())
        elif len(uploaders) and not self.host.policy.single_users:
            raise FedemError(self.host.policy.refusal("the server"))
        result = cohort.train(who, downloaded, round_, sums=sums)
        upload = self.pack(upload_kind, cohort, result, uploaders)
        self.keep(round_, cohort, config)
        samples = int(result.samples.sum())
        metrics["loss-total"] = float((result.loss.double() * result.samples).sum())
        return upload, samples, metrics

    def model(self, round_: int, parameters: Arrays, config: Mapping[str, Scalar]) -> CohortScorer:
        """The cohort as it was after a round, and the tables it received.

        A client without state makes its users' embeddings here.
        """
        receivers, tables = parameters[2:]
        return CohortScorer(self.host.cohort(self.node, round_), self.downloaded(receivers, tables))

    def keep(self, round_: int, cohort: Cohort, config: dict[str, Scalar]) -> None:
        """Store the state after a round."""
        durable, keep_from = bool(config.get("persist")), int(config.get("keep-from", 0))
        self.host.keep(self.node, round_, cohort, durable=durable, keep_from=keep_from)

    def downloaded(self, receivers: np.ndarray, tables: np.ndarray) -> GlobalTables | None:
        """The tables of a message, with who they are for."""
        if not len(tables):
            return None
        device = self.host.device()
        if not len(receivers):
            slot = torch.zeros(len(self.users), dtype=torch.int64, device=device)
        else:
            slot = torch.full((len(self.users),), -1, dtype=torch.int64, device=device)
            slot[self.positions(receivers)] = torch.arange(len(receivers), device=device)
        return GlobalTables(as_tensor(tables, device), slot)

    def pack(self, upload: str, cohort: Cohort, result: TrainResult, uploaders: np.ndarray) -> Arrays:
        """The arrays that go up, in the order of `UPLOADS[upload]`."""
        table = cohort.state.table
        if upload == "tables":
            if table is None:
                raise ValueError("this method keeps no own tables to upload")
            everyone = len(uploaders) == len(self.users)
            chosen = table if everyone else table[self.positions(uploaders)]
            return [uploaders, chosen.cpu().numpy()]
        sums = result.sums
        if sums is None:
            raise ValueError(f"no sums were collected for the upload '{upload}'")
        if upload == "average":
            return [sums.mean_table().float().cpu().numpy(), sums.weight.long().reshape(-1).cpu().numpy()]
        return [sums.touched.float().cpu().numpy(), sums.count.int().cpu().numpy()]
