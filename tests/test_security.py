"""What docs/security.md claims is shown by tests that there are, and each attack's program is named there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from security_page import PAGE, shown_attacks

TESTS = Path(__file__).resolve().parent


def names_in(file: Path) -> set[str]:
    """Names of the test functions of a file, also those in classes."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def missing(named: frozenset[tuple[str, str]], tests: Path = TESTS) -> set[tuple[str, str]]:
    """Of files and names, those that there are not."""
    there = {file: names_in(tests / file) for file, _ in named if (tests / file).is_file()}
    return {(file, name) for file, name in named if name not in there.get(file, set())}


def test_each_test_that_the_page_names_exists() -> None:
    assert len(shown_attacks()) > 40
    assert missing(shown_attacks()) == set()


def test_each_program_of_bad_will_is_named_there() -> None:
    programs = {f"attacks/{file.name}" for file in (TESTS / "attacks").glob("test_*.py")}
    assert programs - {file for file, _ in shown_attacks()} == set()


def test_each_row_names_a_test() -> None:
    table = (
        PAGE.read_text(encoding="utf-8").partition("## Attack, outcome, test")[2].partition("## What rests on whom")[0]
    )
    rows = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| attack |")]
    assert rows and [row for row in rows if "::test_" not in row.split("|")[3]] == []


def test_what_there_is_not_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("class TestA:\n    def test_b(self) -> None: ...\n")
    named = frozenset({("test_a.py", "test_b"), ("test_a.py", "test_c"), ("test_z.py", "test_b")})
    assert missing(named, tmp_path) == {("test_a.py", "test_c"), ("test_z.py", "test_b")}


def test_they_carry_the_mark(request: pytest.FixtureRequest) -> None:
    """Of this session's tests: all that the page names, and with `-m attacks` nothing else but its programs."""
    named = shown_attacks()
    for item in request.session.items:
        file = str(item.path.relative_to(TESTS)) if item.path.is_relative_to(TESTS) else ""
        if (file, getattr(item, "originalname", item.name)) in named:
            assert item.get_closest_marker("attacks") is not None, item.nodeid
