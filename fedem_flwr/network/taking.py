"""Takes the task of a run at a SuperLink, and of no other: whoever reaches the Control API may start runs there."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress

from flwr.common.constant import Status
from flwr.proto.control_pb2 import ListRunsRequest, StopRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.runtime import RuntimeHttpClient

from fedem_flwr.errors import FedemError, InputError

TAKE = 40.0  # seconds until the task must have been handed to us; one that another server has left is free after 30
LEFT = 20  # tasks of other runs that are left to whoever started them; the rest are a flood, and are ended
_LOOK = 0.2  # seconds

log = logging.getLogger("fedem.server")


def own_task(
    client: RuntimeHttpClient, control: ControlHttpClient, run_id: int, place: str, stopped: threading.Event
) -> str:
    """Take the task of a run, past those of other runs that wait before it; returns its token.

    A task that is taken and not begun waits again after Flower's 30 s, and another server that looks for it finds it.

    Args:
        client: holds the superexec secret. control: of the same SuperLink. place: the SuperLink's, for messages.
        stopped: ends all waiting.

    Raises:
        InputError: somebody else has the task. FedemError: the run was stopped, or the SuperLink fails.
    """
    request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    deadline, others, before = time.monotonic() + TAKE, 0, 0
    while not stopped.is_set():
        found = client.AcquireTask(request)
        if found.token and found.task.run_id == run_id:
            return str(found.token)
        if found.token:
            others += 1
            _pass(control, found.task.run_id, others)
        else:
            stopped.wait(_LOOK)
        if time.monotonic() > deadline:
            status = control.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status.status
            if status == Status.FINISHED:
                raise FedemError(f"run {run_id} was stopped at the SuperLink at {place} before it began")
            if status != Status.PENDING or others == before:
                control.StopRun(StopRunRequest(run_id=run_id))
                raise InputError(
                    f"the SuperLink at {place} handed its server's task to somebody else: start it with --isolation "
                    f"process, and one server a SuperLink at a time; {others} tasks were of runs of others, and left"
                )
            deadline, before = time.monotonic() + TAKE, others  # those that wait before ours are finitely many
    raise FedemError("stopped before the run had begun")


def _pass(control: ControlHttpClient, run_id: int, others: int) -> None:
    """Do nothing for another's run, or end it where they are very many."""
    if others > LEFT:
        with suppress(FedemError):  # it may have ended meanwhile
            control.StopRun(StopRunRequest(run_id=run_id))
    if others in (1, LEFT + 1):
        what = "left to it" if others == 1 else f"they are more than {LEFT}: those that wait before ours are ended"
        log.warning("somebody else has started run %s at the SuperLink: %s", run_id, what)
