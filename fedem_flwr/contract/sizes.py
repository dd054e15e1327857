"""How many bytes a method's arrays take, counted from what it declares, before any of them is there."""

from __future__ import annotations

from collections.abc import Mapping

from fedem_flwr.contract.adding import DENSE
from fedem_flwr.contract.fields import Field
from fedem_flwr.contract.method import Method
from fedem_flwr.engine.cohort import BLOCK_FLOATS
from fedem_flwr.engine.parts import Part, floats_of_a_row

_FLOAT = 4
_ROWS = 64  # of a user in a block, on average at the least
_KEPT = 500  # rows of a user who keeps those of its last round: of a hundred items, with four negatives each


def upload_bytes(method: Method, users: int) -> int:
    """The most that an upload of so many users takes, in any phase: rows under an index count as all of them.

    Of sums that are sparse (`contract.adding.DENSE`) nobody sends all: they count as the largest that are not.
    """
    return max((_bytes_of(phase.task.fields(), users) for phase in method.phases()), default=0)


def _bytes_of(fields: Mapping[str, Field], users: int) -> int:
    most = max((field.rows for field in fields.values() if field.counted), default=0)  # all of each user's
    rows = {name: min(fields[field.index].rows if field.index else field.rows, DENSE) for name, field in fields.items()}
    lengths = {name: users * most if field.counted else rows[name] or users for name, field in fields.items()}
    return sum(field.filled(lengths[name]).nbytes for name, field in fields.items())


def download_bytes(method: Method, users: int) -> int:
    """About what goes down to a node of so many users: shared parts, one table at the least, and one for each group."""
    shared = [part for part in method.parts().values() if not part.private]
    own = sum(_own_bytes(part, method.items) for part in shared if part.up == "each")
    common = sum(_part_bytes(part, method.items) for part in shared if part.up != "each" or part.touched)
    table = method.items * method.config.model.dim * _FLOAT
    return users * own + max(common, table) * (1 + method.config.group_tables.groups)


def node_bytes(method: Method, users: int) -> int:
    """About what a round of so many users takes of a node: kept parts, downloads, sums that go up, a block's batch.

    Users' own values go up as they are kept. Rows under an index are left out: there are as many as the node's own
    users have touched.
    """
    kept = [part for part in method.parts().values() if part.stays]
    state = sum(_own_bytes(part, method.items) * (1 if part.group else users) for part in kept)
    crossing = 0
    if method.federated:
        every = [phase.task.fields() for phase in method.phases()]
        fixed = [{n: f for n, f in fields.items() if not (f.index or f.rows or f.each)} for fields in every]
        crossing = download_bytes(method, users) + max((_bytes_of(fields, users) for fields in fixed), default=0)
    return state + crossing + _batch_bytes(method, users)


def _batch_bytes(method: Method, users: int) -> int:
    """Of the users of a block, each with a whole batch: order, rows and gradients. Where a batch is all samples: 64."""
    width = max(1, floats_of_a_row(method.parts()))
    together = min(users, max(1, BLOCK_FLOATS // (_ROWS * width)))
    return together * (method.local.batch_size or _ROWS) * (2 * width + 2) * _FLOAT


def _own_bytes(part: Part, items: int) -> int:
    """Of one user's: of touched rows, a usual number with their index."""
    return min(items, _KEPT) * (part.width + 1) * _FLOAT if part.touched else _part_bytes(part, items)


def _part_bytes(part: Part, items: int) -> int:
    return part.width * (items if part.axis == "item" else 1) * _FLOAT
