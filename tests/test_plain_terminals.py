"""Terminals without dashes and blocks: whatever is printed degrades, and nothing fails after a whole training."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import TINY_OPTIONS

from fedem_flwr.cli import main
from fedem_flwr.terminal import console
from fedem_flwr.text import plain


class Terminal:
    """Standard output and error of one encoding, as Python makes them: strict."""

    def __init__(self, encoding: str, patch: pytest.MonkeyPatch) -> None:
        self.encoding = encoding
        self.streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
        patch.setattr(sys, "stdout", self.streams[0])
        patch.setattr(sys, "stderr", self.streams[1])

    def run(self, *arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(each) for each in arguments])
        shown = ""
        for stream in self.streams:
            stream.flush()
            shown += stream.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]
        return int(stopped.value.code or 0), shown


@pytest.mark.usefixtures("undrawn")
def test_every_command_on_a_plain_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    terminal = Terminal("ascii", monkeypatch)
    ratings = tmp_path / "räting….csv"
    ratings.write_text("user,item\n" + "".join(f"u–{u},ї{(u + 3 * i) % 31}\n" for u in range(12) for i in range(12)))
    out = tmp_path / "run"
    options = [*TINY_OPTIONS[3:-2], "--set=evaluation.local_only=false", f"--set=evaluation.cache_dir={tmp_path / 'c'}"]
    commands: list[tuple[int, list[object]]] = [
        (
            0,
            [
                "run",
                *options,
                f"--dataset={ratings}",
                "--method=fedials",
                "--against=fedmf",
                "--rounds=2",
                f"--out={out}",
            ],
        ),
        (0, ["resume", out]),
        (0, ["recommend", out, "--user=u–1"]),
        (0, ["recommend", out, "--user=u–1", "--json"]),
        (0, ["data", "info", ratings]),
        (0, ["data", "list"]),
        (2, ["deploy", "status", f"--dir={tmp_path / 'nö'}"]),
        (2, ["recommend", out, "--user=nobody…"]),
        (2, ["run", "--methöd=x"]),
        (0, ["deploy", "certs", f"--out={tmp_path / 'certs–'}", "--nodes=1"]),
        *((0, [*command, "--help"]) for command in ([], ["run"], ["audit"], ["recommend"], ["deploy", "node"])),
    ]
    for expected, command in commands:
        code, shown = terminal.run(*command)
        assert code == expected, shown
    for word in ("beats", "rank", "sparsity", "Usage", "u-1", "report: "):
        assert word in shown
    assert "unexpected" not in shown and "\\u2500" not in shown  # frames are drawn with - and |


def test_an_audit_on_a_plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedem_flwr.cli import audit as command
    from fedem_flwr.experiment import audit

    class Audited:
        steps, base = 1, type("Base", (), {"data": type("Data", (), {"dataset": "x–y"})})

        def leak_table(self, on_step: object) -> list[dict[str, object]]:
            return [{"method": "fedmf", "paper HR@10": 0.5}, {"method": "EASE", "strict HR@10": 0.25}]

    monkeypatch.setattr(audit.Audit, "prepare", lambda options: Audited())
    monkeypatch.setattr(command, "_out", console())
    code, shown = Terminal("ascii", monkeypatch).run("audit", "--rounds=1", "--quiet")
    assert code == 0 and "0.500" in shown


@given(st.text(), st.sampled_from(["ascii", "latin-1", "cp1252", "koi8-r", "shift_jis"]))
def test_what_can_be_written_stays_and_the_rest_is_replaced(text: str, encoding: str) -> None:
    shown = plain(text, encoding)
    shown.encode(encoding)
    try:
        assert shown == text.encode(encoding).decode(encoding)
    except UnicodeEncodeError:
        assert shown != text


def test_plainer_characters() -> None:
    assert plain("a – b… ρ ≥ 1 │ ┏━┓ é \U0001f600", "ascii") == "a - b... rho >= 1 | +-+ \\xe9 \\U0001f600"
    assert plain("a – é × ρ", "latin-1") == "a - é × rho" and plain("– ρ", "utf-8") == "– ρ"
