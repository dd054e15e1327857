"""What several methods refuse."""

from __future__ import annotations

from fedem_flwr.config import Config
from fedem_flwr.errors import InputError


def refuse_fraction(config: Config) -> None:
    """For methods whose nodes upload sums over their users.

    Raises:
        InputError: only some of the participants' tables are to be aggregated.
    """
    if config.aggregate.fraction < 1:
        raise InputError(
            "aggregate.fraction chooses among tables of single clients, and this method uploads sums: "
            "set run.participants instead"
        )
