"""What goes wrong inside a node, for the fault matrix: Python imports this at start where it is on PYTHONPATH.

A node looks at the file named by FEDEM_SABOTAGE in every round: {"round": 3, "do": "nan"}. It does that once, and notes
so by deleting the file. With FEDEM_OPENED a process writes down the files that it opens. Nothing of this is part of the
package: a process without these variables is untouched.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def _ordered(round_: int) -> str:
    """What is to be done in a round, if anything."""
    try:
        order = json.loads(Path(os.environ["FEDEM_SABOTAGE"]).read_text())
    except (OSError, ValueError):
        return ""
    return str(order["do"]) if order["round"] == round_ else ""


def _done() -> None:
    Path(os.environ["FEDEM_SABOTAGE"]).unlink(missing_ok=True)


def _die() -> None:
    _done()
    os.kill(os.getpid(), signal.SIGKILL)


def _spoiled(arrays: list[Any], do: str) -> list[Any]:
    import numpy as np

    large = max(range(len(arrays)), key=lambda at: arrays[at].nbytes if arrays[at].dtype.kind == "f" else -1)
    values = np.array(arrays[large])
    if do == "nan":
        values.reshape(-1)[:: max(1, values.size // 7)] = np.nan
    elif do == "shape":
        values = values[..., :-1]
    elif do == "huge":
        values = np.tile(values, (100, *[1] * (values.ndim - 1)))
    return [values if at == large else array for at, array in enumerate(arrays)]


def _arm() -> None:
    from fedem_flwr.clients.method import MethodClient

    from fedem_flwr.network import node_link
    from fedem_flwr.nodes.host import NodeHost

    now = {"do": ""}

    fit = MethodClient.fit

    def sabotaged(self: Any, parameters: Any, config: Any) -> Any:
        do = now["do"] = _ordered(int(config["server-round"]))
        if do == "die-before":
            _die()
        if do == "signal":  # the harness does something to this process now
            _done()
            time.sleep(1.0)
        if do == "slow":
            _done()
            time.sleep(4.0)
        arrays, examples, metrics = fit(self, parameters, config)
        if do == "die-during":  # of a client that stores nothing
            _die()
        if do in ("nan", "shape", "huge"):
            _done()
            arrays = _spoiled(arrays, do)
        if do == "metric":
            _done()
            metrics = {**metrics, "loss-total": float("nan")}
        if do == "boast":
            _done()
            metrics = {**metrics, "users": 1e9, "validation/full/ndcg@10": 1e9}
        return arrays, examples, metrics

    MethodClient.fit = sabotaged  # type: ignore[method-assign]
    keep, reply, condense = NodeHost.keep, node_link.NodeLink.reply, node_link.condense

    def keep_or_die(self: Any, *args: Any, **rest: Any) -> None:
        if now["do"] == "die-during":  # trained, and nothing of it is on the disk yet
            _die()
        keep(self, *args, **rest)

    def reply_or_die(self: Any, message: Any, seconds: float) -> int:
        if now["do"] == "die-after":  # trained and stored, and nobody will ever hear of it
            _die()
        return reply(self, message, seconds)

    def cut(message: Any) -> Any:
        made = condense(message)
        if now["do"] == "truncated" and made.has_content():
            _done()
            now["do"] = ""
            record = made.content.config_records["fedem"]
            record["fedem"] = record["fedem"][: len(record["fedem"]) // 2]
        return made

    def stall(message: Any, announce: Any) -> int:
        pause = {"stall": 8.0, "dawdle": 2.0}.get(now["do"])
        if pause and message.has_content():  # says what is coming, and sends nothing of it for a while
            _done()
            now["do"] = ""
            told = [announce()]
            time.sleep(pause)
            return deliver(message, lambda: told.pop() if told else announce())
        return deliver(message, announce)

    deliver = node_link.deliver
    node_link.deliver = stall  # type: ignore[attr-defined]
    NodeHost.keep = keep_or_die  # type: ignore[method-assign]
    node_link.NodeLink.reply = reply_or_die  # type: ignore[method-assign]
    node_link.condense = cut  # type: ignore[attr-defined]


def _note_files(path: str) -> None:
    """Write down every file that is opened; Python tells of them."""
    notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str):
            os.write(notes, (os.path.abspath(arguments[0]) + "\n").encode())

    sys.addaudithook(note)


if os.environ.get("FEDEM_OPENED"):
    _note_files(os.environ["FEDEM_OPENED"])
if os.environ.get("FEDEM_SABOTAGE"):
    _arm()
