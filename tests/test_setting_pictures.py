"""Figures by one setting: found in the experiments that ship, drawn as measured, and not where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from boards import finished

from fedem_flwr.cli.options import experiment_tree
from fedem_flwr.leaderboard import setting_pictures
from fedem_flwr.leaderboard.gather import Table, records_of, tables_of
from fedem_flwr.leaderboard.grid import Axes, cells_of
from fedem_flwr.leaderboard.page import pictures_of
from fedem_flwr.leaderboard.setting_pictures import by_setting, sweep_of
from fedem_flwr.report.drawing import NothingToDrawError
from fedem_flwr.report.run_directory import RunDirectory


def measured(folder: Path, experiment: str, hits: dict[str, float], **summary: Any) -> Table:
    """The table of an experiment's methods on ML-100K, as if they had been carried out with two seeds each."""
    tree, origin = experiment_tree(experiment)
    runs = []
    for cell in cells_of(tree, {}, Axes(datasets=["ml-100k"], protocols=["paper"], seeds=2), origin=origin):
        found = hits.get(cell.name.method, 0.5) + 0.02 * cell.name.seed
        path = finished(folder, cell.name.method, cell.name.seed, found, "paper")
        directory = RunDirectory(path)
        directory.write_config(cell.config.to_toml())
        directory.write_summary({**directory.read_summary(), **summary})
        runs.append(path)
    (table,) = tables_of(records_of(runs))
    return table


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures themselves, instead of their bytes."""
    figures: list[Any] = []
    monkeypatch.setattr(setting_pictures, "image_bytes", lambda figure, _: figures.append(figure) or b"")
    return figures


@pytest.mark.parametrize(
    ("experiment", "setting", "values", "level"),
    [
        ("figure2", "merge.rho", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], None),
        ("figure6", "merge.hidden", [1.0, 2.0, 3.0, 4.0, 5.0], None),
        ("table4", "ldp.multiplier", [1e-5, 1e-4, 1e-3, 1e-2], "fedem"),
        ("alpha", "aggregate.alpha", [0.0, 0.5, 0.9, 1.0, 2.0, 4.0], None),
    ],
)
def test_settings_of_experiments_that_ship(
    experiment: str, setting: str, values: list[float], level: str | None, tmp_path: Path
) -> None:
    found = sweep_of(measured(tmp_path, experiment, {}))
    assert found is not None and found.setting == setting
    assert [value for value, _ in found.points] == values
    assert (found.level.label if found.level else None) == level


def test_what_is_drawn_is_what_was_measured(tmp_path: Path, drawn: list[Any]) -> None:
    hits = {"fedem": 0.9, "fedem-ldp-1": 0.8, "fedem-ldp-2": 0.7, "fedem-ldp-3": 0.4, "fedem-ldp-4": 0.1}
    table = measured(tmp_path, "table4", hits, ldp={"composed": 1234.2})
    by_setting(table)
    for axis, share in zip(drawn[0].axes, (1.0, 0.5), strict=True):
        curve, level = axis.containers[0].lines[0], axis.lines[-1]
        assert curve.get_ydata() == pytest.approx([share * (hits[f"fedem-ldp-{n}"] + 0.01) for n in range(1, 5)])
        assert level.get_ydata() == pytest.approx([share * 0.91] * 2)
        assert [text.get_text() for text in axis.get_xticklabels()][:2] == ["1e-05\nε 1,234", "0.0001\nε 1,234"]
        assert level.get_label() == f"fedem: {share * 0.91:.3f}" and axis.get_ylim()[1] > share * 0.91
    spreads = drawn[0].axes[0].containers[0].lines[2][0].get_segments()
    assert spreads[0][1][1] - spreads[0][0][1] == pytest.approx(2 * 0.02 / 2**0.5)  # deviation of two seeds


def test_layers_are_counted_and_named(tmp_path: Path, drawn: list[Any]) -> None:
    by_setting(measured(tmp_path, "figure6", {"fedem-l1": 0.3}))
    axis = drawn[0].axes[0]
    assert axis.get_xlabel() == "Layers of the adapter"
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "2", "3", "4", "5"]
    assert axis.containers[0].lines[0].get_ydata()[0] == pytest.approx(0.31)


def test_where_methods_differ_in_more_there_is_no_such_picture(tmp_path: Path) -> None:
    table = measured(tmp_path, "table2", {})
    assert sweep_of(table) is None
    with pytest.raises(NothingToDrawError, match="no three methods differ in one setting alone"):
        by_setting(table)


@pytest.mark.usefixtures("undrawn")
def test_the_leaderboard_shows_them(tmp_path: Path, drawn: list[Any]) -> None:
    section = {"user": "u1", "received": False}
    table = measured(tmp_path, "figure6", {})
    table.rows[0].records[0].diagnostics["tables"] = section  # type: ignore[index]  # of a file, which is a dict
    shown, images = pictures_of([table])
    titles = {picture.title: picture for picture in shown["ml-100k-paper"]}
    assert "setting-ml-100k-paper.svg" in images and "merge.hidden" in titles["One setting"].caption
    one = titles[f"The tables of one user, {table.rows[0].label}"]
    assert one.data_uri is None and "user u1 had received no table" in one.reason
