"""Cells: what crosses between server and nodes is what was declared, weighs what is said, and tells of nobody."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from worlds import Crossing

from conformance.methods import USERS, Subject
from conformance.runs import Named, Runs, Whole
from fedem_flwr.contract import Method
from fedem_flwr.engine.history import History
from fedem_flwr.engine.ials import FoldIn
from fedem_flwr.methods.fedials import Fedials
from fedem_flwr.models.rows import ragged

RUN = 4  # so many consecutive numbers of a private array are not there by chance
ORDERS = {"server-round", "upload", "evaluate", "everybody", "persist", "keep-from", "final", "group-edges"}
RANKED = r"(validation|test)/(full|sampled99)/((hr|ndcg)@(5|10|20)|mrr)"
SUMS = re.compile(
    rf"(group-\d/)?(users|nonfinite|interactions|{RANKED})|rho/(total|squares|count|bin-\d\d)|loss-total|num-examples|uncompiled"
)
LENGTHS_NEAR = 0.15  # of an average user's upload with rows under an index


def fields(subject: Subject, runs: Runs) -> None:
    """Arrays are those of the phase, in its order, with its shapes; numbers are sums; nothing else is there."""
    for each in (1, 7):
        whole = runs.whole(subject, each)
        assert len(whole.grid.down) == len(whole.grid.up) > 0
        for message in whole.grid.down:
            declared_download(message, whole)
        for reply in whole.grid.up:
            declared_upload(reply, whole)


def declared_download(message: Crossing, whole: Whole) -> None:
    """What goes down is for the node's own users."""
    assert message.metrics == {}
    if message.kind == "query":
        assert message.records == set()
        return
    client = whole.client(message.node)
    method = client.method
    assert set(message.arrays) == set(client.DOWNLOAD) and message.records == {"arrays", "config"}
    flags = {name for phase in method.phases() for name in phase.flags}
    tuned = {name for tuning in method.tunings() for name in (*tuning.first, f"tune-{tuning.name}")}
    told = ORDERS | flags | tuned | set(method.settings(method.start(), USERS))
    assert set(message.config) <= told and not any(isinstance(x, list) for x in message.config.values())
    for name in ("participants", "uploaders", "receivers"):
        named = set(message.arrays.get(name, np.empty(0)).tolist())
        assert named <= set(client.users.tolist()), f"'{name}' names users of other nodes"


def declared_upload(reply: Crossing, whole: Whole) -> None:
    """What goes up is what the phase that was asked for declares."""
    assert reply.config == {}
    if reply.kind == "query":
        assert set(reply.arrays) == {"users", "samples"} and reply.metrics == {}
        return
    method = whole.client(reply.node).method
    grids = "|".join([r"never", *(re.escape(tuning.name) for tuning in method.tunings())])
    for name, value in reply.metrics.items():
        assert SUMS.fullmatch(name) or re.fullmatch(rf"({grids})/(\d{{3}}|users)", name), f"'{name}' is not declared"
        assert isinstance(value, int | float), f"'{name}' is not a number, but a list"
    if reply.kind == "evaluate":
        assert reply.arrays == {} and reply.records == {"metrics"}
        return
    (asked,) = [c for c in whole.crossings("train", int(reply.round)) if c.node == reply.node]
    wanted = method.schedule.named(asked.config["upload"]).task.fields()
    assert tuple(reply.arrays) == tuple(wanted) and reply.records == {"arrays", "metrics"}, "other arrays"
    for name, field in wanted.items():
        array = reply.arrays[name]
        assert array.dtype == np.dtype(field.dtype) and array.ndim == len(field.shape), f"'{name}'"


def private(subject: Subject, runs: Runs) -> None:
    """No private part, no history and no held-out item of anybody is in any message, or in the server's state."""
    for each in (1, 7):
        whole = runs.whole(subject, each)
        method = whole.client().method
        numbers = [array for c in (*whole.grid.down, *whole.grid.up) for array in c.arrays.values()]
        server = [array for state in whole.noted.server.values() for array in state.values()]
        no_secrets(secrets_of(method, whole), [*numbers, *server])
        no_histories(whole, [array for c in whole.grid.up for array in c.arrays.values()])
        if isinstance(method, Fedials) and each > 1:
            no_solved_users(method, whole)
    looked_for = method.stateless or any(secrets_of(method, whole).values())
    assert looked_for or method.EXPOSES, "nothing is private, and nothing is said of what the server learns"


