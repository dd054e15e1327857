"""What a node lets go up: its own word, that no server and no method changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedem_flwr.errors import InputError

SMALLEST_SUM = 2  # of a networked node that was not told otherwise
_FLAG = "--allow-individual-uploads"


@dataclass(frozen=True)
class NodePolicy:
    """Held by the node and asked at every answer.

    Attributes:
        smallest_sum: the fewest users whose sum goes up.
        single_users: whether uploads of single users go up, for methods that need them (such as each user's own table).

    Raises:
        InputError: there is no such policy.
    """

    smallest_sum: int = 1
    single_users: bool = True

    def __post_init__(self) -> None:
        if self.smallest_sum < 1:
            raise InputError(f"--smallest-sum {self.smallest_sum}: a sum is over 1 user at least")
        if self.smallest_sum == 1 and not self.single_users:
            raise InputError(f"--smallest-sum 1 lets single users' sums go up: it takes {_FLAG}")

    @classmethod
    def simulation(cls) -> NodePolicy:
        """One user is a node there: everything goes."""
        return cls(1, True)

    @classmethod
    def networked(cls, smallest_sum: int | None = None, *, single_users: bool = False) -> NodePolicy:
        """Of a node on a network.

        Args:
            smallest_sum: None: 2, or 1 where single users' uploads are allowed.
            single_users: whether these are.
        """
        least = (1 if single_users else SMALLEST_SUM) if smallest_sum is None else smallest_sum
        return cls(least, single_users)

    @property
    def words(self) -> str:
        """What goes up, for logs."""
        single = "and uploads of single users" if self.single_users else "no uploads of single users"
        return f"sends sums over {self.smallest_sum} users or more, {single}"

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
