"""Text of others, in ids, names and errors: a terminal, a log and a report show it, and obey none of it."""

from __future__ import annotations

import io
import json
import logging
import unicodedata
from pathlib import Path

import pytest
from example_runs import example_run
from flwr.app import Error, Message
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from tampering import with_fault
from worlds import TINY_OPTIONS

import fedem_flwr as fedem
from fedem_flwr.cli import main
from fedem_flwr.cli.deployments import _log_to_stderr
from fedem_flwr.errors import InputError
from fedem_flwr.network.processes import FEDEM, Child, last_words
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.drawing import image_bytes, panels
from fedem_flwr.report.html import render_report
from fedem_flwr.report.progress import RoundProgress, task_progress
from fedem_flwr.terminal import console
from fedem_flwr.text import SafeFormatter, one_line, visible

pytestmark = pytest.mark.attacks
EVIL = "\x1b[2J\x1b]0;pwned\x07\x9b31m\u202egnp.exe\u2066\r\nfedem: all is well[red]:bomb:[/nothing]$x^"
ANY = st.text(st.characters(codec=None), max_size=40) | st.sampled_from([EVIL, "\ud800", "a\u200bb", "[/]", "\x1b[31m"])
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def unsafe(text: str, kept: str = "\n") -> set[str]:
    """The characters that no text may show: by what Unicode says of each, and not by the pattern that is tested."""
    return {
        one
        for one in text
        if one not in kept
        and (
            unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp")
            or unicodedata.bidirectional(one) in TURNING
            or one in "\u200b\u200e\u200f\u061c\ufeff"
        )
    }


@given(ANY)
def test_what_is_shown_has_no_such_character(text: str) -> None:
    assert not unsafe(visible(text), kept="") and not unsafe(one_line(text), kept="")
    assert visible(visible(text)) == visible(text) and len(one_line(text, 20)) <= 20
    if text.isprintable():
        assert visible(text) == text
    visible(text).encode("utf-8")


def test_and_says_what_stood_there() -> None:
    assert visible("a\x1b[2J\u202e\U000e0041\n") == r"a\x1b[2J\u202e\U000e0041\n"
    assert visible("زبان\u200cها 👩\u200d🔬") == "زبان\u200cها 👩\u200d🔬", "joiners belong to words"


@given(ANY)
def test_a_terminal_gets_text_and_nothing_else(text: str) -> None:
    """As a line, in cells and titles of tables, on a bar, and in an error."""
    file = io.StringIO()
    screen = console(file=file, force_terminal=True, width=60, legacy_windows=False)
    table = Table(text, title=text, caption=Text(text))
    table.add_row(text)
    table.add_row(Text(text, style="bold"))
    screen.print(table)
    screen.print(text, soft_wrap=True)
    plain = io.StringIO()
    with RoundProgress(3, description=text, console=console(file=plain)) as progress:
        progress.update(1, {})
    with task_progress(text, 3, console=console(file=plain)):
        pass
    coloured = file.getvalue()
    for style in ("0", "1", "2", "3", "1;3", "2;3"):  # rich's own
        coloured = coloured.replace(f"\x1b[{style}m", "")
    assert not unsafe(coloured + plain.getvalue() + str(InputError(text)), kept="\n\t")


def test_a_terminal_keeps_all_of_a_text_and_rich_its_own_signs() -> None:
    """Escapes have room in tables, names of emoji stay, and what rich itself says to a terminal is obeyed."""
    plain, file = io.StringIO(), io.StringIO()
    table = Table("name")
    table.add_row("\x1b[2J" * 4)
    console(file=plain, width=60).print(table)
    lines = plain.getvalue().splitlines()
    assert r"\x1b[2J" * 4 in lines[3] and len({len(line) for line in lines}) == 1
    screen = console(file=file, force_terminal=True, width=60, legacy_windows=False)
    screen.print(":bomb: [red] 12")
    assert ":bomb: [red] 12" in file.getvalue()
    screen.show_cursor(False)
    assert file.getvalue().endswith("\x1b[?25l")
    assert one_line("a\n" + "b" * 8, 10) == "a " + "b" * 8 and one_line("b" * 11, 10) == "b" * 7 + "..."


@given(ANY, ANY)
def test_no_line_of_a_log_begins_as_others_please(text: str, more: str) -> None:
    line = SafeFormatter("12:00 node-0 E %(message)s").format(
        logging.LogRecord("fedem", logging.ERROR, "", 0, "round 1: %s\n%s", (text, more), None)
    )
    first, *rest = line.split("\n")
    assert first.startswith("12:00 node-0 E round 1: ") and all(each.startswith("    ") for each in rest)
    assert not unsafe(line, kept="\n\t")


def test_neither_does_one_of_flowers(capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(name) for name in ("fedem", "flwr")]
    before = [(logger, logger.handlers, logger.level) for logger in loggers]
    try:
        _log_to_stderr("node-0")
        for logger in loggers:
            logger.error(EVIL)
    finally:
        for logger, handlers, level in before:
            logger.handlers = handlers
            logger.setLevel(level)
    told = capsys.readouterr().err
    assert not unsafe(told) and told.count(" node-0 E ") == 2 and told.count("\n    fedem: ") == 2


