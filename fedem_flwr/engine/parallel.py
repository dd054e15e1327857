"""Blocks of clients on the cores of one process.

Blocks are independent, so each core takes whole blocks, one torch thread each. That beats splitting every small
operation over the cores: nobody waits at the end of each operation, least of all on a busy machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

import torch

from fedem_flwr.pulse import beat, tell

Item = TypeVar("Item")
Result = TypeVar("Result")


ON_A_GPU = 64  # times what a core takes: a GPU wants few and large blocks, and has no cache to stay in


def budget(floats: int, device: torch.device) -> int:
    """How many floats a block may take on a device, where a core of a CPU takes so many."""
    return floats if device.type == "cpu" else floats * ON_A_GPU


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], device: torch.device, what: str = ""
) -> Iterator[Result]:
    """Apply a function to items, as many at a time as torch may use threads; results come in the items' order.

    On a GPU the items are taken one after the other: the device is parallel enough. Each item is a sign of life, and
    what its listener raises ends the work.

    Args:
        what: is done, for whoever shows progress; empty: nothing is said.
    """
    for done, result in enumerate(_in_parallel(function, items, device), 1):
        if what:
            tell(what, done, len(items))
        yield result


def _in_parallel(function: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> Iterator[Result]:

    def one(item: Item) -> Result:
        beat()
        return function(item)

    threads = torch.get_num_threads()
    workers = min(len(items), threads)
    if device.type != "cpu":
        yield from map(one, items)
        return
    try:
        # Here, too, as in the pool: so that operations are split, and rounded, the same way whatever the number of
        # blocks, and so that what is made of the results meanwhile does not wait for cores that the pool has taken.
        torch.set_num_threads(1)
        if workers <= 1:
            yield from map(one, items)
            return
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting: deque[Future[Result]] = deque()
            for item in items:
                waiting.append(pool.submit(copy_context().run, one, item))
                if len(waiting) > 2 * workers:  # results that nobody took yet must not pile up
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:  # torch gives a later thread the number that any thread set last
        torch.set_num_threads(threads)
