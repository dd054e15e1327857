"""The tables of one user in a plane: they are those on its device, near ones lie near, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from worlds import ITEMS, carry_out, config_of

from fedem_flwr.errors import InputError
from fedem_flwr.experiment import tables_of_one as module
from fedem_flwr.experiment.finish import finish
from fedem_flwr.experiment.tables_of_one import TABLES, check_tables
from fedem_flwr.report import tables_plot
from fedem_flwr.report.drawing import NothingToDrawError
from fedem_flwr.report.tables_plot import tables_picture, tables_text

RHO = 0.25
PLUG: dict[str, Any] = {
    "merge": {"mode": "static", "rho": RHO},
    "diagnostics": {"tables": True},
    "run": {"engine": "torch", "users_per_node": 15, "rounds": 2},
}


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of FedMF with own tables, its diagnostics and its report."""
    done = carry_out(tmp_path_factory.mktemp("tables") / "run", config_of("fedmf", **PLUG))
    report = finish(done.run, done.outcome, lambda _: None).read_text()
    return done, done.run.directory.read_diagnostics(), report


def test_they_are_the_tables_on_the_device(looked: Any) -> None:
    """Against what server and node have stored: own Q, received G, and Q + ρ (G − Q)."""
    done, diagnostics, _ = looked
    found, split = diagnostics["tables"], done.run.split
    user = split.user_ids.tolist().index(found["user"])
    own, received = done.nodes["items"][user], done.server["items"]
    far = np.linalg.norm(own - received, axis=1).mean()
    assert far > 0.01
    for pair, share in {"local global": 1.0, "local merged": RHO, "merged global": 1 - RHO}.items():
        assert found["apart"][pair] == pytest.approx(share * far, rel=1e-4), pair
    trained = split.train_items[split.train_offsets[user] : split.train_offsets[user + 1]]
    of_mine = np.linalg.norm((own - received)[np.unique(trained)], axis=1).mean()
    assert found["apart_mine"]["local merged"] == pytest.approx(RHO * of_mine, rel=1e-4) and of_mine != far
    assert np.flatnonzero(found["mine"]).tolist() == sorted(set(trained.tolist()))
    assert found["items"] == found["catalogue"] == split.items <= ITEMS
    assert all(np.shape(found["points"][name]) == (split.items, 2) for name in TABLES)


def test_the_plane_keeps_rows_together_that_are_near(looked: Any) -> None:
    """ρ = ¼: an item's merged row lies nearer to its own than to the received one, in the plane as in the tables."""
    points = {name: np.array(each) for name, each in looked[1]["tables"]["points"].items()}
    near, far = (np.linalg.norm(points["merged"] - points[name], axis=1) for name in ("local", "global"))
    assert np.median(near) < np.median(far)


def test_the_report_draws_and_explains_them(looked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, diagnostics, report = looked
    part = report.partition("The tables of one user")[2][:1500]
    assert part and "Not drawn" not in part and diagnostics["tables"]["user"] in part
    assert "own and merged" in tables_text(diagnostics) and tables_text({}) == ""
    drawn: list[Any] = []
    encode = tables_plot.image_bytes
    monkeypatch.setattr(tables_plot, "image_bytes", lambda figure, kind: drawn.append(figure) or encode(figure, kind))
    picture = tables_picture(diagnostics["tables"]).decode()
    assert "<svg" in picture and len(drawn) == 1
    for axis, name in zip(drawn[0].axes, TABLES, strict=True):
        seen = np.concatenate([each.get_offsets() for each in axis.collections])  # those of others, then the own
        mine = np.array(diagnostics["tables"]["mine"])
        points = np.array(diagnostics["tables"]["points"][name])
        np.testing.assert_array_equal(seen, np.concatenate([points[~mine], points[mine]]))
        assert axis.get_xlim() == drawn[0].axes[0].get_xlim()
    with pytest.raises(NothingToDrawError, match="had received no table"):
        tables_picture({"user": "u3", "received": False})
    with pytest.raises(NothingToDrawError, match="different items"):
        tables_picture({**diagnostics["tables"], "mine": [True]})


def test_large_catalogues_are_sampled_beside_the_own_items(looked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 25)
    monkeypatch.setattr(module, "_plane", lambda rows, seed: rows[:, :2])
    found = module.tables_of_one(module.ServedModel.open(looked[0].run))
    assert found is not None and found["items"] == 25 and sum(found["mine"]) == sum(looked[1]["tables"]["mine"])
    assert f"(25 of {looked[0].run.split.items} items" in tables_text({"tables": found})


@pytest.mark.parametrize(
    ("method", "sections", "said"),
    [
        ("fedmf", {"run": {"runtime": "ray"}, "merge": {"mode": "elastic"}}, "--runtime ray is no single process"),
        ("fedmf", {}, "fedmf has none; use fedem or fedsim, or set merge.mode"),
        ("fedials", {}, "fedials has none"),
    ],
)
def test_where_there_is_nothing_to_see_it_is_refused(method: str, sections: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_tables(config_of(method, **{**sections, "diagnostics": {"tables": True}}))
    check_tables(config_of(method, **sections))  # unless nobody asked


def test_without_scikit_learn_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"needs scikit-learn: pip install 'fedem-flwr\[tsne\]'"):
        check_tables(config_of("fedem", diagnostics={"tables": True}))
