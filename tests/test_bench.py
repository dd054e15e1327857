"""`fedem bench`: what it writes, how it goes on, what it refuses, and its exit code; benchmarks here are made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from benches import MACHINE, document_of, growth_of, measured, row_of

from fedem_flwr.bench import catalogue, pictures
from fedem_flwr.bench.document import read_document
from fedem_flwr.bench.machine import Machine, cores_here
from fedem_flwr.bench.pictures import picture
from fedem_flwr.bench.rows import Row
from fedem_flwr.bench.suite import Benchmark, Setting
from fedem_flwr.bench.tables import markdown
from fedem_flwr.cli import main
from fedem_flwr.errors import FedemError
from fedem_flwr.version import __version__

OURS = [1.0 + 0.01 * at for at in range(7)]


def named(name: str, make: Callable[[Setting], Row] | None = None, **more: object) -> Benchmark:
    def measure(benchmark: Benchmark, setting: Setting) -> Row:
        return make(setting) if make else row_of(name, OURS, [2 * each for each in OURS], [1.0] * 7)

    return Benchmark(name, f"what {name} is", measure, **more)  # type: ignore[arg-type]


def fails(setting: Setting) -> Row:
    raise FedemError("there is no room for it")


SUITE = (
    named("a/ratio"),
    named("a/absent", needs={"no_such_package": "pip install no-such-package"}),
    named("b/failing", fails),
    named("b/growth", lambda setting: growth_of("b/growth", (1, 2, 4), [1.0] * 7)),
    named("b/long", quick=False),
)


def suite(monkeypatch: pytest.MonkeyPatch, benchmarks: Sequence[Benchmark]) -> None:
    monkeypatch.setattr(catalogue, "BENCHMARKS", tuple(benchmarks))


def fedem(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["bench", *map(str, words)])
    return int(left.value.code or 0)


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures stay empty, where they are not what is tested: encoding them takes most of the time."""
    monkeypatch.setattr(pictures, "image_bytes", lambda figure, image_format: b"")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    suite(monkeypatch, SUITE)


