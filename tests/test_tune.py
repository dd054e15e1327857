"""`fedem tune`: studies that go on, that several processes share, and whose result a run reproduces."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from preloaded import Preloaded
from worlds import TINY

from fedem_flwr.cli import main
from fedem_flwr.config import merge_trees, preset_names, resolve
from fedem_flwr.config.registry import find, is_method
from fedem_flwr.config.search import paths, ranges_of, space_of, tree_of
from fedem_flwr.errors import InputError
from fedem_flwr.experiment import study as studies
from fedem_flwr.experiment.study import Study
from fedem_flwr.experiment.tune import carry_out, from_anywhere
from fedem_flwr.locking import born
from fedem_flwr.network.processes import FEDEM, wait_until

TREE: dict[str, Any] = merge_trees(TINY, {"method": {"name": "fedmf"}, "run": {"rounds": 2}})
TREE = {**TREE, "local": {}}  # whose epochs are looked for


def silent(_: str) -> None:
    """Nobody listens."""


def told(study: Study) -> list[tuple[dict[str, float], float | None]]:
    """Settings and values of the trials that count."""
    return [(dict(trial.params), trial.value) for trial in study.trials() if not trial.lost]


def test_every_method_has_a_space_beside_its_options() -> None:
    """Presets lie in it; whole numbers stay whole; what somebody gives is not looked for."""
    for name in preset_names("methods"):
        config = resolve({}, {"method": {"name": name}})
        if not is_method(find("strategies", config.method.strategy)):
            continue
        space = space_of(config, {"method": {"name": name}})
        assert space and all(each.low <= each.preset <= each.high and each.low < each.high for each in space), name
        assert not any(each.log and each.low <= 0 for each in space)
        tuned = resolve({}, merge_trees({"method": {"name": name}}, tree_of({e.path: e.preset for e in space[:1]})))
        assert tuned.method.strategy == config.method.strategy
        given = tree_of({space[0].path: 1})
        left = {each.path for each in ranges_of(config)} - {space[0].path}
        assert not left or {each.path for each in space_of(config, given)} == left
    assert list(paths({"a": {"b": {"c": 1}, "d": 2}})) == ["a.b.c", "a.d"]
    assert {each.path for each in ranges_of(resolve({}, {"method": {"name": "pfedrec"}}))} == {
        "local.epochs",
        "method.options.lr",
        "method.options.factor",
    }


def test_what_does_not_act_is_not_looked_for(tmp_path: Path) -> None:
    """Merging that is not there, α of an average, order without rounds or times; and what acts is."""

    def looked_for(name: str, **sections: Any) -> set[str]:
        return {each.path for each in ranges_of(resolve({}, {"method": {"name": name}, **sections}))}

    local = {"local.epochs", "local.lr_user", "local.lr_item", "local.ridge"}
    assert looked_for("local-only") == looked_for("fedmf") == local, "mf-central has a ridge, too"
    assert looked_for("fedsim") == local | {"aggregate.alpha"}
    assert looked_for("fedsim-sm") == local | {"aggregate.alpha", "merge.rho"}
    quick = local - {"local.ridge"}  # compiled functions know no weight decay that passes merged rows
    assert looked_for("fedem") == looked_for("fedsim-dm") == quick | {"aggregate.alpha", "merge.lr"}
    assert looked_for("fedmf", merge={"mode": "elastic"}) == quick | {"merge.lr"}
    table, order = {"ials.weight", "ials.ridge", "ials.kappa"}, {"order.lr", "order.dropout"}
    assert looked_for("fedials") == table and looked_for("fedials-order") == table | order
    assert looked_for("fedials-order", order={"rounds": 0}) == table
    assert looked_for("fedials-elastic") == table | {"group_tables.ridge"}
    assert looked_for("fedmf-elastic") == local | {"group_tables.ridge"}
    assert looked_for("fedmf-elastic", group_tables={"merge": "none"}) == local
    assert looked_for("auto") == {"ials.kappa"} | order
    (tmp_path / "r.csv").write_text("".join(f"{user},{(user + k) % 30}\n" for user in range(20) for k in range(10)))
    found = Study.open(tmp_path / "study", {"method": {"name": "auto"}, "data": {"dataset": str(tmp_path / "r.csv")}})
    assert [each.path for each in found.space] == ["ials.kappa"], "there are no times, so no order"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Four trials, at one go."""
    study = Study.open(tmp_path_factory.mktemp("tune") / "whole", TREE)
    carry_out(study, 4, None, silent)
    return study


