"""A node as a process of its own: it looks for messages, answers them, and lives on between rounds.

What is imported once stays warm: an answer starts no process. Looking for messages costs the SuperLink a request, so a
node looks often while a run is lively and seldom when nothing has come for long.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import close_to_others, own_folder, unlinked_private, write_atomically
from fedem_flwr.network.control import is_open
from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.link import Address, Refused, Unreachable
from fedem_flwr.network.node_link import NodeLink
from fedem_flwr.network.seal import UNHEARD, NotTaken
from fedem_flwr.network.trust import NodeKeys, own_keys
from fedem_flwr.network.watch import Ended, Watch
from fedem_flwr.nodes.answering import build_client_app
from fedem_flwr.runtime.inprocess import answer

SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # seconds between looks for messages
_PATIENCE = 0.05  # of the time since the last message: how long the next pause is
PATIENCE = 60.0  # seconds that a message or an answer waits for a SuperLink that is away
_AWAY = 10.0  # seconds after which a node says once more what is wrong
_LONGEST_TROUBLE = 10.0  # seconds between looks for messages where each of them fails
_RETRY = 2.0  # seconds between attempts to be admitted

log = logging.getLogger("fedem.node")


@dataclass(frozen=True)
class NodeOptions:
    """How a node is run.

    Attributes:
        address: of the SuperLink. keys: the node's; None: a new node at every start, where the SuperLink allows it.
        admission: seconds that it waits to be known and admitted.
        health: a file that is touched by the loop that looks for messages and answers them, and while it works.
    """

    address: Address
    keys: NodeKeys | None
    hosts: ShardHosts
    admission: float = 120.0
    health: Path | None = None


def run_node(options: NodeOptions, stopped: threading.Event) -> None:
    """Serve until `stopped`.

    Raises:
        InputError: the shard, the state folder or the SuperLink's certificate is not right, or the SuperLink does not
            know this node.
    """
    shard = options.hosts.shard  # first of all: what is wrong with it is said before anybody waits for this node
    close_to_others(options.hosts.shard_dir)
    log.info("hosts users %s–%s of %s", shard.first, shard.first + len(shard.validation) - 1, shard.dataset)
    log.info(options.hosts.policy.words)
    app = build_client_app(options.hosts)
    watch = Watch(stopped, options.health, options.hosts.ceilings.seconds)
    with _only_one(options.hosts.state_dir):
        while (link := _admitted(options, watch, stopped)) is not None:
            try:
                _serve(link, app, watch, stopped)
                return
            except Ended:
                log.warning("told to end in the middle of an answer: that round goes on without it")
                return
            except Refused as error:  # the SuperLink was started anew and has forgotten this node, say
                log.warning("%s; asks to be admitted again", error)
            finally:
                link.close()


def _serve(link: NodeLink, app: ClientApp, watch: Watch, stopped: threading.Event) -> None:
    """Answer message after message.

    Raises:
        Refused: the SuperLink does not know this node any more. Ended: this process is to end.
    """
    last, pause = time.monotonic(), SHORTEST_PAUSE
    complaints = _Complaints()
    while not stopped.is_set():
        try:
            message = link.receive()
        except Refused:
            raise
        except Unreachable as error:
            complaints.say(logging.WARNING, f"{error}; trying on")
            continue
        except NotTaken as error:
            complaints.say(logging.DEBUG if error.code == UNHEARD else logging.WARNING, str(error))
            last = time.monotonic()  # whoever meant it well sends it again
            stopped.wait(SHORTEST_PAUSE)
            continue
        except Exception as error:  # of a message that is damaged, too large, or whose run has ended meanwhile
            complaints.say(logging.ERROR, f"a message was lost: {type(error).__name__}: {error}")
            stopped.wait(pause)
            pause = min(2 * pause, _LONGEST_TROUBLE)
            continue
        pause = SHORTEST_PAUSE
        if message is None:
            idle = time.monotonic() - last
            stopped.wait(min(max(SHORTEST_PAUSE, _PATIENCE * idle), LONGEST_PAUSE))
            continue
        _respond(link, app, message, watch)
        last = time.monotonic()


class _Complaints:
    """Says the same thing once in a while only."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def say(self, level: int, what: str) -> None:
        """Log it, unless that was done a moment ago."""
        now = time.monotonic()
        self._said = {known: when for known, when in self._said.items() if now - when < _AWAY}
        if what not in self._said:
            self._said[what] = now
            log.log(level, "%s", what)


