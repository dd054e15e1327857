"""Makes the lock files: exact versions, and the hashes of every file of each on the package index.

python deploy/lock.py          (`make lock`; needs uv, and the index)

requirements.lock          what the package needs, but for torch: the versions of constraints.txt
requirements-torch.lock    torch of the general index, and what that brings (libraries for GPUs)
requirements-tools.lock    what `make sbom` and `make audit` run
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("cyclonedx-bom>=7", "pip-audit>=2.9")
ENTRY = re.compile(r"^([a-z0-9._-]+)==\S+ \\\n(?:    --hash=\S+(?: \\)?\n)+", re.MULTILINE)
HEAD = "# Made by `make lock`, of constraints.txt: change that, and make this anew. Install with --require-hashes.\n"
PLATFORM = ("--python-version", "3.11", "--python-platform", "x86_64-unknown-linux-gnu")


def compiled(source: str, *options: str, text: str | None = None) -> dict[str, str]:
    """The entries of a resolution, by name."""
    command = [str(Path(sys.executable).parent / "uv"), "pip", "compile", "--quiet", "--no-config", *PLATFORM]
    command += ["--generate-hashes", "--no-annotate", "--no-header", *options, source]
    made = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, check=False)
    if made.returncode:
        sys.exit(f"lock: {made.stderr.strip()}")
    return {match[1]: match[0] for match in ENTRY.finditer(made.stdout)}


def main() -> None:
    """Write the files."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {re.sub("[-_.]+", "-", line.partition("==")[0]).lower() for line in lines if line[:1] != "#"}
    found = compiled("pyproject.toml", "--constraints", "constraints.txt")
    parts: dict[str, dict[str, str]] = {"": {}, "-torch": {}}
    for name, entry in found.items():
        parts["" if name in pinned and name != "torch" else "-torch"][name] = entry
    parts["-tools"] = compiled("-", text="\n".join(TOOLS))
    for suffix, entries in parts.items():
        (ROOT / f"requirements{suffix}.lock").write_text(HEAD + "".join(entries.values()), encoding="utf-8")


if __name__ == "__main__":
    main()
