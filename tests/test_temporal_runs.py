"""Whole runs under `temporal`: two trainings, in any spread and runtime, that know nothing of what comes later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from split_rows import interactions_of
from worlds import config_of, figures

from fedem_flwr.config import Config
from fedem_flwr.data import Interactions
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.ranking import NEW, UNSERVED, held_out_ranks
from fedem_flwr.experiment.flow import carry_out, prepare, reopen
from fedem_flwr.experiment.plan import Experiment, plan
from fedem_flwr.nodes.host import SPLIT_FOLDER
from fedem_flwr.protocol.split import Split
from fedem_flwr.protocol.temporal import SECOND
from fedem_flwr.report.groups import METHOD, asked_text, group_cells, groups_in
from fedem_flwr.report.per_user import PerUser
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.serving.recommender import Recommender

pytestmark = pytest.mark.usefixtures("no_pictures")
FIRST, SECOND_INSTANT = 10.0, 14.0


def world(later: str = "") -> Interactions:
    """Two tastes of twelve items each; users come at different times, six of them after the second instant.

    Args:
        later: what else happens after the second instant: "markers" are items and users that nobody else has.
    """
    rng = np.random.default_rng(4)
    rows = []
    for user in range(36):
        taste, begin = user % 2, (0, 4, 15)[user % 3] if user >= 18 else 0
        for at, item in enumerate(rng.permutation(12)[:11]):
            when = begin + at * (0.2 if begin == 15 else 1.6)
            rows.append((f"u{user}", f"{'ab'[taste]}{item}", 1.0, float(when)))
    if later == "markers":
        rows += [(f"marker-user{u}", f"marker{i}", 1.0, 30.0 + i) for u in range(4) for i in range(6)]
        rows += [(f"u{user}", f"marker{user % 6}", 1.0, 40.0) for user in range(0, 36, 5)]
    return interactions_of(rows)


def settings(method: str, **sections: dict[str, Any]) -> Config:
    return config_of(
        method,
        **{
            "data": {"protocol": "temporal", "min_interactions": 5},
            "temporal": {"instants": [FIRST, SECOND_INSTANT], "adapt_rounds": 2},
            "model": {"dim": 4},
            **sections,
            "run": {"rounds": 3, "engine": "torch", **sections.get("run", {})},
        },
    )


def carried_out(path: Path, config: Config, data: Interactions) -> RunDirectory:
    with prepare(Experiment(config, (), (frozenset({"model.dim"}),)), path, source=data) as runs:
        carry_out(runs)
    return RunDirectory(path)


@pytest.fixture(scope="module", params=["fedials", "fedmf"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    path = tmp_path_factory.mktemp("temporal") / str(request.param)
    controls = {"controls": True, "local_only": request.param == "fedmf", "cache_dir": str(path.parent / "cache")}
    return carried_out(path, settings(str(request.param), evaluation=controls), world())


def test_lines_are_of_the_first_training_and_the_summary_of_the_second(finished: RunDirectory) -> None:
    lines, summary = finished.read_metrics(), finished.read_summary()
    assert len(lines) == 3 and all("test" not in line and line["validation"]["hr@10"] >= 0 for line in lines)
    best = max(lines, key=lambda line: line["validation"]["ndcg@10"])["round"]
    second = RunDirectory(finished.path / SECOND)
    assert [line["round"] for line in second.read_metrics()] == list(range(1, best + 1))
    tested = second.read_metrics()[-1]["test"]
    assert summary["metrics"] == {"best_validation": {"round": best, **tested}}
    assert summary["temporal"]["rounds"] == best and summary["temporal"]["instant"] == SECOND_INSTANT


def test_groups_add_up_to_everybody_and_agree_with_the_figures_of_each_user(finished: RunDirectory) -> None:
    summary, kept = finished.read_summary(), PerUser.load(finished.path)
    whole, warm, some, new, known = groups_in(summary)
    assert kept is not None and new["users"] >= 6
    assert whole["users"] == warm["users"] + some["users"] + new["users"] == known["users"] + whole["new_items"]
    for path in ("full/ndcg@10", "sampled99/hr@10"):
        parts = [group for group in (warm, some, new) if group["users"]]
        total = sum(group["users"] * group["figures"][METHOD][path] for group in parts)
        assert total == pytest.approx(whole["users"] * whole["figures"][METHOD][path], rel=1e-5)
    mean = float(np.nanmean(kept.metric("full", "ndcg@10")))
    assert mean == pytest.approx(summary["metrics"]["best_validation"]["ndcg@10"], rel=1e-5)
    assert {"popularity", "popularity_recent", "item_knn", "ease", "ease_recent"} <= whole["figures"].keys()
    assert "newcomers" in finished.report_path.read_text() and asked_text(summary)
    assert len(group_cells(summary)) == 5


def test_devices_do_what_their_method_can(finished: RunDirectory) -> None:
    summary = finished.read_summary()
    assert summary["temporal"]["device"] == {"fedials": "solve", "fedmf": "adapted"}[summary["method"]]
    assert not any(group["unserved"] for group in groups_in(summary))


def test_newcomers_are_served_by_the_recommender_as_they_were_evaluated(finished: RunDirectory) -> None:
    """The rank that is reported of a newcomer is the place of its target in the recommender's list."""
    trained = finished.read_summary()["method"] == "fedmf"  # its draws are keyed by the user's number
    split, kept = Split.load(finished.path / SPLIT_FOLDER / SECOND), PerUser.load(finished.path)
    assert kept is not None and split.histories is not None
    recommender, known = Recommender.load(finished.path), split.histories
    asked = split.everybody
    newcomers = asked[(split.trained_on(asked) == 0) & (split.test[asked] >= 0)]
    assert len(newcomers) >= 6
    for user in newcomers.tolist():
        history = known.items[known.offsets[user] : known.offsets[user + 1]]
        ids = [str(split.item_ids[item]) for item in history]
        found = [each.item for each in recommender.recommend(ids, top=split.items)]
        place = found.index(str(split.item_ids[split.test[user]])) + 1
        assert abs(place - kept.ranks["full"][user]) <= (8 if trained else 0)
        assert [each.item for each in recommender.recommend_user(str(split.user_ids[user]), top=3)]


