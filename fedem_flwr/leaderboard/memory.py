"""About how much memory a cell will take, and how much there is: so that cells beside each other fit."""

from __future__ import annotations

from pathlib import Path

from fedem_flwr.config import Config
from fedem_flwr.contract.finding import method_of
from fedem_flwr.contract.sizes import download_bytes, node_bytes, upload_bytes
from fedem_flwr.evaluation.cost import of_ease
from fedem_flwr.evaluation.linear import Ease
from fedem_flwr.nodes.machine import memory_here
from fedem_flwr.protocol.split import SplitFacts

PROCESS = 600_000_000  # bytes of Python, torch and Flower with the libraries that they map, and of what is drawn
_FLOAT = 4
_COPIES = 8  # of single users' uploads, as they come and are combined (`fedem` on ML-100K: 101 MB; 1.67 GB in all)
_SPLIT_ROW = 250 * 4  # bytes of a user's row in the split, and in what is made of it, without its items


def cell_bytes(config: Config, facts: SplitFacts) -> int:
    """About what a cell takes at most: the process, the rounds of all its users with what its server holds, controls.

    Several nodes of one process share its memory; Ray's processes are added up.
    """
    method = method_of(config, facts.items)
    users = facts.users
    uploaders = max(1, round(users * config.run.participants * config.aggregate.fraction))
    single = any(field.each for phase in method.phases() for field in phase.task.fields().values())
    copies = _COPIES if single else 1
    server = copies * upload_bytes(method, uploaders if single else 1) + download_bytes(method, 1)
    data = users * _SPLIT_ROW + facts.interactions * 3 * _FLOAT
    ease = of_ease(Ease.size(users, facts.items), 1, 0, 0).gigabytes
    if not config.evaluation.controls or ease > config.evaluation.control_gb:  # then it is left out
        ease = 0.0
    processes = 1 if config.run.runtime == "inprocess" else 4
    return processes * PROCESS + data + max(node_bytes(method, users) + server, int(ease * 1e9))


def free_bytes() -> int:
    """What is free now, for new processes; what the machine has where the system does not tell."""
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii").partition("MemAvailable:")[2].split()[0]
    except (OSError, IndexError):
        return memory_here()
    return min(int(told) << 10, memory_here())


def resident_bytes(pid: int) -> int:
    """What a process holds now, its children left out; 0 where that is not known."""
    try:
        told = Path(f"/proc/{pid}/status").read_text(encoding="ascii").partition("VmRSS:")[2].split()[0]
    except (OSError, IndexError):
        return 0
    return int(told) << 10
