"""The client of every method: it hosts a cohort, and answers by what the method says of the phase.

Everything of a round is one message: what was downloaded is evaluated on receipt (that is the previous round's
model), then the participants train. Only what the phase's fields declare goes up,
and only if the node's policy lets it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from clients.base import Arrays, HostClient, Scalar
from fedem_flwr.contract import Asked, Device, Phase
from fedem_flwr.contract.adding import contributed, nothing
from fedem_flwr.engine.history import IntArray
from fedem_flwr.errors import FedemError
from fedem_flwr.evaluation.cohort import Scorer, evaluate_cohort
from fedem_flwr.evaluation.scorers import Component
from fedem_flwr.nodes.host import NodeHost


class MethodClient(HostClient):
    """Carries out the run's method for the users of one node."""

    def __init__(self, host: NodeHost, node: int) -> None:
        super().__init__(host, node)
        self.method = host.method
        single = any(field.each for phase in self.method.phases() for field in phase.task.fields().values())
        receivers = ("receivers",) if single else ()
        self.DOWNLOAD = ("participants", "uploaders", *receivers, *self.method.sends())
        self.UPLOADS = {phase.name: tuple(phase.task.fields()) for phase in self.method.phases()}

    def fit(self, parameters: Arrays, config: dict[str, Scalar]) -> tuple[Arrays, int, dict[str, Scalar]]:
        """Evaluate what was received, train the participants, keep the state, and return what the method uploads."""
        round_ = int(config["server-round"])
        side = self.host.side(self.node, round_ - 1)
        asked = self.asked(side, parameters, config)
        phase = self.method.schedule.named(asked.phase)
        metrics: dict[str, Scalar] = {}
        if config.get("evaluate"):
            metrics |= evaluate_cohort(self.method.scorer(side, asked), self.host.split)
        for tuning in self.method.tunings():
            if config.get(f"tune-{tuning.name}"):
                metrics |= tuning.measure(side, asked, self.host.split)
        permitted = self.permitted(phase, asked)
        if len(permitted) < len(asked.who):
            metrics["withheld"] = float(len(asked.who))
        if len(permitted):
            upload = contributed(phase.task, side, asked.of(permitted), self.method.stages())
        else:
            upload = nothing(phase.task)
        if upload.loss is not None:
            metrics["loss-total"] = upload.loss
        if not self.method.stateless:
            durable, keep_from = bool(config.get("persist")), int(config.get("keep-from", 0))
            self.host.keep(self.node, round_, side.cohort, durable=durable, keep_from=keep_from)
        return [upload.arrays[name] for name in self.UPLOADS[phase.name]], upload.samples, metrics

    def permitted(self, phase: Phase, asked: Asked) -> IntArray:
        """(k',) positions of the participants that may train for this upload: none where their sum is held back.

        Raises:
            FedemError: single users' own values are asked for, and this node does not send them.
        """
        policy, fields = self.host.policy, phase.task.fields()
        each = {name for name, field in fields.items() if field.each}
        if each and len(asked.uploaders) and not policy.single_users:
            raise FedemError(policy.refusal("the server"))
        if policy.smallest_sum == 1 or each == fields.keys():
            return asked.who
        counts = self.host.side(self.node, 0).history.counts()[asked.who]
        enough = policy.sends(self.users[asked.who[counts >= phase.task.least_items]])  # others add nothing to hide in
        return asked.who if enough else asked.who[:0]

    def model(self, round_: int, parameters: Arrays, config: Mapping[str, Scalar]) -> Scorer:
        """What this node's users score with after a round."""
        side = self.host.side(self.node, round_)
        return self.method.scorer(side, self.asked(side, parameters, config))

    def components(self, parameters: Arrays, config: Mapping[str, Scalar]) -> list[tuple[float, Component]]:
        """What scores any history; see `contract.method.Method.components`."""
        return self.method.components(self.asked(self.host.side(self.node, 0), parameters, config))

    def asked(self, side: Device, parameters: Arrays, config: Mapping[str, Scalar]) -> Asked:
        """The message, as a method sees it."""
        arrays = dict(zip(self.DOWNLOAD, parameters, strict=True))
        who, uploaders = side.positions(arrays.pop("participants")), np.asarray(arrays.pop("uploaders"))
        round_, phase = int(config.get("server-round", 0)), str(config.get("upload", ""))
        return Asked(round_, phase, who, uploaders, arrays, config, side.place, side.has_times)
