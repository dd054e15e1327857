"""The client of every method: it hosts a cohort, and answers by what the method says of the phase.

Everything of a round is one message: what was downloaded is evaluated on receipt (that is the previous round's
model), then the participants train. Only what the phase's fields declare goes up,
and only if the node's policy lets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from fedem_flwr.contract import Asked, Device, Phase, Wanted
from fedem_flwr.contract.adding import contributed, nothing
from fedem_flwr.contract.serving import scorer_of
from fedem_flwr.engine.history import IntArray
from fedem_flwr.errors import FedemError
from fedem_flwr.evaluation.cohort import Scorer
from fedem_flwr.evaluation.scorers import Component
from fedem_flwr.nodes.host import NodeHost

from .base import METRICS_WITHHELD, Arrays, HostClient, Scalar


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
            self._observed(side, asked, round_ - 1)
            metrics |= self.of_all(lambda: self.evaluated(scorer_of(self.method, side, asked), config))
        for tuning in self.method.tunings():
            if rows := str(config.get(f"tune-{tuning.name}", "")):
                wanted = Wanted([int(row) for row in rows.split(",")], self.host.sampled(self.node))
                metrics |= self.of_all(partial(tuning.measure, side, asked, self.host.split, wanted))
        stages, single = self.method.stages(), all(field.each for field in phase.task.fields().values())
        ledger = self.host.ledger(self.node)
        spent = ledger.exhausted(side.positions(asked.uploaders) if single else asked.who)
        if len(spent):
            metrics["spent"] = float(len(spent))
            alone, asked = self._apart(asked, spent, single=single)
            if not single and not self.method.stateless:  # what they keep goes on being trained, and nothing of it goes
                contributed(phase.task, side, alone, stages)
        permitted, withheld = self.permitted(phase, asked)
        if withheld:
            metrics["withheld"] = float(withheld)
        if len(permitted):
            upload = contributed(phase.task, side, asked.of(permitted), stages)
            if ledger.ldp.noise != "none":
                ledger.count(side.positions(asked.uploaders) if single else permitted)
        else:
            upload = nothing(phase.task)
        if upload.loss is not None and not self._tells_loss(phase, permitted):
            upload = replace(upload, samples=0, loss=None)
            metrics[METRICS_WITHHELD] = max(float(len(permitted)), float(metrics.get(METRICS_WITHHELD, 0.0)))
        if upload.uncompiled:
            metrics["uncompiled"] = float(upload.uncompiled)
        if upload.loss is not None:
            metrics["loss-total"] = upload.loss
        if not self.method.stateless:
            self.keep(round_, side.cohort, config)
        return [upload.arrays[name] for name in self.UPLOADS[phase.name]], upload.samples, metrics

    def _apart(self, asked: Asked, spent: IntArray, *, single: bool) -> tuple[Asked, Asked]:
        """The message as if it asked the users at positions `spent` alone, and as if it asked nothing of theirs to go.

        Args:
            single: whether users' own values alone go up: then all participants train as ever.
        """
        theirs = np.isin(asked.uploaders, self.users[spent])
        rest = asked.who if single else np.setdiff1d(asked.who, spent)
        return (
            replace(asked, who=spent, uploaders=asked.uploaders[theirs]),
            replace(asked, who=rest, uploaders=asked.uploaders[~theirs]),
        )

    def permitted(self, phase: Phase, asked: Asked) -> tuple[IntArray, int]:
        """(k',) positions of the participants that may train for this upload, and of how many the sum is held back.

        Raises:
            FedemError: single users' own values are asked for, and this node does not send them.
        """
        policy, fields = self.host.policy, phase.task.fields()
        each = {name for name, field in fields.items() if field.each}
        if each and len(asked.uploaders) and not policy.single_users:
            raise FedemError(policy.refusal("the server"))
        if policy.smallest_sum == 1 or each == fields.keys():
            return asked.who, 0
        kind, adding = phase.task.least_items, self._adding(phase, asked.who)
        whole = self.host.whole(self.node, kind, adding)
        if (each and len(whole) < len(adding)) or not self.host.admits(self.node, kind, whole):
            return asked.who[:0], len(adding)
        return (asked.who if len(whole) == len(adding) else whole), len(adding) - len(whole)

    def _adding(self, phase: Phase, who: IntArray) -> IntArray:
        """Those who have what a phase's sums are made of: others add nothing to hide in."""
        found: IntArray = who[self.host.items_met(self.node)[who] >= phase.task.least_items]
        return found

    def _tells_loss(self, phase: Phase, who: IntArray) -> bool:
        """Whether the summed loss of some users goes up: where each user's own values do, it still is a sum."""
        if not all(field.each for field in phase.task.fields().values()):
            return True  # of those whose other sums go up with it
        return self.host.admits(self.node, phase.task.least_items, self._adding(phase, who))

    def model(self, round_: int, parameters: Arrays, config: Mapping[str, Scalar]) -> Scorer:
        """What this node's users score with after a round."""
        side = self.host.side(self.node, round_)
        asked = self.asked(side, parameters, config)
        self._observed(side, asked, round_)
        return scorer_of(self.method, side, asked)

    def _observed(self, side: Device, asked: Asked, round_: int) -> None:
        if self.host.observe is not None:
            self.host.observe(self.method, side, asked, round_)

    def components(self, parameters: Arrays, config: Mapping[str, Scalar]) -> list[tuple[float, Component]]:
        """What scores any history; see `contract.method.Method.components`."""
        return self.method.components(self.asked(self.host.side(self.node, 0), parameters, config))

    def asked(self, side: Device, parameters: Arrays, config: Mapping[str, Scalar]) -> Asked:
        """The message, as a method sees it."""
        arrays = dict(zip(self.DOWNLOAD, parameters, strict=True))
        who, uploaders = side.positions(arrays.pop("participants")), np.asarray(arrays.pop("uploaders"))
        if not np.isin(uploaders, self.users[who]).all():
            raise FedemError("the server asks for uploads of users who do not take part: refused")
        if len(arrays.get("receivers", ())) and not self.host.policy.single_users:
            raise FedemError("the server sends tables to single users, whose metrics would tell them apart: refused")
        round_, phase = int(config.get("server-round", 0)), str(config.get("upload", ""))
        return Asked(round_, phase, who, uploaders, arrays, config, side.place, side.has_times)
