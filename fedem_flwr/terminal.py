"""The terminal: everything that is printed goes through consoles that are made here.

A terminal may be unable to show a character (Latin-1, ASCII): what is printed then degrades, and never fails.

What is printed holds text of others: ids of a data set, names, reasons of nodes, paths. It is no markup (``[red]``), no
name of an emoji (``:bomb:``), and its control characters are shown, not obeyed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from fedem_flwr.text import PLAIN, plain, visible

_KEPT = "\n\t"


class _SafeConsole(Console):
    """Cleans strings as it takes them in, so that tables have room for the escapes, and the rest as it goes out."""

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich."""
        return super().render_str(visible(text, _KEPT), **options)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        # Segments hold text alone: colours, and the movements of a progress bar, come beside it.
        clean = (each if each.control else each._replace(text=visible(each.text, _KEPT)) for each in buffer)
        return plain(super()._render_buffer(clean), self.encoding)

    @property
    def encoding(self) -> str:
        """Of what is written to, be it given or standard output; rich asks only about a file that was given."""
        return (getattr(self.file, "encoding", None) or "utf-8").lower()


def write_what_can_be_written() -> None:
    """What a terminal lacks is written with plainer characters, whoever prints. For programs, not libraries."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=PLAIN)


def console(*, stderr: bool = False, soft_wrap: bool = False, **options: Any) -> Console:
    """A console for standard output, or standard error.

    Args:
        options: rich's own.
    """
    return _SafeConsole(stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False, **options)
