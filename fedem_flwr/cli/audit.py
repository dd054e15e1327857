"""`fedem audit`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fedem_flwr.cli.options import quiet_libraries
from fedem_flwr.config import Tree, resolve
from fedem_flwr.errors import InputError
from fedem_flwr.experiment import audit as auditing
from fedem_flwr.report.progress import RoundProgress
from fedem_flwr.report.tables import audit_table

_out = Console(highlight=False)


def audit(options: Tree, out: Path | None, *, quiet: bool) -> None:
    """`fedem audit`: the leak table."""
    quiet_libraries()
    base = resolve({}, options, "options")
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {out}: {error.strerror}; give another folder with --out") from None
    steps = auditing.steps(options)
    with RoundProgress(steps, description="audit", quiet=quiet) as progress:
        rows = auditing.leak_table(base, options, lambda step: progress.update(step, {}))
    title = f"The same methods on {base.data.dataset} under both protocols (99 negatives)"
    _out.print(audit_table(rows, title=title, caption=auditing.CAPTION))
    if out is not None:
        auditing.write(out, title, rows)
        _out.print(f"written: {out / 'audit.md'}", soft_wrap=True)
