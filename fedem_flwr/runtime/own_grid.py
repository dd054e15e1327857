"""What our grids share: the parts of Flower's interface that nothing here depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

if TYPE_CHECKING:
    from flwr.supercore.run import Run


class OwnGrid(Grid):
    """A grid that starts and ends with our own run loop."""

    def __init__(self) -> None:
        self._run: Run | None = None

    def set_run(self, run: Run) -> None:
        """Accept a Flower run description; nothing here depends on it."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run description set before."""
        if self._run is None:
            raise RuntimeError("a run here has no Flower run description")
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a node, as ``Message(...)`` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)
