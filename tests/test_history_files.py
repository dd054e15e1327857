"""A file of histories is read as the run's data were: shape, settings, and the order of rows at equal times."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served_world import closed_form_run

from fedem_flwr import Recommender
from fedem_flwr.cli import main
from fedem_flwr.cli.histories import read_histories
from fedem_flwr.cli.recommend import trained_on
from fedem_flwr.config import Config, resolve
from fedem_flwr.data import read_interactions
from fedem_flwr.data.reading import Reading
from fedem_flwr.errors import InputError
from fedem_flwr.protocol.splits import make_split
from fedem_flwr.runtime.inputs import columns_of

ITEMS = [f"i{n}" for n in range(9)]
THUMBS = {"rating_column": "-"}
TIED = [f"{user},{item},3,{5 if at < 6 else 9}" for user in ("ann", "bob") for at, item in enumerate(ITEMS)]


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, text: str, encoding: str = "utf-8") -> str:
        (tmp_path / name).write_text(text, encoding=encoding)
        return str(tmp_path / name)

    return write


def as_trained(path: str, config: Config) -> Reading | None:
    return read_interactions(Path(path), columns_of(config)).reading


def of(**data: Any) -> Config:
    return resolve({}, {"data": data})


def test_equal_times_are_drawn_as_in_training(written: Callable[..., str]) -> None:
    header = "user,item,rating,time\n"
    orders = []
    for seed in range(3):
        rows = random.Random(seed).sample(TIED, len(TIED))
        orders.append(read_histories(written(f"{seed}.csv", header + "\n".join(rows) + "\n"), of()))
    assert orders[0] == orders[1] == orders[2], "the order of rows decides nothing"
    assert set(orders[0]["ann"][:6]) == set(ITEMS[:6]) and orders[0]["ann"] != orders[0]["bob"]
    split = make_split(
        read_interactions(Path(written("t.csv", header + "\n".join(TIED) + "\n"))), "strict", seed=0, min_interactions=3
    )
    for user, code in zip(split.user_ids.tolist(), range(2), strict=True):
        held_out = [split.item_ids[split.validation[code]], split.item_ids[split.test[code]]]
        assert orders[0][user][-2:] == held_out, "the newest are those that a split holds out"
    rows = [row for row in reversed(TIED) if row.startswith("ann")]
    in_file = read_histories(written("p.csv", header + "\n".join(rows) + "\n"), of(protocol="paper"))
    assert in_file == {"ann": [*ITEMS[5::-1], *ITEMS[:5:-1]]}, "paper keeps the file's order"
    other = resolve({}, {"run": {"seed": 8}})
    assert read_histories(written("0.csv", header + "\n".join(TIED) + "\n"), other) != orders[0]


@pytest.mark.parametrize(
    ("data", "training", "history", "wanted"),
    [
        (THUMBS, "user,item,rating\nx,1,1\n", "user,item,rating\nann,7,-1\nann,8,1\n", {"ann": ["7", "8"]}),
        (THUMBS, "user,item,rating\nx,1,1\n", "item,rating\n7,-1\n8,1\n", {None: ["7", "8"]}),
        ({"separator": "^"}, "user^item\nx^1\n", "user^item\nann^7\n", {"ann": ["7"]}),
        ({"separator": "^"}, "user^item\nx^1\n", "user,item\nann,7\n", {"ann": ["7"]}),
        (
            {"time_format": "%d/%m/%Y"},
            "user,item,date\nx,1,01/02/2019\n",
            "user,item,date\nann,7,01/03/2019\nann,8,02/02/2019\n",
            {"ann": ["8", "7"]},
        ),
        (
            {"time_format": "%d/%m/%Y"},
            "user,item,date\nx,1,01/02/2019\n",
            "user,item,time\nann,7,9\nann,8,3\n",
            {"ann": ["8", "7"]},
        ),
        ({}, "x::1::5::978300760\n", "ann::7::5::9\nann::8::4::3\nann::9::0::4\n", {"ann": ["8", "7"]}),
        ({}, "x::1::5::978300760\n", "7\n8\n", {None: ["7", "8"]}),
        ({}, "x::1::5::978300760\n", "user,item\nann,7\n", {"ann": ["7"]}),
        ({}, "1 98 59 4 12\n2 98 7\n3 98 59 31\n", "7 12 31\n8 98\n", {"7": ["12", "31"], "8": ["98"]}),
        ({}, "1 98 59 4 12\n2 98 7\n3 98 59 31\n", "item\n12\n", {None: ["12"]}),
        ({"user_column": 1, "item_column": 0}, "1,x\n2,y\n", "7,ann\n8,ann\n", {"ann": ["7", "8"]}),
        ({"order": "rows"}, "x,1,9\n", "ann,7,9\nann,8,3\n", {"ann": ["7", "8"]}),
    ],
)  # fmt: skip
def test_in_the_shape_of_the_data_or_by_its_own_header(
    data: dict[str, Any], training: str, history: str, wanted: dict[str | None, list[str]], written: Callable[..., str]
) -> None:
    config = of(**data)
    trained = as_trained(written("data", training), config)
    assert read_histories(written("history", history), config, trained) == wanted


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-16"])
def test_the_encoding_of_the_data_counts_where_there_is_no_other(encoding: str, written: Callable[..., str]) -> None:
    config = of(encoding="latin-1")
    for text, wanted in (("user,item\né,ü\n", {"é": ["ü"]}), ("item\nü\n", {None: ["ü"]})):
        assert read_histories(written("h.csv", text, encoding), config) == wanted


def test_settings_for_another_shape(written: Callable[..., str]) -> None:
    config = of(user_column="who", separator=";")
    path = written("h.csv", "c,d,when\nann,7,01/02/2019\nann,8,02/01/2019\n")
    said = {"user_column": "c", "item_column": "d", "time_format": "%m/%d/%Y"}
    assert read_histories(path, config, None, said) == {"ann": ["7", "8"]}
    assert read_histories(path, config, None, {**said, "time_format": "%d/%m/%Y"}) == {"ann": ["8", "7"]}
    with pytest.raises(InputError, match=r"data\.protocol says nothing of a history"):
        read_histories(path, config, None, {"protocol": "paper"})
    with pytest.raises(InputError, match=r"a header with .item.*and read as the run.s data: .*no column .who."):
        read_histories(written("bad.csv", "ann;b\nbob;c\n"), config)


def test_on_the_command_line(
    written: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = closed_form_run(tmp_path / "run")
    assert trained_on(run) is None and trained_on(tmp_path) is None
    monkeypatch.chdir(tmp_path)
    path = written("h.csv", "c^d\n" + "".join(f"ann^{item}\n" for item in Recommender.load(run).items[:2]))

    def ended(*options: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["recommend", str(run), *options])
        screen = capsys.readouterr()
        return int(stopped.value.code or 0), screen.out, screen.err

    shape = ["--set", "data.separator=^", "--set", "data.user_column=c", "--set", "data.item_column=d"]
    code, out, _ = ended("--history", path, *shape, "--json")
    assert code == 0 and [each["user"] for each in json.loads(out)] == ["ann"]
    code, _, err = ended("--history", path, "--set", "run.seed=3")
    assert code == 2 and "--set run" in err
    code, _, err = ended("--user", "7", *shape)
    assert code == 2 and "--set says how the file of --history is read" in err
