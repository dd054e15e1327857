"""Keys, and messages that cross as objects under the names of their hashes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute

from fedem_flwr.network.parcels import Incoming, tree_of
from fedem_flwr.network.trust import NodeKeys


def new_keys() -> NodeKeys:
    """A node's."""
    key = ec.generate_private_key(ec.SECP384R1())
    return key, key.public_key()


def packed(message: Message) -> tuple[Any, dict[str, bytes]]:
    """A message's tree, and its objects' bytes."""
    with no_object_id_recompute():
        _, tree = tree_of(message)
        return tree, {name: part.deflate() for name, part in get_all_nested_objects(message).items()}


def crossed(message: Message) -> tuple[Message, Mapping[str, str]]:
    """What comes of a message at the other end: itself, and the hashes of its content's records."""
    tree, objects = packed(message)
    incoming = Incoming(tree, 1 << 26)
    assert incoming.fetch(objects.__getitem__)
    return incoming.message(), incoming.records
