"""What a node lets go up: its own word, that no server and no method changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedem_flwr.config import Config
from fedem_flwr.contract.finding import uploads_single_users
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.nodes.bounds import DEFAULT, Bound
from fedem_flwr.privacy.accounting import allowed

SMALLEST_SUM = 2  # of a networked node that was not told otherwise
_FLAG = "--allow-individual-uploads"


@dataclass(frozen=True)
class NodePolicy:
    """Held by the node and asked at every answer.

    Attributes:
        smallest_sum: the fewest users whose sum goes up: of uploads, of losses, of metrics.
        single_users: whether uploads of single users go up, for methods that need them (such as each user's own table).
        methods: names of the methods and clients that the node carries out; none: of all that are installed.
        bounds: of the run's configuration.
        secret_draws: whether runs must let the node key its users' draws.
        coarse_counts: whether a user's number of interactions goes up as the largest of its fixed group's.
        fixed_groups: whether sums are of whole fixed groups of users only; see `fixed_groups`.

    Raises:
        InputError: there is no such policy.
    """

    smallest_sum: int = 1
    single_users: bool = True
    methods: tuple[str, ...] = ()
    bounds: tuple[Bound, ...] = ()
    secret_draws: bool = False
    coarse_counts: bool = False
    fixed_groups: bool = False

    def __post_init__(self) -> None:
        if self.smallest_sum < 1:
            raise InputError(f"--smallest-sum {self.smallest_sum}: a sum is over 1 user at least")
        if self.smallest_sum == 1 and not self.single_users:
            raise InputError(f"--smallest-sum 1 lets single users' sums go up: it takes {_FLAG}")
        if self.smallest_sum == 1 and (self.coarse_counts or self.fixed_groups):
            raise InputError("--coarse-counts and --fixed-groups are about groups of users: --smallest-sum 2 or more")

    @classmethod
    def simulation(cls) -> NodePolicy:
        """One user is a node there: everything goes."""
        return cls(1, True)

    @classmethod
    def networked(
        cls,
        smallest_sum: int | None = None,
        *,
        single_users: bool = False,
        methods: Sequence[str] = (),
        bounds: Sequence[str] = (),
        secret_draws: bool = False,
        coarse_counts: bool = False,
        fixed_groups: bool = False,
    ) -> NodePolicy:
        """Of a node on a network.

        Args:
            smallest_sum: None: 2, or 1 where single users' uploads are allowed.
            single_users: whether these are.
            bounds: as `Bound.parse` takes them. One negative a positive is the least that is trained with, unless that
                is bounded here, or single users' uploads are allowed.

        Raises:
            InputError: there is no such policy.
        """
        least = (1 if single_users else SMALLEST_SUM) if smallest_sum is None else smallest_sum
        told = tuple(map(Bound.parse, bounds))
        named = {bound.setting for bound in told}
        given = () if single_users else tuple(bound for bound in DEFAULT if bound.setting not in named)
        return cls(least, single_users, tuple(methods), (*given, *told), secret_draws, coarse_counts, fixed_groups)

    @property
    def words(self) -> str:
        """What goes up, for logs."""
        single = "and uploads of single users" if self.single_users else "no uploads of single users"
        limits = [f"carries out {', '.join(self.methods)}"] if self.methods else []
        limits += [f"{bound.setting} {bound.words}" for bound in self.bounds]
        flags = {"draws": self.secret_draws, "coarse counts": self.coarse_counts, "fixed groups": self.fixed_groups}
        limits += [{"draws": "secret draws only"}.get(name, name) for name, on in flags.items() if on]
        return "; ".join([f"sends sums over {self.smallest_sum} users or more, {single}", *limits])

    def sends(self, participants: np.ndarray) -> bool:
        """Whether a sum over these users goes up; one who is named twice is one. A sum over nobody does not."""
        if self.smallest_sum == 1:
            return len(participants) > 0
        return len(np.unique(participants)) >= self.smallest_sum

    def refusal(self, what: str) -> str:
        """Why an upload of single users is refused, in a line.

        Args:
            what: asks for them, such as "the run".
        """
        return f"{what} asks for single users' uploads: this node refuses; start it with {_FLAG} to let them go"

    def check(self, config: Config) -> None:
        """Find out whether this node takes part in a run; asked when it is introduced, and at every start.

        Raises:
            FedemError: it does not, with the reason in a line; or what `ldp.epsilon_limit` allows is not known here.
        """
        name = config.method.name
        if not self.single_users and uploads_single_users(config):
            raise FedemError(self.refusal(f"the run (method '{name}')"))
        named = (config.method.strategy, config.method.client)  # the run's name says nothing
        if self.methods and (other := next((one for one in named if one and one not in self.methods), "")):
            raise FedemError(f"the run carries out '{other}': this node carries out {', '.join(self.methods)}")
        if self.secret_draws and not config.privacy.secret_draws:
            raise FedemError("the run has privacy.secret_draws = false: this node has --require-secret-draws")
        if config.ldp.seeded:
            raise FedemError(
                "the run has ldp.seeded = true: its noise is known to the server; networked nodes refuse it"
            )
        if config.ldp.noise == "none" and (of := [b.setting for b in self.bounds if b.setting.startswith("ldp.")]):
            raise FedemError(
                f"the run has ldp.noise = 'none': this node bounds {of[0]}, and so takes part with noise only"
            )
        allowed(config.ldp)
        for bound in self.bounds:
            if objection := bound.objection(config):
                raise FedemError(f"the run has {objection}")


def fixed_groups(counts: np.ndarray, least: int) -> np.ndarray:
    """(k,) which group each user belongs to: of similar activity, and of `least` users with data or more each.

    They are a function of the data alone, so sums over whole groups tell nothing of fewer users, however they are added
    and subtracted. Users with the same number of interactions share groups with each other where they are enough.
    Where all are too few there is one group.

    Args:
        counts: (k,) interactions of each user.
    """
    order, group = np.argsort(counts, kind="stable"), np.zeros(len(counts), np.int64)
    current = inside = 0  # the group that is filled, and how many users with data it has
    for alike in np.split(order, np.flatnonzero(np.diff(counts[order])) + 1):
        for place, user in enumerate(alike):
            rest = len(alike) - place  # of the same activity, this one included
            if inside >= least and (place == 0 or rest >= least):
                current, inside = current + 1, 0
            group[user] = current
            inside += int(counts[user] > 0)
    if inside < least and current:
        group[group == current] = current - 1
    return group
