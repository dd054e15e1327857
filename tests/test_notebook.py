"""Progress in a notebook: IPython and its widgets are stood in for, rich is the real one."""

from __future__ import annotations

import io
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from fedem_flwr.report import steps as module
from fedem_flwr.report.progress import RoundProgress, progress_console, task_progress


class Cell:
    """What a notebook's cell shows: displayed things, and what was drawn last into each widget."""

    def __init__(self) -> None:
        self.shown: list[Any] = []
        self.widgets: list[Any] = []
        self.inside: Any = None

    def display(self, thing: Any) -> None:
        """As IPython's: into the widget that is entered, else into the cell."""
        if self.inside is not None:
            self.inside.drawn = thing
        else:
            self.shown.append(thing)

    def lines(self) -> list[str]:
        """The texts in the cell itself."""
        texts = [thing.text for thing in self.shown if hasattr(thing, "html")]
        return [line for text in texts for line in text.splitlines() if line]


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A notebook without widgets."""
    cell = Cell()
    for name in ("IPython", "IPython.display"):
        stand_in = ModuleType(name)
        vars(stand_in)["display"] = cell.display
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    return cell


@pytest.fixture
def widgets(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A notebook with ipywidgets."""

    class Output:
        drawn: Any = None

        def __init__(self) -> None:
            cell.widgets.append(self)

        def __enter__(self) -> None:
            cell.inside = self

        def __exit__(self, *error: object) -> None:
            cell.inside = None

        def clear_output(self, wait: bool) -> None:
            self.drawn = None

    stand_in = ModuleType("ipywidgets")
    vars(stand_in)["Output"] = Output
    monkeypatch.setitem(sys.modules, "ipywidgets", stand_in)
    monkeypatch.setattr(module, "find_spec", lambda name: ModuleSpec(name, None))
    return cell


def follow(console: Console | None) -> None:
    """What a run of twenty rounds shows."""
    with RoundProgress(20, description="fedem", console=console, quiet=console is None) as progress:
        for number in range(1, 21):
            progress.update(number, {"round": number, "train_loss": 0.5, "validation": {"ndcg@10": number / 100}})


@pytest.mark.filterwarnings("error")
def test_a_bar_is_drawn_to_its_end(widgets: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    follow(progress_console(None))
    (widget,) = widgets.widgets
    drawn = widget.drawn.text
    assert "20/20" in drawn and "ndcg@10 0.2000" in drawn and "ETA 0:00" in drawn
    with task_progress("reading", 5, in_bytes=False, console=progress_console(True)) as advance:
        advance(5)
    assert "reading" in widgets.widgets[1].drawn.text and "5/5" in widgets.widgets[1].drawn.text
    assert capsys.readouterr() == ("", "")


@pytest.mark.filterwarnings("error")
def test_without_widgets_there_are_lines(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    follow(progress_console(None))
    lines = cell.lines()
    assert len(lines) == 11 and lines[0].startswith("fedem: round 1/20") and lines[-1].startswith("fedem: round 20/20")
    with task_progress("reading", 5, console=progress_console(None)) as advance:
        advance(5)
    assert cell.lines()[-1] == "reading ..."
    assert capsys.readouterr() == ("", "")


def test_silence(widgets: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    assert progress_console(False) is None
    follow(None)
    assert widgets.shown == widgets.widgets == [] and capsys.readouterr() == ("", "")


def test_where_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress_console(None) is None and progress_console(True) is not None
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert progress_console(None) is not None and progress_console(False) is None