def test_stale_devices_serve_no_newcomers_and_say_so(tmp_path: Path) -> None:
    config = settings("fedmf", temporal={"instants": [FIRST, SECOND_INSTANT], "device": "stale"})
    done = carried_out(tmp_path / "run", config, world())
    summary, kept = done.read_summary(), PerUser.load(done.path)
    whole, _, _, new, _ = groups_in(summary)
    assert kept is not None and summary["temporal"]["device"] == "stale"
    assert new["users"] == new["unserved"] == whole["unserved"] > 0
    assert new["figures"][METHOD]["full/hr@10"] == 0 and "cannot be served: misses" in asked_text(summary)
    assert (kept.ranks["full"] == UNSERVED).sum() == new["unserved"]
    assert done.read_metrics()[-1].get("nonfinite_scores") is None


def test_adapting_moves_private_parts_alone(tmp_path: Path) -> None:
    """Equal to training the user vectors against the frozen table, one client at a time, by the reference engine."""
    runs = [
        carried_out(tmp_path / engine, settings("fedmf", run={"engine": engine, "rounds": 1}), world())
        for engine in ("torch", "reference")
    ]
    one, other = (PerUser.load(done.path) for done in runs)
    assert one is not None and other is not None
    assert np.array_equal(one.ranks["full"], other.ranks["full"])


