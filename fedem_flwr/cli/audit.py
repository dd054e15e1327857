"""`fedem audit`."""

from __future__ import annotations

from pathlib import Path

from fedem_flwr.cli.options import quiet_libraries
from fedem_flwr.config import Tree
from fedem_flwr.experiment import audit as auditing
from fedem_flwr.report.progress import RoundProgress
from fedem_flwr.report.steps import steps_shown
from fedem_flwr.report.tables import audit_table
from fedem_flwr.terminal import console

_out = console()


def audit(options: Tree, out: Path | None, *, quiet: bool) -> None:
    """`fedem audit`: the leak table."""
    quiet_libraries()
    if out is not None:
        auditing.require_writable(out, "give another folder with --out")
    with steps_shown(quiet=quiet):
        audited = auditing.Audit.prepare(options)
    with RoundProgress(audited.steps, description="audit", quiet=quiet) as progress:
        rows = audited.leak_table(lambda step: progress.update(step, {}))
    title = f"The same methods on {audited.base.data.dataset} under both protocols (99 negatives)"
    _out.print(audit_table(rows, title=title, caption=auditing.CAPTION))
    if out is not None:
        auditing.write(out, title, rows)
        _out.print(f"written: {out / 'audit.md'}", soft_wrap=True)