def test_a_killed_study_goes_on_as_if_nothing_had_been(
    whole: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its third trial, whose process is not there any more: that one counts for nothing."""

    class Killed(BaseException):
        pass

    study, lines = Study.open(tmp_path / "study", TREE), 0

    def die(_: Any) -> None:
        nonlocal lines
        lines += 1
        if lines == 6:
            raise Killed

    gone = subprocess.Popen(["sleep", "60"])
    who = f"{studies.socket.gethostname()}/{gone.pid}/{born(gone.pid)}"
    monkeypatch.setattr(studies, "_me", lambda: who)
    with pytest.raises(Killed):
        while study.one_more(4, die):
            pass
    monkeypatch.undo()
    assert Study.open(tmp_path / "study", TREE).one_more(0, lambda _: None) is None
    assert not any(trial.lost for trial in study.trials()), "its process is there"
    gone.kill()  # and nobody asks how it ended: a zombie
    assert wait_until(lambda: born(gone.pid) is None, 60)
    (study.folder / f".trial-{gone.pid}-x").mkdir()
    again = Study.open(tmp_path / "study", TREE)
    found = carry_out(again, 4, None, silent)
    assert told(again) == told(whole) and len(again.trials()) == 5
    assert [trial.number for trial in again.trials() if trial.lost] == [2]
    assert not list(study.folder.glob(".trial-*")), "nothing of dead trials is left"
    assert again.one_more(4, lambda _: None) is None, "the budget is the study's"
    assert found.best.value == max(value for _, value in told(whole) if value is not None)


def test_whose_trials_are_lost(tmp_path: Path) -> None:
    """Those of a process of this machine that is gone, or whose number another has by now."""
    study, host, me = Study.open(tmp_path / "study", TREE), studies.socket.gethostname(), studies.os.getpid()
    since = born(me)
    who = [
        f"{host}/{me}/{since}",
        f"{host}/{me}/0",
        f"{host}/{me}/",
        f"elsewhere/{me}/0",
        "",
        f"{host}/{2**30}/{since}",
    ]
    shared = study._study()
    for each in who:
        shared.ask().set_user_attr(studies.WHO, each)
    study._give_up_lost(shared)
    assert [trial.number for trial in study.trials() if trial.lost] == [1, 5]


def test_the_tuned_experiment_gives_the_trials_value(whole: Study, tmp_path: Path) -> None:
    best, first = whole.best(), whole.trials()[0]
    assert first.params == {each.path: each.preset for each in whole.space}, "the preset is the first trial"
    with pytest.raises(SystemExit) as left:
        main(["run", str(whole.folder / "best.toml"), "--out", str(tmp_path / "run"), "--quiet"])
    assert left.value.code == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    line = next(line for line in lines if line["round"] == best.round)
    assert line["validation"]["ndcg@10"] == best.value == max(line["validation"]["ndcg@10"] for line in lines)
    page = (whole.folder / "study.html").read_text()
    assert "data:image/svg+xml" in page and f"&gt; {best.number}" in page and "the preset&#39;s" in page
    assert len(json.loads((whole.folder / "trials.json").read_text())["trials"]) == 4


def test_importances_are_said_of_trials_that_can_be_compared(whole: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four they are; of fewer, or of the same settings again and again, they would be made up."""
    four = whole.trials()
    assert set(whole.importances()) == {each.path for each in whole.space}
    for few in (four[:1], four[:3], four[:3] * 2, [replace(trial, value=0.5) for trial in four]):
        monkeypatch.setattr(Study, "trials", lambda _, few=few: few)
        assert whole.importances() == {}


def test_two_processes_share_a_study(tmp_path: Path, capfd: pytest.CaptureFixture[str], forking: Preloaded) -> None:
    folder = tmp_path / "study"
    settings = [f"--set={path}={json.dumps(value)}" for path, value in values(TREE) if not path.startswith("method")]
    command = [*FEDEM, "tune", "fedmf", "--trials=3", f"--out={folder}", *settings]
    both = [forking.popen(command) for _ in range(2)]
    codes = [one.wait() for one in both]
    assert codes == [0, 0], capfd.readouterr().err
    study = Study.open(folder, TREE)
    trials = study.trials()
    assert len(trials) == 3 and all(trial.value is not None for trial in trials)
    assert len({tuple(trial.params.values()) for trial in trials}) == 3, "nobody does another's work"


def values(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names with their values."""
    return [
        pair
        for key, value in tree.items()
        for pair in (values(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)])
    ]


def test_what_cannot_be_tuned_is_one_line(whole: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path, match: str, **sections: Any) -> None:
        with pytest.raises(InputError, match=match) as caught:
            carry_out(Study.open(folder, merge_trees(TREE, sections)), 1, None, silent)
        assert "\n" not in str(caught.value)

    there = whole.folder
    refused(there, "study with data.dataset = 'synthetic', not 'ml-100k'", data={"dataset": "ml-100k"})
    refused(there, "study with run.seed = 'its default', not 7", run={"seed": 7})
    refused(there, "study with method.name = 'fedmf', not 'fedncf'", method={"name": "fedncf"})
    fixed = {"epochs": 1, "lr_user": 0.1, "lr_item": 0.1, "ridge": 0.0}
    refused(tmp_path / "none", "nothing to tune of fedmf: all of them are set", local=fixed)
    stock = {"name": "x", "strategy": "flwr.FedAvg", "base": "fedmf"}
    refused(tmp_path / "none", "nothing to tune of x: it has no setting with a range", method=stock)
    refused(tmp_path / "none", "search.budget is of the search", search={"budget": 3})
    refused(tmp_path / "none", "measures under strict", data={"protocol": "paper"})
    refused(tmp_path / "none", "in this process", run={"runtime": "ray"})
    assert not (tmp_path / "none").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other").chmod(0o755)
    (tmp_path / "other" / "letter.txt").touch()
    refused(tmp_path / "other", "holds no study")
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o755, "what is refused stays as it was"
    assert [each.name for each in (tmp_path / "other").iterdir()] == ["letter.txt"]
    refused(tmp_path / "other" / "letter.txt", "is no folder")
    (tmp_path / "own" / "split").mkdir(parents=True)
    refused(tmp_path / "own", "holds no study")
    refused(tmp_path / "bad", "none of 1 trials has a finite NDCG@10: no usable reply", aggregate={"max_norm": 1e-9})
    monkeypatch.setattr(Study, "measure", lambda *_: (math.nan, 1))
    refused(tmp_path / "nan", "none of 1 trials has a finite NDCG@10: its NDCG@10 is no number")
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused(tmp_path / "x", "needs Optuna: pip install")


def test_a_budget_in_minutes_ends(tmp_path: Path) -> None:
    said: list[str] = []
    found = carry_out(Study.open(tmp_path / "study", TREE), None, 1e-9 / 60 + 1e-4, said.append)
    assert len(found.trials) == len(said) == 1 and "ETA 0:00" in said[0] and "best" in said[0]


def test_the_experiment_of_a_file_can_be_carried_out_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.csv").write_text("1,2\n")
    assert from_anywhere({"data": {"dataset": "r.csv"}}) == {"data": {"dataset": str(tmp_path / "r.csv")}}
    assert from_anywhere({"data": {"dataset": "ml-100k"}}) == {"data": {"dataset": "ml-100k"}}
