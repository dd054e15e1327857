"""Our ClientApp on Flower's own SuperNode, which starts a process for every message, with the code that the run brings.

    --node-config 'shard="/data/node-0" state="/state" server-key="/keys/server.pub" node-key="/keys/node-0.key"
        superlink="superlink.example.org:8000" ca="/keys/ca.crt"'

A SuperNode carries out the app bundle of any run of which it gets a message. So it holds a shard only where nobody but
the federation's own may start runs: `/v1/control` of the SuperLink must not answer here without an account, which is
looked for at every introduction. `open-control=true` does without, say on one's own machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedem_flwr.errors import FedemError
from fedem_flwr.files import own_folder
from fedem_flwr.network.condense import condense, expand
from fedem_flwr.network.control import is_open
from fedem_flwr.network.heard import Heard
from fedem_flwr.network.link import Address, Unreachable, read_secret
from fedem_flwr.network.seal import NodeSeals, NotTaken, record_ids
from fedem_flwr.network.trust import load_node_key, load_server_key
from fedem_flwr.runtime.inprocess import answer

HEARD_FILE = "heard.json"  # in the state folder


class SuperNodeApp(ClientApp):
    """Messages of our server come condensed and signed, and so go the replies to them; others are passed on.

    Args:
        inner: answers.
        largest: bytes of the largest message that a node takes.
    """

    def __init__(self, inner: ClientApp, largest: Callable[[Context], int]) -> None:
        super().__init__()
        self._inner, self._largest = inner, largest

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        if "shard" not in context.node_config:
            return self._inner(message, context)
        seals = _seals(context)
        try:
            told = seals.opened(message, record_ids(message.content) if message.has_content() else {})
            plain = expand(told, self._largest(context))
        except NotTaken as error:
            return seals.sealed(error.reply(message))
        return seals.sealed(condense(answer(_Guarded(self._inner), plain, context, context.run_config)))


class _Guarded(ClientApp):
    """Meets no run where anybody may start one."""

    def __init__(self, inner: ClientApp) -> None:
        super().__init__()
        self._inner = inner

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type.partition(".")[0] == "query":  # "query.default" goes the same way
            _require_closed_control(context)
        return self._inner(message, context)


def _seals(context: Context) -> NodeSeals:
    told = context.node_config
    if "node-key" not in told:
        raise FedemError("the node cannot sign its answers: name its private key, --node-config 'node-key=\"...\"'")
    key = load_node_key(Path(str(told["node-key"])))
    server = load_server_key(Path(str(told["server-key"]))) if told.get("server-key") else None
    state = own_folder(Path(str(told["state"])), "the state folder")
    return NodeSeals((key, key.public_key()), server, Heard(state / HEARD_FILE))


def _require_closed_control(context: Context) -> None:
    """Refuse to work where a stranger could have code of his own carried out.

    Raises:
        FedemError: the Control API answers here without an account, or nobody has said where it is.
    """
    told = context.node_config
    if told.get("open-control") is True:
        return
    if "superlink" not in told:
        raise FedemError(
            "a SuperNode carries out the code of any run: tell it where the SuperLink is, for a look whether strangers "
            'can start one (--node-config \'superlink="HOST:PORT" ca="ca.crt"\'), or use `fedem deploy node`'
        )
    address = Address(str(told["superlink"]), read_secret(Path(str(told["ca"]))) if told.get("ca") else None)
    try:
        found = is_open(address)
    except Unreachable as error:
        raise FedemError(f"cannot look whether strangers can start runs: {error}") from None
    if found:
        raise FedemError(
            f"/v1/control of {address.place} answers without an account, and a SuperNode carries out the code of "
            "whoever starts a run there: close it, use `fedem deploy node`, or say open-control=true"
        )
