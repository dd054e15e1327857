"""What docs/security.md says that tests show."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "security.md"


@cache
def shown_attacks() -> frozenset[tuple[str, str]]:
    """What the page names as `file::test`: a file below tests/, and a test in it."""
    return frozenset(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8")))
