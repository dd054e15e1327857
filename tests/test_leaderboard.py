"""What a comparison leaves: the same figures in all forms, links that lead somewhere, and nothing that is not safe."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from boards import finished
from dying import fedem

import fedem_flwr
from fedem_flwr.config import preset_names
from fedem_flwr.data import KNOWN_DATASETS
from fedem_flwr.leaderboard import pictures
from fedem_flwr.leaderboard.compare import compare_runs
from fedem_flwr.leaderboard.gather import records_of, tables_of
from fedem_flwr.leaderboard.pictures import accuracy_and_cost, convergence, leak_ledger
from fedem_flwr.leaderboard.published import _sources, published

EVIL = "<b>fed&$%_\u202e|"
HITS = {("fedem", 0): 0.62, ("fedem", 1): 0.66, ("fedmf", 0): 0.5, ("fedmf", 1): 0.52}


class Page(HTMLParser):
    """Rows of results as lists of cells' texts, and where links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.links: list[str] = []
        self.hidden: list[bool] = []
        self.headings: list[str] = []
        self._in_cell = self._in_results = self._in_heading = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "table":
            self._in_results = given.get("class") == "results"
            if self._in_results:
                self.tables.append([])
        elif tag == "tr" and self._in_results:
            self.tables[-1].append([])
            self.hidden.append("hidden" in given)
        elif tag in ("td", "th") and self._in_results:
            self.tables[-1][-1].append("")
            self._in_cell = True
        elif tag == "a":
            self.links.append(given["href"] or "")
        elif tag == "h2":
            self._in_heading = True
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False
        elif tag == "h2":
            self._in_heading = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data
        if self._in_heading:
            self.headings[-1] += data


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    runs = [finished(folder / "runs", method, seed, hits) for (method, seed), hits in HITS.items()]
    runs += [finished(folder / "runs", "fedem", 0, 0.97, "paper"), finished(folder / "runs", EVIL, 0, 0.3)]
    compare_runs(runs, folder / "out", command="fedem compare it")
    return folder / "out"


def test_all_forms_have_the_same_figures(board: Path) -> None:
    hits = [HITS["fedem", 0], HITS["fedem", 1]]
    mean, deviation = statistics.mean(hits), statistics.stdev(hits)
    record = json.loads((board / "leaderboard.json").read_text())
    (strict,) = (table for table in record["tables"] if table["protocol"] == "strict")
    assert [row["method"] for row in strict["rows"]][:2] == ["fedem", "fedmf"]
    figure = strict["rows"][0]["figures"]["sampled99/hr@10"]
    assert figure == {"mean": pytest.approx(mean), "std": pytest.approx(deviation), "values": hits}
    text = f"{mean:.4f} ± {deviation:.4f}"
    page = Page((board / "leaderboard.html").read_text())
    row = next(row for table in page.tables for row in table if row[0] == "fedem" and row[1].startswith("2"))
    assert row[5] == text
    assert f"| {text} |" in (board / "leaderboard.md").read_text()
    assert text.replace("±", r"$\pm$") in (board / "leaderboard.tex").read_text()
    lines = list(csv.DictReader((board / "leaderboard-strict.csv").open()))
    assert float(lines[0]["sampled99/hr@10"]) == pytest.approx(mean)
    assert float(lines[0]["sampled99/hr@10 std"]) == pytest.approx(deviation)
    assert {line["method"] for line in lines if line["control"] == "1"} == {"popularity", "EASE"}


def test_protocols_stay_apart_and_published_figures_stand_beside_paper_alone(board: Path) -> None:
    page = Page((board / "leaderboard.html").read_text())
    heads = {heading.split("'")[1]: table[0] for heading, table in zip(page.headings, page.tables, strict=False)}
    assert ("published HR@10" in heads["paper"], "published HR@10" in heads["strict"]) == (True, False)
    assert {line["protocol"] for line in csv.DictReader((board / "leaderboard-paper.csv").open())} == {"paper"}
    assert ".9958" in (board / "leaderboard.md").read_text().split("protocol 'paper'")[1]
    record = json.loads((board / "leaderboard.json").read_text())
    of = {table["protocol"]: table["rows"][0]["published"] for table in record["tables"]}
    assert of["strict"] == [] and of["paper"][0]["hr@10"] == 0.9958 and "Table 1" in of["paper"][0]["source"]


def test_differences_are_there_with_what_they_mean(board: Path) -> None:
    record = json.loads((board / "leaderboard.json").read_text())
    (strict,) = (table for table in record["tables"] if table["protocol"] == "strict")
    found = {(each["method"], each["against"]): each for each in strict["differences"]}
    assert ("fedem", "fedmf") in found and ("fedmf", "EASE") in found
    assert all(
        each["p"] <= each["p_holm"] <= 1 and each["low"] <= each["mean"] <= each["high"] for each in found.values()
    )
    assert "Holm-corrected" in (board / "leaderboard.html").read_text()


def test_each_row_links_to_its_runs(board: Path) -> None:
    page = Page((board / "leaderboard.html").read_text())
    runs = {Path(unquote(link)).parent.name for link in page.links}
    assert len(runs) == len(HITS) + 2
    assert len(page.links) == len(HITS) + 2 + 2 * 4, "of the two rows of one run also their four figures"
    links = re.findall(r"\[\d\]\(([^)]+)\)", (board / "leaderboard.md").read_text())
    assert {Path(unquote(link)).parent.name for link in links} == runs and len(links) == len(runs)
    assert all((board / unquote(link)).resolve().read_text() == "report" for link in (*links, *page.links))