@pytest.mark.parametrize("method", ["fedials", "fedmf"])
def test_what_happens_after_the_second_instant_reaches_no_training(method: str, tmp_path: Path) -> None:
    """Marker items and users after the instant: first training, second training and validation are the same."""
    plain, marked = (
        carried_out(tmp_path / (later or "plain"), settings(method), world(later)) for later in ("", "markers")
    )
    assert list(map(figures, plain.read_metrics())) == list(map(figures, marked.read_metrics()))
    split = Split.load(marked.path / SPLIT_FOLDER / SECOND)
    assert not [item for item in split.item_ids if str(item).startswith("marker")]
    targets = split.test[split.everybody]
    assert (targets == -1).sum() == 4 + 8, "of four marker users, and of those who ended with a marker"
    summary = marked.read_summary()
    assert groups_in(summary)[0]["new_items"] == 12


@pytest.mark.parametrize("method", ["fedem", "pfedrec"])
def test_results_do_not_depend_on_how_users_are_spread(method: str, tmp_path: Path) -> None:
    found = []
    for each in (0, 10):
        run = {"rounds": 2, "users_per_node": each}
        found.append(carried_out(tmp_path / str(each), settings(method, run=run), world()))
    for one, other in zip(*(done.read_metrics() for done in found), strict=True):
        assert one["validation"]["full"] == pytest.approx(other["validation"]["full"], abs=0.02)
        assert one["evaluated_users"] == other["evaluated_users"]
    one, other = (done.read_summary()["metrics"]["best_validation"]["full"]["ndcg@10"] for done in found)
    assert one == pytest.approx(other, abs=0.02)


def test_a_run_that_is_stopped_in_its_second_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("fedmf", run={"rounds": 2, "checkpoint_every": 1})
    whole = carried_out(tmp_path / "whole", config, world())

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fedem_flwr.experiment.flow.finish", stop)
        carried_out(tmp_path / "stopped", config, world())
    with pytest.raises(InputError):
        RunDirectory(tmp_path / "stopped").read_summary()
    with reopen(tmp_path / "stopped") as runs:
        carry_out(runs, resume=True)
    again = RunDirectory(tmp_path / "stopped").read_summary()
    assert again["metrics"] == whole.read_summary()["metrics"] and again["temporal"] == whole.read_summary()["temporal"]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"data": {"protocol": "temporal"}, "evaluation": {"trained": ["mf-central"]}}, "evaluation.trained"),
        ({"data": {"protocol": "temporal"}, "temporal": {"rounds": 3}}, "temporal.rounds"),
        (
            {"data": {"protocol": "temporal"}, "method": {"name": "fedmf"}, "ldp": {"noise": "laplace", "clip": 1.0}},
            "ldp.noise",
        ),
    ],
)
def test_what_two_trainings_cannot_do_is_refused_before_anything_is_read(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"protocol 'temporal': .*leave {said} out"):
        plan({}, tree, origin="options")


def test_ranks_of_new_items_and_of_nobody() -> None:
    split = staged_split()
    users = split.everybody
    scores = torch.zeros(len(users), split.items)
    scores[:2] = torch.nan
    ranks = held_out_ranks(split, users, scores, which="test")["full"]
    assert ranks[:2].tolist() == [NEW, UNSERVED], "the first is asked for a new item, whoever serves it"
    assert (ranks == NEW).sum() == (split.test[users] == -1).sum() > 0


def staged_split() -> Split:
    from fedem_flwr.protocol.temporal import stages_of

    return stages_of(world("markers"), seed=0, min_interactions=5, instants=(FIRST, SECOND_INSTANT)).test


def test_the_configuration_of_the_second_training_says_what_was_chosen(finished: RunDirectory) -> None:
    text, said = (finished.path / SECOND / "config.toml").read_text(), finished.read_summary()["temporal"]
    assert f"rounds = {said['rounds']}" in text.partition("[temporal]")[2]
    tuned = finished.read_diagnostics().get("tuning")
    assert said["chosen"] == ({"fold-in": tuned["chosen"]} if tuned else {})
