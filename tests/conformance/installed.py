"""The suite's own methods as a package that is installed: over a network nodes refuse names that are paths to code."""

from __future__ import annotations

from pathlib import Path

from conformance.methods import TEST_ONLY, Subject

GROUP = "fedem_flwr.strategies"


def named(subject: Subject) -> Subject:
    """A method of the suite by the name of its entry point; any other as it is."""
    return Subject(f"suite-{subject.short.lower()}") if subject.name in TEST_ONLY else subject


def install(folder: Path) -> Path:
    """Write what an installation leaves of a package with the suite's methods; returns what to put on the path."""
    about = folder / "conformance_suite-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: conformance-suite\nVersion: 1.0\n")
    entries = [f"{named(Subject(path)).name} = {path}" for path in TEST_ONLY]
    (about / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *entries, ""]))
    return folder
