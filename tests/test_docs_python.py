"""docs/python.md and README's Python, carried out block by block; what they show is what comes out."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CELL = re.compile(r"^```python\n(?P<code>.*?)^```$(?:\n\n^```text\n(?P<shown>.*?)^```$)?", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"-?\d+\.\d+")
TOLERANCE = 0.05  # of a figure: processors round differently, and a tie may fall the other way


def cells(text: str) -> Iterator[tuple[str, str | None]]:
    """Code, and what the page says it prints."""
    return ((found["code"], found["shown"]) for found in CELL.finditer(text))


def carry_out(text: str) -> list[tuple[str, str | None]]:
    """Run the cells one after the other, in one namespace; what each printed, and what the page shows."""
    page, printed = ModuleType("__main__"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "__main__", page)  # as in a notebook, for classes that are made there
        for code, shown in cells(text):
            with redirect_stdout(StringIO()) as screen:
                exec(compile(code, "the page", "exec"), vars(page))
            printed.append((screen.getvalue(), shown))
    return printed


def assert_agrees(printed: str, shown: str) -> None:
    """Words and whole numbers are the same, figures nearly."""
    assert FIGURE.sub("#", printed).split() == FIGURE.sub("#", shown).split()
    figures = [[float(figure) for figure in FIGURE.findall(text)] for text in (printed, shown)]
    assert figures[0] == pytest.approx(figures[1], abs=TOLERANCE)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pages are carried out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.usefixtures("undrawn")
def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    printed = carry_out(PAGE)
    assert len(printed) == 10
    for out, shown in printed:
        assert_agrees(out, shown or "")
    assert capsys.readouterr().err == ""  # no terminal, no progress


def test_what_is_shown_is_compared() -> None:
    assert_agrees("round 2 0.31\n", "round  2 0.33")
    for wrong in ("round 3 0.31", "round 2 0.51", "round 2", "2 0.31"):
        with pytest.raises(AssertionError):
            assert_agrees("round 2 0.31", wrong)
    assert [shown for _, shown in cells("```python\n1\n```\n\ntext\n\n```text\n2\n```\n")] == [None]


@pytest.mark.usefixtures("undrawn")
def test_the_readme(folder: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [f"{user},{item},{day}" for user in range(30) for day, item in enumerate(draw.permutation(100)[:30])]
    (folder / "ratings.csv").write_text("\n".join(["user,item,timestamp", *rows]) + "\n")
    ((_, _),) = carry_out(README)
    (run,) = (folder / "runs").iterdir()
    assert run.name.startswith("ratings-auto-strict-") and (run / "report.html").exists()
