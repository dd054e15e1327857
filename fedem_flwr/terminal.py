"""The terminal: everything that is printed goes through consoles that are made here.

What is printed holds text of others: ids of a data set, names, reasons of nodes, paths. It is no markup (``[red]``), no
name of an emoji (``:bomb:``), and its control characters are shown, not obeyed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from fedem_flwr.text import visible

_KEPT = "\n\t"


class _SafeConsole(Console):
    """Cleans strings as it takes them in, so that tables have room for the escapes, and the rest as it goes out."""

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich."""
        return super().render_str(visible(text, _KEPT), **options)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        # Segments hold text alone: colours, and the movements of a progress bar, come beside it.
        clean = (each if each.control else each._replace(text=visible(each.text, _KEPT)) for each in buffer)
        return super()._render_buffer(clean)


def console(*, stderr: bool = False, soft_wrap: bool = False, **options: Any) -> Console:
    """A console for standard output, or standard error.

    Args:
        options: rich's own.
    """
    return _SafeConsole(stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False, **options)
