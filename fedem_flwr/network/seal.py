"""Signed messages: a node takes its server's alone and each of them once, a server its nodes' and nobody else's.

Every message between them carries a seal: a few fields in JSON, and a signature over them. It names the records of the
content by the hashes that Flower names objects by, so large arrays are hashed once where they are sent, and once where
they come (see `parcels.Incoming`); it travels in the record that `condense` makes, as an object of its own would cost
the SuperLink four requests more. A server's seal says whom the message is for, its number, and the node's challenge
for the run; a node's says which message it answers.

The challenge makes messages new: no node takes what was signed before it made the challenge up. A server that does not
know it yet hears it in the refusal, and sends the message again. Within a run the numbers grow.

Where there are no keys (`--insecure`) nodes sign with pairs of their own, which binds answers to whoever was asked as
far as the SuperLink tells keys rightly; they believe any server.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedem_flwr.errors import FedemError
from fedem_flwr.network.condense import PIECE
from fedem_flwr.network.heard import CHALLENGE, Heard
from fedem_flwr.network.trust import NodeKeys

SEAL: Final = "fedem-seal"  # name of the record where nothing is condensed
_SAID, _SIGNATURE = "said", "signature"  # in it, or in the condensed one
REFUSED: Final = 2  # code of a node's word that it does not do what it was asked: Flower's, for errors of clients
FORGED, UNHEARD = 1003, 1004  # codes: of a reply that its node has not signed; of one that tells the node's challenge
_TO_NODE, _TO_SERVER = b"fedem-flwr message 1\n", b"fedem-flwr reply 1\n"  # no signature serves for the other
Fields = dict[str, Any]
_CURVE: Final = ec.ECDSA(hashes.SHA256())


class Forged(FedemError):
    """A reply that is not the node's word."""


class NotTaken(FedemError):
    """A message that a node does not carry out.

    Attributes:
        code: of the error that it answers with; None: with silence, as to what came before.
    """

    def __init__(self, reason: str, code: int | None = REFUSED) -> None:
        super().__init__(reason)
        self.code = code

    def reply(self, message: Message) -> Message:
        """What the node answers."""
        return Message(Error(REFUSED if self.code is None else self.code, str(self)), reply_to=message)


@dataclass
class NodeSeals:
    """A node's end.

    Attributes:
        keys: the node's. server_key: whose messages it takes; None: anybody's.
        heard: what came so far.
    """

    keys: NodeKeys
    server_key: Ed25519PublicKey | None = None
    heard: Heard = field(default_factory=Heard)

    def opened(self, message: Message, ids: Mapping[str, str]) -> Message:
        """The message without its seal.

        Args:
            ids: of the records of its content, by name.

        Raises:
            NotTaken: the known server has not signed it, not for this node, or not lately.
        """
        if self.server_key is not None:
            self._check(message, ids, self.server_key)
        return _bare(message, message.metadata)

    def _check(self, message: Message, ids: Mapping[str, str], server_key: Ed25519PublicKey) -> None:
        said = _signed(message, _TO_NODE, server_key.verify)
        if said is None:
            raise NotTaken("a message that the known server has not signed: refused")
        told = message.metadata
        meant: Fields = {"run": str(told.run_id), "to": fingerprint(public_key_to_bytes(self.keys[1]))}
        meant |= {"kind": told.message_type, "round": told.group_id, "content": _hashes(message.content, ids)}
        for name, value in meant.items():
            if said.get(name) != value:
                raise NotTaken(f"a signed message with another {name} than it was signed for: refused")
        if said.get("challenge") != self.heard.challenge(told.run_id):
            raise NotTaken("this node's challenge for the run is another", UNHEARD)
        if not self.heard.take(told.run_id, said.get("number")):
            raise NotTaken("a message that came before, or after a later one: left out", None)

    def sealed(self, reply: Message) -> Message:
        """An answer with the node's seal; an error is told in it."""
        told = reply.metadata
        error = [int(reply.error.code), str(reply.error.reason)] if reply.has_error() else None
        content = RecordDict() if reply.has_error() else reply.content
        fields: Fields = {"run": str(told.run_id), "message": told.reply_to_message_id}
        fields |= {
            "challenge": self.heard.challenge(told.run_id),
            "error": error,
            "content": _hashes(content, record_ids(content)),
        }
        _put(content, fields, _TO_SERVER, lambda data: self.keys[0].sign(data, _CURVE))
        return make_message(told, content)


