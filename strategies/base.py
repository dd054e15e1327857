"""What every strategy here shares: who takes part, messages, validation of uploads, metric sums, checkpoints.

A method's own file says which arrays go down (`download`), which go up (`expected`, `receive`) and what the server
makes of them (`combine`). Users, not nodes, are what is sampled, so draws do not depend on how users are spread over
nodes; results do where a method withholds a single user's sums.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedem_flwr.config import Config
from fedem_flwr.contract.fields import Named
from fedem_flwr.contract.method import norm_limit
from fedem_flwr.evaluation.cohort import add_sums
from fedem_flwr.messages.admission import TooFewContributions
from fedem_flwr.messages.uploads import Spec, problem_of, upload_of
from fedem_flwr.randomness import keyed_permutation

from .declared import SPENT, Declared
from .sending import SendsDown

_NOBODY, _ONE = np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64)


class CohortStrategy(SendsDown, Strategy):
    """Base of the strategies whose clients are `clients.base.HostClient`s.

    Args:
        config: the run's configuration. items: m, the catalogue's size.

    Attributes:
        upload: the kind of upload asked for.
        stateless: whether the clients keep nothing between rounds, so that the run keeps and serves its best round.
        on_receipt: that the clients evaluate a round's model on receipt, in answer to the next round's message.
        NEEDS_TIMES: whether the method learns from the order of interactions.
        METRICS: names of sums that clients of one's own send, beside losses and evaluations; others are dropped.
    """

    upload: str
    stateless: bool = False
    on_receipt: bool = True
    NEEDS_TIMES: bool = False
    METRICS: frozenset[str] = frozenset()

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self._trains: dict[int, np.ndarray] = {}  # who trains on each node this round
        self._asked: dict[int, np.ndarray] = {}  # whose uploads each node was asked for
        self._drawn: tuple[int, np.ndarray] = (0, _NOBODY)  # a round and its participants
        self._missed = 0
        self._all_asked = True  # whether every node was asked in the current round

    # What a method fills in.

    @abstractmethod
    def expected(self, uploaders: np.ndarray) -> dict[str, Spec]:
        """What a valid upload holds: name to shape and type."""

    def typical(self) -> dict[str, Spec]:
        """What an average user's own upload holds, for the count of bytes; open lengths are to be filled in."""
        return self.expected(_ONE)

    @abstractmethod
    def receive(self, arrays: Named, participants: np.ndarray, trained: int) -> None:
        """Take in a node's valid upload: of `trained` users at the most; `participants` have used up what was sent."""

    def remaining(self, arrays: Named, uploaders: np.ndarray, spent: int) -> np.ndarray:
        """The uploaders whose own values go up where a node says that `spent` users may send no more."""
        return uploaders

    @abstractmethod
    def combine(self, round_: int) -> None:
        """Make of the round's uploads what the next `download` sends."""

    @abstractmethod
    def state(self) -> Named:
        """What a checkpoint must hold to go on from here; arrays that are never written to again."""

    @abstractmethod
    def restore(self, state: Named) -> None:
        """Go on from a checkpoint's `state`."""

    def settings(self, round_: int) -> dict[str, int | float | str]:
        """Numbers and words that the round's messages carry to the clients, beside the run's configuration."""
        return {}

    def diagnostics(self) -> dict[str, object]:
        """What goes into diagnostics.json of the server's side; `weights` is drawn in the report."""
        return {}

    def declared(self, settings: Mapping[str, object], *, groups: int | None = None) -> Declared:
        """Which metrics may come in answer to messages with these settings.

        Args:
            groups: of an evaluation alone: how many groups of users it is asked of.
        """
        evaluated = groups is not None or bool(settings.get("evaluate"))
        sample = bool(settings.get("everybody")) and self.sampled > 0
        return Declared.of(evaluated=evaluated, groups=groups or 0, own=self.METRICS, sample=sample).on(
            self.config.parts
        )

    def caveats(self) -> list[str]:
        """What a reader of the results must be warned of: sums that are a single user's, metrics that were dropped."""
        if self.config.run.users_per_node != 1 or any(field.each for field in self.expected(_ONE).values()):
            return self.dropped()
        return [
            *self.dropped(),
            "run.users_per_node = 1: what a node sends is a single user's, and shows its embedding up to sign, or its "
            "rows. Networked nodes refuse that unless they were started with --allow-individual-uploads.",
        ]

    # Who takes part.

    def draw(self, purpose: str, users: np.ndarray, fraction: float, round_: int) -> np.ndarray:
        """A random share of users, ascending; at least one. Keyed by the run's seed and the round."""
        if fraction >= 1:
            return users
        order = keyed_permutation(len(users), self.config.run.seed, purpose, round_).numpy()
        count = math.floor(fraction * len(users) + 1e-9)  # 0.29 * 100 is a little less than 29
        return np.sort(users[order[: max(1, count)]])

    def participants(self, round_: int) -> np.ndarray:
        """(p,) the users that train in a round, ascending."""
        return self.drawn(round_, self.config.run.participants)

    def drawn(self, round_: int, share: float) -> np.ndarray:
        """(p,) a share of the users that have data, for a round; drawn once a round."""
        if self._drawn[0] != round_:
            self._drawn = round_, self.draw("participants", np.flatnonzero(self.samples), share, round_)
        return self._drawn[1]

    def uploaders(self, round_: int) -> np.ndarray:
        """(a,) the participants whose uploads are aggregated, ascending."""
        return self.draw("uploaders", self.participants(round_), self.config.aggregate.fraction, round_)

    # Flower's protocol.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterator[Message]:
        """One message a node: what it downloads, who trains and who uploads; without participants it only evaluates.

        Nodes of a stateless method that would do neither get none.
        """
        participants, uploaders = self.participants(server_round), self.uploaders(server_round)
        settings = ConfigRecord({**config, **self.settings(server_round)})
        settings["server-round"], settings["upload"] = server_round, self.upload
        settings["evaluate"] = int(server_round > 1 and self.evaluates(server_round - 1))
        settings["everybody"] = int(self.everybody(server_round - 1))
        self._declared = self.declared(settings)
        self._trains = {node: _hosted(participants, users) for node, users in self._nodes.items()}
        self._asked = {node: _hosted(uploaders, users) for node, users in self._nodes.items()}
        scored = self.scored(server_round)
        scores = {node: len(_hosted(scored, users)) > 0 for node, users in self._nodes.items()}
        wanted = {node: scores[node] or not self.stateless or len(self._trains[node]) > 0 for node in scores}
        self._open = {node: users for node, users in self._nodes.items() if wanted[node]}
        busy, self._all_asked = list(self._open), len(self._open) == len(self._nodes)
        told = {flag: self.told(settings, scores=flag) for flag in {*scores.values()}}
        self._missed = 0  # participants on nodes that are away
        for name, users in self._away.items():
            missed = len(_hosted(participants, users))
            if missed or not self.stateless or len(_hosted(scored, users)):
                self._missed += missed
                self.fail(server_round, name, "is not connected")
        return (
            self.message("train", n, told[scores[n]], (self._trains[n], self._asked[n]), scores=scores[n]) for n in busy
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every upload, leave out and name what is not right, and combine the rest.

        Returns:
            No arrays (they are the strategy's own), and the sums of the round and of the previous round's model.

        Raises:
            TooFewContributions: fewer participants than the quorum contributed, or none of those that were to train,
                be they on nodes that failed or that are away. A contribution that a node withholds is one. Nothing was
                made of what came: the round can be repeated.
        """
        sums: dict[str, float] = {}
        contributions = contributed = 0
        asked = sum(map(len, self._trains.values())) + self._missed
        needed = math.ceil(self.config.run.quorum * asked - 1e-9)
        held: list[tuple[Named, np.ndarray, int]] = []  # until the quorum is there
        for reply, metrics in self._valid(server_round, replies):
            node, arrays = reply.metadata.src_node_id, upload_of(reply, self.config.messages.bits_up)
            trains, withheld, spent = self._trains[node], *(int(metrics.get(n, 0)) for n in ("withheld", SPENT))
            trained = max(0, len(trains) - withheld - spent)
            problem = "holds no readable arrays" if arrays is None else self._fault(arrays, node, withheld, spent)
            if not problem and not trained and any(array.any() for array in (arrays or {}).values()):
                problem = "withholds its users' sum, and sends one"
            if arrays is None or problem:
                self.fail(server_round, node, problem)
                continue
            add_sums(sums, metrics)
            contributions, contributed = contributions + 1, contributed + len(trains)
            if len(trains):
                held.append((arrays, _NOBODY if withheld else trains, trained))
            if contributed >= needed:
                for upload in held:
                    self.receive(*upload)
                held.clear()
        reason = f": {self.failures[-1].reason}" if self.failures else ""
        if not contributions and (self._all_asked or self._away):
            raise TooFewContributions(f"no usable reply in round {server_round}{reason}")
        if asked and not contributed:  # whoever only evaluated has nothing to combine
            raise TooFewContributions(f"no participant of {asked:,} contributed to round {server_round}{reason}")
        if contributed < needed:
            raise TooFewContributions(
                f"{contributed:,} of {asked:,} participants contributed to round {server_round}, fewer than the "
                f"quorum of {needed:,}{reason}"
            )
        sums = self.settled(server_round, sums)
        self.combine(server_round)
        return None, MetricRecord(dict(sums))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterator[Message]:
        """Nothing but after the last round: a round's model is evaluated on receipt, with the next round's training."""
        self._open = dict(self._nodes) if config.get("final") else {}
        settings = ConfigRecord({**config, **self.settings(server_round), "server-round": server_round})
        edges = str(config.get("group-edges", ""))
        self._declared = self.declared(settings, groups=len(edges.split(",")) + 1 if edges else 0)
        return (self.message("evaluate", node, settings, (_NOBODY, _NOBODY)) for node in list(self._open))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Add up the metric sums; nodes that failed are named and left out."""
        sums: dict[str, float] = {}
        for _, metrics in self._valid(server_round, replies):
            add_sums(sums, metrics)
        return MetricRecord(dict(sums)) if sums else None

    def summary(self) -> None:
        """Nothing to log: the run's directory holds the configuration."""

    def _fault(self, arrays: Named, node: int, withheld: int, spent: int) -> str:
        if len(self._trains[node]):  # beside a sum that is held back goes nobody's own
            asked = _NOBODY if withheld else self.remaining(arrays, self._asked[node], spent)
            return self.problem(arrays, asked, self._trains[node])
        return "holds an upload that nobody asked for" if any(array.size for array in arrays.values()) else ""

    def problem(self, arrays: Named, uploaders: np.ndarray, participants: np.ndarray) -> str:
        """What is wrong with an upload; empty if nothing is.

        Args:
            uploaders: whose own values it may hold. participants: whom its sums are over.
        """
        return problem_of(arrays, self.expected(uploaders), norm_limit(self.config, self.items))


def _hosted(chosen: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Those of the `chosen` (ascending) that are among a node's `users` (consecutive)."""
    first, end = np.searchsorted(chosen, [users[0], users[-1] + 1])
    return chosen[first:end]
