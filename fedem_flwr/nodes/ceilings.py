"""How much work and memory a node takes on: its own word, like its policy, whatever a server asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedem_flwr.config import Config
from fedem_flwr.contract.finding import method_of
from fedem_flwr.contract.sizes import download_bytes, node_bytes
from fedem_flwr.errors import InputError
from fedem_flwr.nodes.machine import memory_here

EPOCHS, SECONDS = 1000, 3600.0  # of a node that was not told otherwise
_NUMBER, _ENTRIES, _TEXT = 1_000_000, 1000, 1 << 20  # of a configuration: a whole number, a list, all of it in bytes
_LENGTH = "length"  # of a list
_MESSAGE = 256 << 20  # bytes of a message that is taken in any case, as far as a quarter of the memory allows
_SHARE = 4  # of the memory: a message has its bytes, what they inflate to, and that again in another order
_SPARE = 2  # times what a run's downloads should take


@dataclass(frozen=True)
class Ceilings:
    """Asked when a run is introduced, and while an answer is computed.

    Attributes:
        memory: bytes that answers may take, beside what the process has at its start.
        epochs: passes over a user's samples in one answer.
        seconds: that one answer may take.

    Raises:
        InputError: there are no such ceilings.
    """

    memory: int
    epochs: int = EPOCHS
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        if self.memory < 64 << 20:
            raise InputError("--max-memory: a node needs 64 MB at least, and this machine must have twice as much")

    @classmethod
    def of_machine(cls, max_memory_mb: int = 0, epochs: int = EPOCHS, seconds: float = SECONDS) -> Ceilings:
        """Of this machine.

        Args:
            max_memory_mb: 0: half of what the machine, or the container, has.
        """
        return cls(max_memory_mb << 20 if max_memory_mb else memory_here() // 2, epochs, seconds)

    def objection(self, config: Config, users: int, items: int) -> str:
        """Why a run is too much, in a line; empty if it is not.

        Args:
            users: that the node hosts. items: m.
        """
        for name, value in _whole_numbers(config.model_dump()):
            key = name.rpartition(".")[2]
            if key == "epochs":
                most, how = self.epochs, " (--max-epochs)"
            else:
                most, how = _ENTRIES if key == _LENGTH else _NUMBER, ""
            if value > most and key != "seed":
                return _too_much(f"{name} = {value}", f"{most:,}{how}")
        needed = node_bytes(method_of(config, items), users)
        if needed > self.memory:
            return _too_much(f"about {needed >> 20:,} MB of memory", f"{self.memory >> 20:,} MB (--max-memory)")
        return ""

    @property
    def message_limit(self) -> int:
        """Bytes of the largest message of any run."""
        return self.memory // _SHARE

    @staticmethod
    def objection_to_text(text: str) -> str:
        """The same of a configuration that has not been read yet."""
        return _too_much(f"a configuration of {len(text):,} characters", f"{_TEXT:,}") if len(text) > _TEXT else ""

    def message_bytes(self, config: Config | None, users: int, items: int) -> int:
        """The largest message taken, and the most that it may inflate to; None: of a run that is not known yet."""
        needed = download_bytes(method_of(config, items), users) if config is not None else 0
        return min(self.message_limit, max(_MESSAGE, _SPARE * needed))


def _whole_numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Those of a configuration by their dotted names, and the lengths of its lists."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _whole_numbers(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield f"{name}.{_LENGTH}", len(value)
            yield from ((name, part) for part in value if isinstance(part, int))
        elif isinstance(value, int):
            yield name, value


def _too_much(asked: str, limit: str) -> str:
    return f"the run asks for {asked}, this node's ceiling is {limit}: refused"
