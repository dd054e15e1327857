"""What this machine has, and how much of it this process may take."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_here() -> int:
    """Bytes that this machine, or this container, has."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUPS:
        try:
            found.append(int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(found)


def limit_memory(more: int) -> None:
    """Let the kernel refuse this process more memory, so that what was not foreseen fails, and nothing else does.

    It counts what may be written (RLIMIT_DATA): mapped shards and shared libraries are not in it. Linux only.

    Args:
        more: bytes beside what the process has now.
    """
    if sys.platform != "linux":
        return
    has = int(Path("/proc/self/status").read_text(encoding="ascii").partition("VmData:")[2].split()[0]) << 10
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (has + more if hard < 0 else min(has + more, hard), hard))


def raise_descriptors() -> int:
    """Let this process open as many files and connections as it may at the most; returns the number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