@dataclass
class ServerSeals:
    """A server's end, of one run at a SuperLink.

    Attributes:
        signing_key: None where nodes believe anybody.
    """

    signing_key: Ed25519PrivateKey | None = None
    _keys: dict[int, tuple[bytes, ec.EllipticCurvePublicKey]] = field(default_factory=dict)  # by the nodes' numbers
    _challenges: dict[int, str] = field(default_factory=dict)
    _asked: dict[str, int] = field(default_factory=dict)  # who, by the messages' ids
    _number: int = 0

    def meet(self, node: int, public_key: bytes) -> bool:
        """Note a node's key, the first time for good; returns whether this is that key."""
        if node not in self._keys:
            try:
                key = serialization.load_pem_public_key(public_key)
            except (ValueError, UnsupportedAlgorithm):
                return False
            if not isinstance(key, ec.EllipticCurvePublicKey):
                return False
            self._keys[node] = public_key, key
        return self._keys[node][0] == public_key

    def sealed(self, message: Message) -> Message:
        """A message to a node, with the server's seal."""
        self._number += 1
        told = message.metadata
        key, _ = self._keys.get(told.dst_node_id, (b"", None))
        content = message.content if message.has_content() else RecordDict()
        fields: Fields = {
            "run": str(told.run_id),
            "to": fingerprint(key),
            "kind": told.message_type,
            "round": told.group_id,
            "challenge": self._challenges.get(told.dst_node_id, ""),
            "number": self._number,
            "content": _hashes(content, record_ids(content)),
            "salt": secrets.token_hex(16),  # nobody else can guess the message's id
        }
        _put(content, fields, _TO_NODE, self.signing_key.sign if self.signing_key else lambda _: b"")
        return make_message(told, content)

    def sent(self, message_id: str, node: int) -> None:
        """Note whom a message is for."""
        self._asked[message_id] = node

    def forget_others(self, message_ids: set[str]) -> None:
        """Expect answers to these messages only."""
        self._asked = {one: node for one, node in self._asked.items() if one in message_ids}

    def opened(self, outside: Metadata, reply: Message, ids: Mapping[str, str]) -> Message:
        """A reply without its seal, under its outside; an error where the node, or the SuperLink, tells of one.

        Args:
            outside: as the SuperLink tells it. ids: of the records of the reply's content, by name.

        Raises:
            Forged: whom the message was for has not signed this as the answer to it.
        """
        if reply.has_error() and outside.src_node_id == SUPERLINK_NODE_ID:
            return make_message(outside, None, reply.error)  # only the SuperLink can say so, in nobody else's name
        node = self._asked.get(outside.reply_to_message_id)
        if node is None or node not in self._keys or outside.src_node_id != node:
            raise Forged("a reply of somebody who was not asked: refused")
        key = self._keys[node][1]
        said = _signed(reply, _TO_SERVER, lambda signature, data: key.verify(signature, data, _CURVE))
        if said is None:
            raise Forged("a reply that its node has not signed: refused")
        meant: Fields = {"run": str(outside.run_id), "message": outside.reply_to_message_id}
        meant |= {"content": _hashes(reply.content, ids)}
        for name, value in meant.items():
            if said.get(name) != value:
                raise Forged(f"a signed reply with another {name} than it was signed for: refused")
        challenge, error = said.get("challenge"), said.get("error")
        if not isinstance(challenge, str) or len(challenge) != CHALLENGE:
            raise Forged("a signed reply without a challenge: refused")
        self._challenges[node] = challenge
        if error is None:
            return _bare(reply, outside)
        if not isinstance(error, list) or [type(part) for part in error] != [int, str]:
            raise Forged("a signed reply with an error that is none: refused")
        return make_message(outside, None, Error(*error))


def fingerprint(public_key: bytes) -> str:
    """What a seal calls a node's key, in the form that a SuperLink knows keys by."""
    return hashlib.sha256(public_key).hexdigest()


def record_ids(content: RecordDict) -> dict[str, str]:
    """The hashes of a content's records, by name, but for the one that carries the seal."""
    return {name: record.object_id for name, record in content.items() if name != _carrier(content)}


def _carrier(content: RecordDict) -> str:
    return PIECE if PIECE in content.config_records else SEAL


def _hashes(content: RecordDict, ids: Mapping[str, str]) -> dict[str, str]:
    """What a seal says of a content: the hashes of its records, and of what stands beside the seal."""
    carrier = _carrier(content)
    found = {name: object_id for name, object_id in ids.items() if name != carrier}
    if carrier == PIECE:
        found[PIECE] = hashlib.sha256(cast(bytes, content.config_records[PIECE][PIECE])).hexdigest()
    return found


def _bare(message: Message, told: Metadata) -> Message:
    """The message without its seal."""
    if not message.has_content():
        return make_message(told, None, message.error)
    content = RecordDict({name: one for name, one in message.content.items() if name != _carrier(message.content)})
    if PIECE in message.content.config_records:
        content[PIECE] = ConfigRecord({PIECE: message.content.config_records[PIECE].get(PIECE, b"")})
    return make_message(told, content)


def _put(content: RecordDict, fields: Fields, kind: bytes, sign: Callable[[bytes], bytes]) -> None:
    """Seal a content."""
    carrier = _carrier(content)
    if carrier == SEAL:
        content[SEAL] = ConfigRecord()
    said = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    content.config_records[carrier][_SAID] = said
    content.config_records[carrier][_SIGNATURE] = sign(kind + said.encode())


def _signed(message: Message, kind: bytes, verify: Callable[[bytes, bytes], None]) -> Fields | None:
    """What a message's seal says; None if it has none, or the signature is not that of the right key."""
    carrier = _carrier(message.content) if message.has_content() else SEAL
    record = message.content.config_records.get(carrier) if message.has_content() else None
    if record is None or (carrier == PIECE and not isinstance(record.get(PIECE), bytes)):
        return None
    said, signature = record.get(_SAID), record.get(_SIGNATURE)
    if not isinstance(said, str) or not isinstance(signature, bytes):
        return None
    try:
        verify(signature, kind + said.encode())
        fields = json.loads(said)
    except (InvalidSignature, ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None
