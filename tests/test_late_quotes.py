"""Quotes are quotes wherever the first one stands, be it long after the rows that the layout was worked out from."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedem_flwr.data import Columns, Interactions, read_interactions
from fedem_flwr.data import texts as texts_module
from fedem_flwr.errors import InputError

NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe", "^": "another", " ": "blanks", "  ": "more blanks"}
PLAIN_ROWS = 250  # more than are looked at


@pytest.fixture(params=[1 << 24, 700])
def piece_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first quote is in the first piece, or in a later one."""
    monkeypatch.setattr(texts_module, "PIECE_BYTES", request.param)
    monkeypatch.setattr(texts_module, "HEAD_BYTES", 6000)


def plain_rows(separator: str) -> str:
    return "".join(separator.join((f"u{at % 9}", f"i{at % 5}", "3")) + "\n" for at in range(PLAIN_ROWS))


def read(path: Path, separator: str, below: str) -> Interactions:
    path.write_text(separator.join(("user", "item", "rating")) + "\n" + plain_rows(separator) + below)
    return read_interactions(path, Columns(separator="^") if separator == "^" else None)


def items(data: Interactions) -> list[str]:
    return [str(each) for each in data.item_ids[data.item][PLAIN_ROWS:]]


@pytest.mark.usefixtures("piece_bytes")
@pytest.mark.parametrize("separator", NAMES, ids=list(NAMES.values()))
def test_quotes_that_come_late(tmp_path: Path, separator: str) -> None:
    labels = ["i1", f"a{separator}b", 'the ""best""', "", *(["two\nlines"] if separator.strip(" ") else [])]
    below = "".join(separator.join((f'"u{at}"', f'"{label or "i2"}"', "4")) + "\n" for at, label in enumerate(labels))
    data = read(tmp_path / "rows", separator, below)
    assert items(data) == [(label or "i2").replace('""', '"') for label in labels]
    assert data.user_ids[data.user[PLAIN_ROWS]] == "u0"


@pytest.mark.usefixtures("piece_bytes")
@pytest.mark.parametrize("separator", ["\t", "|", " "])
def test_late_quotes_that_are_letters(tmp_path: Path, separator: str) -> None:
    """Between tabs, pipes and blanks a quote that is not closed is part of a label, and so are those below it."""
    below = "".join(separator.join((f"u{at}", label, "4")) + "\n" for at, label in enumerate(('"b', '12"', '"c"')))
    assert items(read(tmp_path / "rows", separator, below)) == ['"b', '12"', '"c"']


@pytest.mark.usefixtures("piece_bytes")
@pytest.mark.parametrize("below", ['u1,"b,4\nu2,c,4\n', 'u1,"b,4\nu2,"c,4\n'], ids=["one", "two"])
def test_a_late_quote_that_is_not_closed_is_named(tmp_path: Path, below: str) -> None:
    """A second one does not close it: the row between them would be lost."""
    with pytest.raises(InputError, match=rf"line {PLAIN_ROWS + 2}: a quote is opened and not closed: 'u1,\"b,4'"):
        read(tmp_path / "rows", ",", below)


def test_comments_and_lines_between_blanks_hold_any_quotes(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('# made by "hand\n"user" "item"\n"1" "the film"\n# "half\n2   "b  c"\n\n')
    data = read_interactions(tmp_path / "rows")
    assert (data.user_ids.tolist(), data.item_ids.tolist()) == (["1", "2"], ["the film", "b  c"])