def secrets_of(method: Method, whole: Whole) -> dict[str, list[np.ndarray]]:
    """Rows of what stays with the nodes and is declared private, after every round."""
    parts, found = method.parts(), dict[str, list[np.ndarray]]()
    goes_up = {key for name, part in parts.items() if part.touched for key in ragged(name)}
    for round_ in whole.noted.nodes:
        for name, values in whole.noted.users(round_).items():
            if name not in goes_up and (name not in parts or parts[name].private):
                found.setdefault(name, []).extend(values.reshape(-1, values.shape[-1]))
    return found


def no_secrets(secrets: dict[str, list[np.ndarray]], arrays: Iterable[np.ndarray]) -> None:
    """None of the rows' first or middle numbers is in the arrays, in this order."""
    haystack = b"|".join(array.astype(np.float32).tobytes() for array in arrays if array.dtype.kind == "f")
    for name, rows in secrets.items():
        for part in {part for row in rows for part in telling(row)}:
            assert part not in haystack, f"the private part '{name}' crossed"


def telling(row: np.ndarray) -> Iterator[bytes]:
    """Runs of numbers that are not all alike."""
    for start in (0, len(row) // 2):
        part = np.ascontiguousarray(row[start : start + RUN], np.float32)
        if len(np.unique(part)) == RUN:
            yield part.tobytes()


def no_histories(whole: Whole, arrays: Iterable[np.ndarray]) -> None:
    """No four neighbours of a history and no held-out items go up; item codes go in the catalogue's order."""
    split = whole.done.run.split
    haystack = b"|".join(x.astype(np.int64).tobytes() for x in arrays if x.dtype.kind in "iu")
    lists = np.split(np.asarray(split.train_items, np.int64), split.train_offsets[1:-1])
    windows = [items[at : at + RUN] for items in lists for at in range(len(items) - RUN + 1)]
    windows += [np.asarray(held[at : at + RUN], np.int64) for held in (split.validation, split.test) for at in (0, RUN)]
    windows = [window for window in windows if not (np.diff(window) > 0).all()]
    assert len(windows) > 5 * USERS, "the test must have something to look for"
    for window in windows:
        assert window.tobytes() not in haystack, "somebody's items crossed"


def no_solved_users(method: Fedials, whole: Whole) -> None:
    """Of sums over several users: no row is a user's vector, up to its sign."""
    split = whole.done.run.split
    everybody = History(np.arange(split.users), split.items, split.train_offsets, split.train_items)
    for round_ in whole.rounds:
        table = whole.crossings("train", round_)[0].arrays["table"]
        uploads = [x for c in whole.crossings("train", round_, up=True) for x in c.arrays.values()]
        rows = [x for x in uploads if x.dtype.kind == "f" and x.ndim == 2 and x.shape[1] == table.shape[-1]]
        if not len(table) or not rows:
            continue
        users = FoldIn(torch.from_numpy(table.copy()), method.objective).of(everybody, everybody.users).numpy()
        for sums in rows:
            for one in users:
                gap = min(np.abs(sums - sign * one).max(1).min(initial=np.inf) for sign in (1, -1))
                assert gap > 1e-4 * np.abs(one).max(), "a user's vector crossed"


def counted(subject: Subject, runs: Runs) -> None:
    """The bytes of a user's own messages, as every metrics line states them, are those that crossed."""
    whole = runs.whole(subject, 1)
    assert whole.done.run.nodes == USERS
    for line in whole.done.lines:
        phase = whole.client().method.schedule.at(line["round"])[0]
        up, down = (
            sum(map(weight, (c.arrays for c in whole.crossings("train", line["round"], up=way)))) / USERS
            for way in (True, False)
        )
        assert abs(line["bytes_down"] - down) < 1e-6 * down, f"{line['bytes_down']} counted, {down} sent down"
        indexed = any(field.index or field.counted for field in phase.task.fields().values())
        tolerance = LENGTHS_NEAR if indexed else 1e-6
        assert abs(line["bytes_up"] - up) <= tolerance * up, f"{line['bytes_up']} counted, {up} sent up"


def weight(arrays: Named) -> int:
    """Bytes of names and values."""
    return sum(len(name.encode()) + array.nbytes for name, array in arrays.items())
