"""Traffic between nodes and a SuperLink, as a relay saw it, put together to messages again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PullObjectResponse, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from benchmarks.relay import Relay
from fedem_flwr.messages.wire import unpack_arrays
from fedem_flwr.network.condense import expand
from fedem_flwr.network.seal import SEAL


def http_bodies(stream: bytes) -> Iterator[tuple[str, bytes]]:
    """First line and body of every HTTP/1.1 message of a stream, in order."""
    while b"\r\n\r\n" in stream:
        head, _, rest = stream.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                size, _, rest = rest.partition(b"\r\n")
                length = int(size, 16)
                body, rest = body + rest[:length], rest[length + 2 :]
                if not length:
                    break
        else:
            length = int(headers.get("content-length", 0))
            body, rest = rest[:length], rest[length:]
        yield first, body
        stream = rest


@dataclass
class Crossed:
    """One direction: the messages and all that they hold."""

    trees: list[ObjectTree] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)

    def messages(self) -> Iterator[Message]:
        """Every message, inflated, without its seal, and expanded."""
        for tree in self.trees:
            contents = {part.object_id: self.objects[part.object_id] for part in iterate_object_tree(tree)}
            message = inflate_object_from_contents(tree.object_id, contents)
            assert isinstance(message, Message)
            if message.has_content() and SEAL in message.content:  # of an error; else `expand` leaves the seal behind
                del message.content[SEAL]
            yield expand(message)

    def arrays(self) -> list[tuple[str, np.ndarray]]:
        """All arrays of all messages, with their names."""
        return [
            (name, np.array(values))
            for message in self.messages()
            if message.has_content()
            for record in message.content.array_records.values()
            for name, values in unpack_arrays(record).items()
        ]

    def records(self, kind: str) -> list[dict[str, Any]]:
        """All records of a kind: `metric_records` or `config_records`."""
        return [
            dict(record)
            for message in self.messages()
            if message.has_content()
            for record in getattr(message.content, kind).values()
        ]


def crossed(relay: Relay) -> tuple[Crossed, Crossed]:
    """What went up to the SuperLink, and what came down from it."""
    up, down = Crossed(), Crossed()
    for to, back in relay.passed:
        for (first, request), (_, response) in zip(http_bodies(bytes(to)), http_bodies(bytes(back)), strict=False):
            path = first.split()[1]
            if path.endswith("/push-messages"):
                up.trees += PushMessagesRequest.FromString(request).message_object_trees
            elif path.endswith("/push-object"):
                pushed = PushObjectRequest.FromString(request)
                up.objects[pushed.object_id] = pushed.object_content
            elif path.endswith("/pull-messages"):
                down.trees += PullMessagesResponse.FromString(response).message_object_trees
            elif path.endswith("/pull-object"):
                pulled = PullObjectResponse.FromString(response)
                if pulled.object_available:
                    down.objects[PullObjectRequest.FromString(request).object_id] = pulled.object_content
    return up, down
