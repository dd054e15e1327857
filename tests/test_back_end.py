"""Which back end trains a run's clients is said before it, and what batched torch trained instead is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from worlds import carry_out, config_of, prepare

from fedem_flwr.experiment.back_end import back_end, back_end_said


@pytest.mark.parametrize(
    ("name", "engine", "used", "why"),
    [
        ("fedem", "auto", "fused", ""),
        ("fedmf-elastic", "fused", "fused", ""),
        ("fedem", "torch", "torch", ""),
        ("fedmf", "reference", "reference", ""),
        ("pfedrec", "auto", "fused", ""),
        ("fedrecgel", "auto", "torch", "its steps are not known to compiled functions"),
        ("fedials", "auto", "torch", "clients train nothing in steps"),
    ],
)
def test_a_run_says_what_trains_it(name: str, engine: str, used: str, why: str, tmp_path: Path) -> None:
    config = config_of(name, run={"engine": engine, "rounds": 100})
    run = prepare(tmp_path / "run", config)
    assert back_end(run) == {"asked": engine, "used": used, "why": why}
    (line,) = back_end_said(run)
    assert line.startswith("local training: ") and (why in line)


def test_what_torch_trains_is_counted(tmp_path: Path) -> None:
    """Participations, round by round; nothing where compiled functions train, or where torch was asked for."""
    for name, engine, counted in (("fedfast", "auto", True), ("pfedrec", "auto", False), ("pfedrec", "torch", False)):
        config = config_of(name, run={"rounds": 2, "engine": engine})
        lines = carry_out(tmp_path / f"{name}-{engine}", config).lines
        expected = [line["participants"] for line in lines] if counted else [0, 0]
        assert [line.get("uncompiled", 0) for line in lines] == expected
