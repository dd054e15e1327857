r"""Text that others have written, made safe to show: ids, names, errors of nodes, what a SuperLink says.

A terminal obeys control characters (ESC and the C1 codes clear the screen, rename the window, print where they like),
marks of direction turn a line around, and a line break lets a text pass for a line of somebody else's. `visible`
writes all of these as escapes, ``\x1b`` or ``\u202e``. It is asked by whatever shows text: errors (`errors.py`), the
terminal (`terminal.py`), logs (`SafeFormatter`) and the report (`report/html.py`). JSON escapes by itself.
"""

from __future__ import annotations

import codecs
import logging
import re

LONGEST_REASON = 500  # characters of a reason

# C0, C1, DEL; separators of lines and paragraphs; marks of direction and other characters that nobody sees (but for the
# joiners, which words of Persian or Hindi and some emoji need); halves of characters, which no terminal can write.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str, keep: str = "") -> str:
    r"""The text with escapes in the place of characters that a reader does not see or a terminal obeys.

    Args:
        keep: of these, the ones that stay: line breaks, say.
    """
    return _UNSAFE.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode("ascii"), text
    )


def plain(text: str, encoding: str) -> str:
    """The text as an encoding can write it: what it lacks is written with plainer characters, or as an escape."""
    return text.encode(encoding, PLAIN).decode(encoding)


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    """See `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(_PLAINER.get(each) or each.encode("ascii", "backslashreplace").decode() for each in found), error.end


def _plainer() -> dict[str, str]:
    same = {"-": "–—―‐‑−─━═╌╍┄┅╴╶", "|": "│┃║╎╏┆┇", "'": "‘’‚′", '"': "“”„″", "*": "•●✓★", "#": "█▇▆▅▄▃▂▁▉▊▋▌▐▓▒░■"}
    known = {each: sign for sign, signs in same.items() for each in signs}
    known |= {chr(code): "+" for code in range(0x250C, 0x2580) if chr(code) not in known}  # corners and crossings
    words = {
        "…": "...",
        "×": "x",
        "·": ".",
        "≥": ">=",
        "≤": "<=",
        "≠": "!=",
        "±": "+-",
        "→": "->",
        "←": "<-",
        "∞": "inf",
    }
    names = ("alpha", "beta", "gamma", "eta", "theta", "kappa", "lambda", "rho", "sigma", "tau", "Theta")
    return known | words | dict(zip("αβγηθκλρστΘ", names, strict=True))


_PLAINER = _plainer()
PLAIN = "fedem-plain"  # what becomes of characters that an encoding lacks: a name of `codecs`
codecs.register_error(PLAIN, _in_plain_characters)


def one_line(text: str, longest: int = LONGEST_REASON) -> str:
    """The same with white space folded, and cut where it is too long to read."""
    folded = visible(" ".join(text.split()))
    return folded if len(folded) <= longest else folded[: longest - 3] + "..."


class SafeFormatter(logging.Formatter):
    """Log lines in which no text of others looks like a line of ours: what follows a line break is indented."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return visible(super().format(record), keep="\n\t").replace("\n", "\n    ")