def test_the_page_needs_nothing_and_obeys_nobody(board: Path) -> None:
    text = (board / "leaderboard.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "<b>fed" not in text and "\u202e" not in text and "&lt;b&gt;fed&amp;" in text
    latex, page = (board / "leaderboard.tex").read_text(), (board / "leaderboard.md").read_text()
    assert r"fed\&\$\%\_" in latex and "\\|" in page


def test_a_name_that_a_spreadsheet_would_compute_is_text(tmp_path: Path) -> None:
    compare_runs([finished(tmp_path, "=cmd()", 0, 0.4)], tmp_path / "out")
    assert "'=cmd()" in (tmp_path / "out" / "leaderboard-strict.csv").read_text()


def test_pictures_are_drawn_or_say_why(board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {path.name for path in (board / "figures").iterdir()}
    assert names >= {
        "convergence-ml-100k-strict.svg",
        "groups-ml-100k-strict.svg",
        "cost-ml-100k-strict.svg",
        "leak-ml-100k.svg",
    }
    runs = [finished(tmp_path, "fedem", 0, 0.9, "paper"), finished(tmp_path, "fedmf", 0, 0.5)]
    paper, strict = tables_of(records_of(runs))
    for image in (convergence(strict), accuracy_and_cost(strict), leak_ledger(paper, strict)):
        assert image.startswith(b"<?xml")
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "image_bytes", lambda figure, _: drawn.append(figure) or b"")
    leak_ledger(tables_of(records_of([runs[0]]))[0], tables_of(records_of([finished(tmp_path, "fedem", 0, 0.5)]))[0])
    (axis,) = drawn[0].axes
    places = {text.get_text(): place for place, text in enumerate(axis.get_yticklabels())}
    before, after = (line.get_xdata() for line in axis.lines)
    assert [x[places["fedem"]] for x in (before, after)] == [0.9, 0.5]
    assert [x[places["fedem, each device alone"]] for x in (before, after)] == [0.1, 0.1]
    with pytest.raises(fedem_flwr.errors.FedemError, match="no round"):
        (runs[1] / "metrics.jsonl").write_text("")
        convergence(strict)


def test_controls_that_beat_the_methods_stay_in_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "image_bytes", lambda figure, _: drawn.append(figure) or b"")
    convergence(tables_of(records_of([finished(tmp_path, "fedem", 0, 0.2)]))[0])  # EASE has three times as much
    levels = {"popularity": 0.4 / 3, "EASE": 0.6 / 3}
    for axis, share in zip(drawn[0].axes, (1, 0.5), strict=True):
        assert axis.get_ylim()[0] == 0 and axis.get_ylim()[1] > share * levels["EASE"]
        found = {text.get_text(): (text.xy[1], text.xyann[1]) for text in axis.texts}
        assert {name: level for name, (level, _) in found.items()} == pytest.approx(
            {name: share * level for name, level in levels.items()}
        )
        assert all(0 <= place <= axis.get_ylim()[1] for _, place in found.values())


def test_published_figures_have_a_source_and_are_of_what_there_is() -> None:
    experiments = Path(fedem_flwr.__file__).parent.parent / "configs" / "experiments"
    variants = re.findall(r"^\[variants\.([\w-]+)", "\n".join(f.read_text() for f in experiments.glob("*.toml")), re.M)
    for source in _sources():
        assert source["citation"] and source["protocol"] == "paper"
        for dataset, figures in source["figures"].items():
            assert dataset in KNOWN_DATASETS
            for method, (hits, gain) in figures.items():
                assert method in (*preset_names("methods"), *variants) and 0 < gain <= hits <= 1
    assert published("ml-100k", "strict", "fedem") == [] == published("ml-100k", "paper", "nobody")
    assert published("ml-1m", "paper", "pfedrec")[0].figures == (0.6730, 0.3898)


@pytest.mark.usefixtures("undrawn")
def test_python_gives_the_same_as_a_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [finished(tmp_path / "runs", method, seed, hits) for (method, seed), hits in HITS.items()]
    frame = fedem_flwr.compare(runs=runs, out=tmp_path / "out")
    assert frame.loc[("strict", "ml-100k", "fedem"), "sampled99/hr@10"] == pytest.approx(0.64)
    assert frame.loc[("strict", "ml-100k", "fedmf"), "seeds"] == 2
    assert Path(frame.attrs["folder"], "leaderboard.html").exists()
    assert fedem("compare", *map(str, runs), f"--out={tmp_path / 'out'}") == 0
    assert "leaderboard.html" in capsys.readouterr().out


def browsed(page: Path, view: str) -> Page:
    """The page as a browser has made it, with what stands behind the # of its address."""
    browser = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    command: list[Any] = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={page.parent / '.browser'}",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", f"{page.as_uri()}#{view}"], capture_output=True, text=True, timeout=120, check=True
    )
    return Page(done.stdout)


@pytest.mark.slow
def test_a_browser_sorts_and_filters(board: Path, tmp_path: Path) -> None:
    shutil.copytree(board, tmp_path / "board")
    page = tmp_path / "board" / "leaderboard.html"
    strict = next(
        t for t in browsed(page, "sort=6&down=0&controls=0").tables if not any("published" in h for h in t[0])
    )
    gains = [float(row[6].split(" ")[0]) for row in strict[1:] if row[0] not in ("popularity", "EASE")]
    assert gains == sorted(gains) and len(gains) == 3
    found = browsed(page, "q=fedm&protocol=strict&sort=0&down=0")
    visible = [
        row[0] for row, hidden in zip([r for t in found.tables for r in t], found.hidden, strict=True) if not hidden
    ]
    assert [name for name in visible if name.startswith("fed")][-1] == "fedmf" and "EASE" not in visible
