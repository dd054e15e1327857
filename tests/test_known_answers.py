"""Worlds whose answer is known, through the shipped presets: strategy, client, messages and evaluation included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import carry_out

from fedem_flwr.config import resolve


def best(path: Path, ratings: Path, method: str, protocol: str, rounds: int) -> dict[str, Any]:
    """The figures among 99 negatives of the round that the protocol reports."""
    options = {
        "data": {"dataset": str(ratings), "protocol": protocol},
        "method": {"name": method},
        "run": {"rounds": rounds, "threads": 1, "device": "cpu", "checkpoint_every": rounds},
    }
    lines = carry_out(path, resolve({}, options)).lines
    part, key = ("test", "hr@10") if protocol == "paper" else ("validation", "ndcg@10")
    reported: dict[str, Any] = max(lines, key=lambda line: line[part][key])["test"]["sampled99"]
    return reported


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 users with 30 of 300 items each, drawn at random: there is nothing to learn."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("noise") / "ratings.csv"
    rows = [(u, i, 1, t) for u in range(60) for t, i in enumerate(rng.choice(300, 30, replace=False))]
    path.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def two_tastes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 users and 240 items: even users like even items, odd ones odd; each has all but 8 of its group's."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("tastes") / "ratings.csv"
    rows = [(u, 2 * i + u % 2, 1, t) for u in range(80) for t, i in enumerate(rng.permutation(120)[8:])]
    path.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n", encoding="utf-8")
    return path


def test_a_memoriser_shines_under_paper_and_is_at_chance_under_strict(noise: Path, tmp_path: Path) -> None:
    paper = best(tmp_path / "paper", noise, "local-only", "paper", 30)
    strict = best(tmp_path / "strict", noise, "local-only", "strict", 30)
    print(f"memoriser: paper {paper['hr@10']:.3f}, strict {strict['hr@10']:.3f}")
    assert paper["hr@10"] >= 0.9
    assert strict["hr@10"] <= 0.2


def test_two_tastes_are_found_by_fedmf_and_not_alone(two_tastes: Path, tmp_path: Path) -> None:
    together = best(tmp_path / "fedmf", two_tastes, "fedmf", "strict", 40)
    alone = best(tmp_path / "alone", two_tastes, "local-only", "strict", 40)
    print(f"two tastes: fedmf {together['hr@10']:.3f}, local-only {alone['hr@10']:.3f}")
    assert together["hr@10"] >= 0.9
    assert alone["hr@10"] <= 0.25
