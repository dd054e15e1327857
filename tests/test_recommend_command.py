"""`fedem recommend`: shapes, tables, history files, and options that cannot be."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from served_world import closed_form_run

from fedem_flwr import Recommender
from fedem_flwr.cli import main
from fedem_flwr.cli.histories import read_histories
from fedem_flwr.cli.recommend import read_names
from fedem_flwr.config import resolve
from fedem_flwr.data import read_interactions
from fedem_flwr.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
Fedem = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def ials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return closed_form_run(tmp_path_factory.mktemp("ials"))


@pytest.fixture(scope="module")
def recommender(ials: Path) -> Recommender:
    return Recommender.load(ials)


@pytest.fixture
def fedem(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fedem:
    """Run the command line in this process, in a folder of its own; gives code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["recommend", *(str(argument) for argument in arguments)])
        screen = capsys.readouterr()
        return int(stopped.value.code or 0), screen.out, screen.err

    return run


def test_json_shapes(fedem: Fedem, ials: Path, recommender: Recommender, tmp_path: Path) -> None:
    a, b, c = recommender.items[:3]

    def listed(*history: str) -> list[dict[str, object]]:
        return [{"item": item, "score": score} for item, score in recommender.recommend(history, top=4)]

    code, out, err = fedem(ials, "--history", f"{a}, {b},{c}", "--top", 4, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"history": [a, b, c], "items": listed(a, b, c)}
    (tmp_path / "history.txt").write_text(f"item\n{a}\n\n{b}\n{c}\n")
    assert fedem(ials, "--history", "history.txt", "--top", 4, "--json")[1] == out
    (tmp_path / "many.csv").write_text(f"user,item\nann,{a}\nbob,{c}\nann,{b}\n")
    many = json.loads(fedem(ials, "--history", tmp_path / "many.csv", "--top", 4, "--json")[1])
    assert [each["user"] for each in many] == ["ann", "bob"]
    for each, history in zip(many, ([a, b], [c]), strict=True):
        assert [item["item"] for item in each["items"]] == [item["item"] for item in listed(*history)]
    own = json.loads(fedem(ials, "--user", "7", "--json")[1])
    assert own == {"user": "7", "items": [entry._asdict() for entry in recommender.recommend_user("7")]}


def test_tables_names_and_warnings(fedem: Fedem, ials: Path, recommender: Recommender, tmp_path: Path) -> None:
    a, b = recommender.items[:2]
    names = {item: f"Film [b]{item}[/b], The" for item in recommender.items}
    (tmp_path / "u.item").write_bytes("".join(f"{i}|{name}|x\n" for i, name in names.items()).encode() + b"|\xe9|\n")
    best = recommender.recommend([a, b], top=3)
    code, out, err = fedem(ials, "--history", f"{a} {b} nix", "--top", 3, "--names", "u.item")
    assert code == 0 and err == "fedem: unknown items were left out: nix\n"
    assert all(names[each.item] in out and f"{each.score:.4f}" in out for each in best)
    found = json.loads(fedem(ials, "--history", f"{a},{b}", "--top", 3, "--names", "u.item", "--json")[1])
    assert [each["name"] for each in found["items"]] == [names[each.item] for each in best]
    (tmp_path / "other.csv").write_text("nix,Name\n")
    code, out, err = fedem(ials, "--user", 7, "--names", "other.csv", "--json")
    assert code == 0 and "other.csv names none of these items" in err and json.loads(out)["items"][0]["name"] is None