@pytest.mark.usefixtures("small")
def test_all_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedem("--quick", "--out", tmp_path / "new") == 0
    said = capsys.readouterr()
    document = read_document(tmp_path / "new")
    assert document.finished and document.version == __version__ and document.request.threads == cores_here()
    assert [row.name for row in document.rows] == ["a/ratio", "b/growth"]
    assert document.left_out == {
        "a/absent": "no_such_package is not installed: pip install no-such-package",
        "b/failing": "there is no room for it",
        "b/long": "it takes minutes: measured without --quick",
    }
    tree = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert tree["rows"][0]["series"][0]["wall"] == OURS, "every sample"
    assert tree["rows"][0]["figures"]["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert tree["rows"][1]["figures"]["exponent"]["median"] == pytest.approx(1)
    assert tree["machine"]["cores"] == cores_here() and "torch" in tree["machine"]["versions"]
    for words in ("1 of 5: a/ratio: what a/ratio is", "2 times as fast", "size ^ 1.00"):
        assert words in said.err
    for words in ("left out: b/failing: there is no room for it", "2 (2 to 2)", "threads a side"):
        assert words in said.out
    page = (tmp_path / "new" / "bench.md").read_text()
    assert "| a/ratio | ours: 1.03 s | theirs: 2.06 s | 2 (2 to 2) | 2 (2 to 2) |" in page
    assert "no_such_package is not installed" in page and "![ratios and growth](bench.svg)" in page
    assert (tmp_path / "new" / "bench.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.usefixtures("unpainted")
def test_a_killed_one_loses_the_row_it_was_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []

    def noted(name: str, dies: bool = False) -> Benchmark:
        def make(setting: Setting) -> Row:
            begun.append(name)
            if dies:
                raise KeyboardInterrupt
            return row_of(name, OURS, OURS)

        return named(name, make)

    suite(monkeypatch, [noted("a/1"), noted("a/2", dies=True), noted("a/3")])
    assert fedem("--out", tmp_path) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert f"`fedem bench --threads {cores_here()} --turns 7 --out {tmp_path}` goes on from there" in said
    found = read_document(tmp_path)
    assert [row.name for row in found.rows] == ["a/1"] and not found.finished
    suite(monkeypatch, [noted("a/1"), noted("a/2"), noted("a/3")])
    assert fedem("--out", tmp_path) == 0
    assert begun == ["a/1", "a/2", "a/2", "a/3"]
    assert [row.name for row in read_document(tmp_path).rows] == ["a/1", "a/2", "a/3"]
    assert fedem("--out", tmp_path) == 2, "a finished one is not overwritten"
    assert "is finished: choose another --out" in capsys.readouterr().err


def test_another_one_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document_of([row_of("a/1", OURS, OURS)]).model_copy(update={"finished": False}).write(tmp_path)
    suite(monkeypatch, [named("a/1")])
    assert fedem("--out", tmp_path) == 2
    assert "is another one (options, version or machine)" in capsys.readouterr().err


def test_a_comparison_has_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, slow in (("old", 1.0), ("new", 1.0), ("slow", 2.0)):
        (tmp_path / name).mkdir()
        measured(len(name), "little", slow=slow).write(tmp_path / name)
    assert fedem(tmp_path / "new", "--compare", tmp_path / "old" / "bench.json") == 0
    assert capsys.readouterr().err == ""
    assert fedem(tmp_path / "slow", "--compare", tmp_path / "old") == 1
    said = capsys.readouterr()
    assert said.err == f"fedem: slower than in {tmp_path / 'old'}: row/0\n"
    assert "slower" in said.out and "Against the older measurement" in said.out


@pytest.mark.usefixtures("small", "unpainted")
def test_a_new_measurement_is_compared_and_its_page_says_so(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    old = document_of([row_of("a/ratio", OURS, [8 * each for each in OURS])], Machine.here(), threads=cores_here())
    old.write(tmp_path / "old")
    assert fedem("--quick", "--only", "a", "--compare", tmp_path / "old", "--out", tmp_path / "new", "--quiet") == 1
    assert "| a/ratio | ratio | 8 | 2 |" in (tmp_path / "new" / "bench.md").read_text()


BAD = {
    "missing": (None, "cannot read"),
    "no JSON": ('{"rows": [', "is no JSON, or cut short"),
    "nested": ("[" * 100_000, "is no JSON, or cut short"),
    "another file": ('{"a": 1}', "is no bench.json"),
    "a list": ("[1, 2]", "is no bench.json"),
    "another format": ('{"rows": [], "machine": {}, "format": 2}', "has format 2, and this version reads 1"),
    "no request": ('{"rows": [], "machine": {}, "format": 1}', "is damaged"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_gets_one_line(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, expected = BAD[kind]
    path = tmp_path / "old.json"
    if text is not None:
        path.write_text(text)
    assert fedem("--compare", path, "--out", tmp_path / "new") == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1 and not (tmp_path / "new").exists(), "nothing was measured"


@pytest.mark.parametrize("value", [-1.0, 0, float("nan"), float("inf"), "fast", None])
def test_a_damaged_sample_gets_one_line(tmp_path: Path, value: object, capsys: pytest.CaptureFixture[str]) -> None:
    path = document_of([row_of("a", OURS, OURS)]).write(tmp_path)
    tree = json.loads(path.read_text())
    tree["rows"][0]["series"][1]["wall"][3] = value
    path.write_text(json.dumps(tree))
    assert fedem(path) == 2
    said = capsys.readouterr().err
    assert "is damaged: rows.0.series.1.wall.3: " in said and said.count("\n") == 1


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--only", "a/ration"], "--only a/ration: no benchmark has this name; did you mean 'a/ratio'?"),
        (["old", "--quick"], "old is measured already"),
        (["--compare", "old", "--threads", "1"], "this one is without: their sizes differ"),
        (["--compare", "old", "--quick", "--threads", "3"], "had 2 threads a side, and this one 3"),
    ],
)
def test_what_cannot_be_asked_for(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old").mkdir()
    document_of([row_of("a", OURS, OURS)]).write(Path("old"))
    assert fedem(*words) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
    assert [each.name for each in tmp_path.iterdir()] == ["old"]


@pytest.mark.usefixtures("small")
def test_the_list_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fedem("--list", "--only", "b") == 0
    said = capsys.readouterr().out
    assert "b/growth" in said and "a/ratio" not in said and not list(tmp_path.iterdir())


def test_text_of_a_file_stays_text() -> None:
    row = row_of("a|b", OURS, OURS, setting="<img src=x> `x` [a](b)")
    page = markdown(document_of([row], MACHINE.model_copy(update={"processor": "x\x1b[31m"})), "bench.svg")
    assert "a\\|b" in page and "&lt;img" in page and "\\[a](b)" in page and "\x1b" not in page


def test_a_picture_needs_rows() -> None:
    assert picture(document_of([])) is None
    assert (picture(document_of([growth_of("g/n", (1, 2), [1.0, 1.1])]), "png") or b"").startswith(b"\x89PNG")