def _respond(link: NodeLink, app: ClientApp, message: Message, watch: Watch) -> None:
    """Compute and send one answer; if it cannot be sent, this round goes on without it."""
    began = time.monotonic()
    told = message.metadata
    TaskIdentity.run_id, TaskIdentity.task_id = told.run_id, 1
    context = Context(told.run_id, link.node_id, {}, RecordDict(), {})
    with watch.of_an_answer():
        reply = answer(app, message, context, {})
    seconds = time.monotonic() - began
    what = f"round {told.group_id or '-'}, {told.message_type}"
    if reply.has_error():
        log.error("%s: %s", what, reply.error.reason)
    try:
        sent = link.reply(reply, seconds)
    except Exception as error:  # the run has ended, the SuperLink is gone, ...
        log.error("%s: the answer could not be sent: %s: %s", what, type(error).__name__, error)
        return
    log.info("%s: %.2f s, %.2f MB up", what, seconds, sent / 1e6)


def _admitted(options: NodeOptions, watch: Watch, stopped: threading.Event) -> NodeLink | None:
    """A connection, as soon as the SuperLink is there and knows this node; None if stopped before.

    Raises:
        InputError: it does not for as long as we wait.
    """
    began, said = time.monotonic(), ""
    keys = options.keys or own_keys(options.hosts.state_dir / "node.key")
    while not stopped.is_set():
        link = NodeLink(
            options.address,
            keys,
            options.hosts.server_key,
            registers=options.keys is None,
            patience=PATIENCE,
            stopped=stopped,
            largest=options.hosts.largest_message,
            known_as=_last_number(options),
            on_contact=watch.touch,
        )
        try:
            number = link.connect()
            log.info("is node %s at %s", number, options.address.place)
            _say_if_open(options.address)
            write_atomically(_number_file(options), json.dumps({"superlink": options.address.place, "node": number}))
            return link
        except InputError:
            raise
        except FedemError as error:
            link.close()
            waited = time.monotonic() - began
            if waited > options.admission:
                raise InputError(f"not admitted within {options.admission:.0f} s: {error}") from None
            if str(error) != said:
                said = str(error)
                log.info("waits to be admitted: %s", said)
        stopped.wait(_RETRY)
    return None


def _say_if_open(address: Address) -> None:
    """Whoever starts this node is to know what others on its network may do."""
    with suppress(Unreachable):
        if not address.loopback and is_open(address):
            log.warning(
                "anybody here may start and stop runs at %s and shut nodes out: its /v1/control answers without an "
                "account; close it as docs/deployment.md says",
                address.place,
            )


def _number_file(options: NodeOptions) -> Path:
    return options.hosts.state_dir / "node.json"


def _last_number(options: NodeOptions) -> int:
    """What this SuperLink called this node the last time, to tell it that that process is gone; 0: not known."""
    try:
        told = json.loads(_number_file(options).read_text(encoding="utf-8"))
        return int(told["node"]) if told["superlink"] == options.address.place else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold a state folder: two processes that write there would undo each other's rounds.

    Raises:
        InputError: another process holds it, it is another user's, or it cannot be written.
    """
    try:
        own_folder(folder, "the state folder")
        handle = unlinked_private(str(folder / "lock"), os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise InputError(f"cannot write to the state folder {folder}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another node uses the state folder {folder}: give each its own --state") from None
        yield
    finally:
        os.close(handle)