@pytest.mark.parametrize("option", ["--include-seen", "--no-exclude-seen"])
def test_seen_items_on_request(option: str, fedem: Fedem, ials: Path, recommender: Recommender) -> None:
    every = ",".join(recommender.items)
    code, out, err = fedem(ials, "--history", every)
    assert code == 2 and out == "" and "nothing is left" in err
    assert len(json.loads(fedem(ials, "--history", every, option, "--top", 5, "--json")[1])["items"]) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["exactly one of --user", "--history"]),
        (["--user", "7", "--history", "1"], ["exactly one of --user", "--history"]),
        (["--history", "missing.csv"], ["missing.csv", "no such file"]),
        (["--history", "folder/missing"], ["folder/missing", "no such file"]),
        (["--history", ""], ["--history is empty"]),
        (["--history", " , "], ["the history is empty"]),
        (["--history", "empty.txt"], ["empty.txt", "the file is empty"]),
        (["--history", "nix"], ["no item of synthetic", "'nix'"]),
        (["--history", "headless.csv"], ["headless.csv, line 1", "header"]),
        (["--history", "short.csv"], ["short.csv, line 3", "truncated"]),
        (["--history", "bare.csv"], ["bare.csv", "no rows"]),
        (["--history", "users.csv"], ["the history of user 'ann' holds no item"]),
        (["--history", "1", "--names", "missing.csv"], ["missing.csv: no such file"]),
        (["--history", "1", "--names", "."], [". is a folder"]),
        (["--history", "1", "--names", "empty.txt"], ["empty.txt is empty"]),
        (["--history", "1", "--names", "single.txt"], ["single.txt, line 1", "no name"]),
        (["--user", "nobody"], ["user 'nobody' is not in synthetic"]),
        (["--user", "7", "--top", "0"], ["--top"]),
    ],
)
def test_bad_options(options: list[str], words: list[str], fedem: Fedem, ials: Path, tmp_path: Path) -> None:
    files = {
        "empty.txt": "\n",
        "headless.csv": "1,2\n1,3\n",
        "short.csv": "user,item\nann,1\nbob\n",
        "bare.csv": "user,item\n",
        "users.csv": "user,item\nann,nox\nbob,nix\n",
        "single.txt": "1\n2\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    code, out, err = fedem(ials, *options)
    assert (code, out) == (2, "") and err.startswith("fedem: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("7\n8\n", {None: ["7", "8"]}),
        ("item\n7\n8\n", {None: ["7", "8"]}),
        ("\ufeffItem_ID\r\n7\r\n", {None: ["7"]}),
        ("rating,item\n5,7\n4,8\n", {None: ["7", "8"]}),
        ('user,item,note\nu,"7,5",x\nv,8,\n', {"u": ["7,5"], "v": ["8"]}),
        ("itemId\tuserId\n7\tu\n8\tu\n", {"u": ["7", "8"]}),
        ("user::item\nu::7\n", {"u": ["7"]}),
        ("a song\nanother song\n", {None: ["a song", "another song"]}),
    ],
)
def test_history_files(text: str, wanted: dict[str | None, list[str]], tmp_path: Path) -> None:
    (tmp_path / "history").write_text(text, encoding="utf-8")
    assert read_histories(str(tmp_path / "history")) == wanted


def test_one_reader_for_training_and_serving(tmp_path: Path) -> None:
    """Times order the rows; names of columns, compressions and forms are those of training; zeros are dropped."""
    rows = "who,asin,overall,date\nann,7,5,2020-01-02\nann,8,4,2020-01-01\nann,9,0,2020-01-03\nbob,7,1,2019-01-01\n"
    wanted = {"ann": ["8", "7"], "bob": ["7"]}
    (tmp_path / "h.csv.gz").write_bytes(gzip.compress(rows.encode()))
    with pytest.raises(InputError, match="no user column"):
        read_interactions(tmp_path / "h.csv.gz")
    config = resolve({}, {"data": {"user_column": "who"}})
    assert read_histories(str(tmp_path / "h.csv.gz"), config) == wanted
    strict = config.changed("data", min_rating=4.5)
    assert read_histories(str(tmp_path / "h.csv.gz"), strict) == {"ann": ["7"], "bob": []}
    (tmp_path / "h.jsonl").write_text('{"user": "u", "item": 2, "time": 9}\n{"user": "u", "item": 1, "time": 8}\n')
    assert read_histories(str(tmp_path / "h.jsonl"), config) == {"u": ["1", "2"]}


def test_one_unknown_user_of_many_is_left_out(
    fedem: Fedem, ials: Path, recommender: Recommender, tmp_path: Path
) -> None:
    a, b = recommender.items[:2]
    (tmp_path / "many.csv").write_text(f"user,item\nann,{a}\nbob,nix\ncat,{b}\ncat,nix\n")
    code, out, err = fedem(ials, "--history", "many.csv", "--json")
    assert code == 0 and [each["user"] for each in json.loads(out)] == ["ann", "cat"]
    assert "no item of these users is known, so they get no list: bob" in err and "left out: nix" in err


@pytest.mark.parametrize(
    "data",
    [
        b'id,name,genres\n7,"Am\xc3\xa9lie, La",Comedy|Drama\n',
        b"7|Am\xe9lie, La|01-Jan-2001||\n",
        b"7::Am\xe9lie, La::Comedy|Drama\n",
        b"id\tname\turl\n7\tAm\xc3\xa9lie, La\thttp://x\n",
        b'\xef\xbb\xbf7;"Am\xc3\xa9lie, La"\n',
        gzip.compress(b'8,"Two\nlines"\r\n7,"Am\xc3\xa9lie, La"\r\n'),
    ],
    ids=["commas", "bars", "double-colons", "tabs", "semicolons-bom", "gz"],
)
def test_names_files(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(data)
    assert read_names(tmp_path / "names")["7"] == "Amélie, La"


def test_the_page_is_right(ials: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "recommending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        assert "runs/my-run" in block
        exec(compile(block.replace("runs/my-run", str(ials)), "docs/recommending.md", "exec"), {})
    assert capsys.readouterr().out
