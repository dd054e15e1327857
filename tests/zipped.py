"""Archives for tests."""

from __future__ import annotations

import zipfile
from pathlib import Path


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path