def test_a_nodes_error_is_not_the_servers_word(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    formatter = SafeFormatter("12:00 server E %(message)s")
    said = formatter.format(logging.LogRecord("fedem", logging.ERROR, "", 0, "node 3: %s", (EVIL,), None))
    log.write_text(f"12:00 server I starts\nfedem: too few nodes contribute\n{said}\n")
    assert last_words(log, of_failure=True) == "too few nodes contribute"
    log.write_text(f"12:00 server I starts\n{said}\n")
    shown = last_words(log, of_failure=True)
    assert not unsafe(shown, kept="") and shown.startswith("12:00 server E node 3: ")
    log.write_text("\x1b[91mERROR\x1b[0m :  a node says\nfedem: no errors\n")  # Flower's, which lets lines begin so
    assert Child("SuperLink", ["flower-superlink"], log).reason() == "fedem: no errors"
    assert Child("node-0", [*FEDEM, "deploy", "node"], log).reason() == "no errors"


def test_a_nodes_error_in_a_run(tmp_path: Path) -> None:
    def fails(reply: Message, message: Message) -> list[Message]:
        return [Message(Error(2, EVIL), reply_to=message)]

    fault = with_fault(tmp_path, "fedmf", fails, 2, run={"users_per_node": 10, "rounds": 2})
    assert [one["node"] for one in fault.outcome.failures] == ["node of users 20–29"]
    assert not unsafe(fault.outcome.failures[0]["reason"], kept="")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Over a data set whose users and items are called so that a careless terminal is taken over."""
    folder = tmp_path_factory.mktemp("texts")
    evil = "".join(each for each in EVIL if each >= " ")  # a text with others is refused unread
    rows = [f"u{evil}{user}\ti{evil}{item}\t5" for user in range(20) for item in range(30) if (user + item) % 3]
    (folder / "rows.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    options = [option for option in TINY_OPTIONS if "synthetic" not in option]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr("fedem_flwr.report.plots.image_bytes", lambda figure, image_format: b"")
        main(
            [
                "run",
                f"--dataset={folder / 'rows.tsv'}",
                "--method=fedmf",
                "--rounds=1",
                *options,
                "--quiet",
                f"--out={folder / '[bold]run'}",
                "--set=data.header=false",
                "--set=data.separator=\t",
            ]
        )
    assert not stopped.value.code
    return folder / "[bold]run"


@pytest.mark.usefixtures("undrawn")
def test_ids_and_names_on_the_screen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = Split.load(run / "split")
    user, item = str(split.user_ids[3]), str(split.item_ids[3])
    assert unsafe(user) and unsafe(item)
    names = run.parent / "names.csv"
    names.write_text(f"{item},{user}\n", encoding="utf-8")
    calls = (
        ["recommend", run, "--user", user, "--names", names],
        ["recommend", run, "--user", user, "--json"],
        ["recommend", run, "--user", f"{EVIL}nobody"],
        ["recommend", run, "--history", f"{item},{EVIL}nothing"],
        ["resume", run, "--quiet"],
        ["run", "--method", EVIL],
    )
    for arguments in calls:
        with pytest.raises(SystemExit):
            main([str(argument) for argument in arguments])
        screen = capsys.readouterr()
        assert not unsafe(screen.out + screen.err), arguments
        if "--json" in arguments:
            assert json.loads(screen.out)["user"] == user, "data come out as they are"
        if "resume" in arguments:
            assert "[bold]run" in screen.out, "no markup"


@pytest.mark.usefixtures("undrawn")
def test_a_report_shows_them_and_nothing_turns_around(tmp_path: Path) -> None:
    directory = example_run(tmp_path / "run")
    summary = directory.read_summary()
    evil = {"dataset": EVIL, "method": EVIL, "command": EVIL, "warnings": [EVIL], "notes": [EVIL]}
    directory.write_summary({**summary, **evil, "controls": {**summary["controls"], EVIL: summary["controls"]["ease"]}})
    directory.write_diagnostics({"failures": [{"round": 1, "node": EVIL, "reason": EVIL}]})
    page = render_report(directory.path)
    assert not unsafe(page, kept="\n\t") and "\\u202egnp.exe" in page and "[red]" in page


def test_a_name_with_dollars_is_no_formula() -> None:
    with panels(1) as (figure, axes):
        axes[0].set_title(r"$\frac{$ and $x^")
        assert b"<svg" in image_bytes(figure, "svg")


def test_an_unforeseen_error_and_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError(EVIL)

    monkeypatch.setattr("fedem_flwr.cli.run.run", fails)
    monkeypatch.setenv("FEDEM_LOG", "DEBUG")
    with pytest.raises(SystemExit):
        main(["run"])
    told = capsys.readouterr().err.splitlines()
    assert not unsafe("\n".join(told)) and [line[:6] for line in told].count("fedem:") == 1, told


def test_what_python_shows(run: Path) -> None:
    with pytest.raises(InputError) as refused:
        fedem.load(run).recommender().similar_items(f"{EVIL}?")
    assert not unsafe(str(refused.value)) and "\\x1b" in str(refused.value)
