"""How the data were read is said: by `fedem data info`, before a run, and in its summary and report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import fedem_flwr
from fedem_flwr.cli import main
from fedem_flwr.report.account import recorded_rows


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 users and 60 items: a few zeros and repeats, times in days, a user of 3 rows, a column that is not used."""
    lines = ["userId,movieId,rating,date,[b]note"]
    for user in range(20):
        for row in range(24):
            item, day = (user * 5 + row * 7) % 60, 1 + row // 2
            lines.append(f"secret-user-{user},m{item},{0 if row == 3 else 4},2020-01-{day:02},x")
        lines.append(lines[-1])
    lines += [f"few,m{item},3,2020-02-01,x" for item in range(3)]
    path = tmp_path_factory.mktemp("data") / "ratings.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def screen(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, arguments)))
    shown = capsys.readouterr()
    assert not stopped.value.code, shown.err
    return re.sub(r"[ │\n]+", " ", shown.out + shown.err)


SAID = [
    "503 read, 460 kept (91 %); dropped: 20 (4 %) with a rating of 0 or less, 20 (4 %) as repeats, "
    "3 (0.6 %) of 1 users with fewer than 10",
    "the test item of 20 (100 %) and the validation item of 20 (100 %) of 20 users",
    "20 (100 %) of 20 users have fewer than 99 unseen items: among what there is, random scores get HR@10 = 0.263, not "
    "0.100",
]


def test_data_info(ratings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    text = screen(capsys, "data", "info", ratings)
    for words in (
        "read as text, UTF-8, comma, header in line 1",
        "'userId' user (by its name): secret-user-0, secret-user-0, ...",
        "'date' time (by its name), dates, ISO8601: 2020-01-01, 2020-01-01, ...",
        "'[b]note' not used: x, x, ...",
        "distinct (user, item) pairs 483",
        "protocol strict keeps 20 users, 60 items, 460 interactions",
        "strict: times 2020-01-01 00:00:00 UTC to 2020-01-12 00:00:00 UTC",
        "protocol paper keeps 20 users, 60 items, 480 interactions",
        *SAID,
    ):
        assert words in text, words
    chosen = screen(capsys, "data", "info", ratings, "--set", "data.min_rating=4.5", "--set", "data.order=rows")
    assert "protocol strict keeps no user has >= 10 rows in 'ratings': no rating is 4.5 or more" in chosen


@pytest.mark.usefixtures("undrawn")
def test_run_and_report(ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--method", "fedmf", "--rounds", 1, "--set", "evaluation.controls=false", "--set", "local.epochs=1")
    text = screen(capsys, "run", "--dataset", ratings, *options, "--out", tmp_path / "run")
    assert "user 'userId', item 'movieId', rating 'rating', time 'date'; not used: '[b]note'" in text
    assert all(words in text for words in SAID) and "drawn among their items of the same time" in text
    again = screen(capsys, "run", "--dataset", ratings, *options, "--protocol", "paper", "--out", tmp_path / "paper")
    assert "decided by the order of the file's rows" in again
    summary = fedem_flwr.load(tmp_path / "run").summary
    assert dict(recorded_rows(summary))["rows"] == SAID[0]
    assert recorded_rows({**summary, "data": {"rows": 7}}) == [], "damaged: left out"
    assert any("HR@10 = 0.263" in note for note in summary["notes"])
    report = (tmp_path / "run" / "report.html").read_text()
    assert (
        "<h2>The data</h2>" in report and SAID[0] in report and "<dt>&#39;[b]note&#39;</dt><dd>not used</dd>" in report
    )
    for file in (report, json.dumps(summary), (tmp_path / "run" / "split" / "split.json").read_text()):
        assert "secret-user" not in file, "no row of the data is in what is handed on"
