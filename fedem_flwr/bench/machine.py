"""What a measurement depends on beside the program: the machine, versions, threads, and what else was running."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_QUIET = 0.5  # processes a core
_PACKAGES = ("torch", "numpy", "numba", "pandas", "flwr", "ray", "cvxpy")


class Machine(BaseModel):
    """Where something was measured.

    Attributes:
        processor: its name, as the system has it.
        cores: that this process may use.
        memory: bytes, of the whole machine; 0 where the system does not tell.
        system: operating system and architecture.
        versions: of Python and of packages; an absent one is left out.
        load: processes that wanted to run in the minute before, on average; None where the system does not tell.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    processor: str
    cores: int
    memory: int
    system: str
    versions: dict[str, str]
    load: float | None = None

    @classmethod
    def here(cls) -> Machine:
        """This one, now."""
        return cls(
            processor=_processor(),
            cores=cores_here(),
            memory=_memory(),
            system=f"{platform.system()} {platform.machine()}",
            versions=_versions(),
            load=load_now(),
        )

    @property
    def quiet(self) -> bool:
        """Whether few others wanted to run when it began: else they bend seconds, and each work's in another way."""
        return self.load is not None and self.load <= _QUIET * self.cores

    def same_as(self, other: Machine) -> bool:
        """Whether seconds of one can stand beside seconds of the other."""
        return (self.processor, self.cores, self.system) == (other.processor, other.cores, other.system)


def cores_here() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_now() -> float | None:
    """Processes that want to run, on average over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or "unknown"


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
