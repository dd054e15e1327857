"""Which cells a grid has: its axes, its variants, and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedem_flwr.cli.options import experiment_tree
from fedem_flwr.config import preset_names
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.plan import plan
from fedem_flwr.leaderboard.grid import Axes, Cell, Name, cells_of
from fedem_flwr.leaderboard.published import published
from fedem_flwr.report.labels import CENTRALISED

EXPERIMENTS = sorted((Path(__file__).parent.parent / "configs" / "experiments").glob("*.toml"))


def grid(tree: dict[str, Any] | None = None, options: dict[str, Any] | None = None, **axes: Any) -> list[Cell]:
    return cells_of(tree or {}, options or {}, Axes(**axes), origin="here")


def test_a_grid_has_a_cell_for_each_combination_one_seed_of_everything_first() -> None:
    cells = grid(
        methods=["fedmf", "fedials"], datasets=["synthetic", "ml-100k"], protocols=["paper", "strict"], seeds=2
    )
    assert len(cells) == len({cell.name for cell in cells}) == 16
    assert [cell.name.seed for cell in cells] == [0] * 8 + [1] * 8
    for cell in cells:
        config = cell.config
        assert cell.name == Name(config.data.dataset, config.data.protocol, config.method.name, config.run.seed)


def test_options_of_the_command_line_win_over_the_file() -> None:
    tree = {
        "methods": ["fedmf"],
        "datasets": ["synthetic"],
        "seeds": [4, 9],
        "run": {"rounds": 7},
        "data": {"protocol": "paper"},
    }
    assert [(c.name.seed, c.name.protocol, c.config.run.rounds) for c in grid(tree)] == [
        (4, "paper", 7),
        (9, "paper", 7),
    ]
    (cell,) = grid(tree, {"run": {"rounds": 3}}, seeds=1, protocols=["strict"], methods=["fedials"])
    assert (cell.name.method, cell.name.seed, cell.name.protocol, cell.config.run.rounds) == ("fedials", 0, "strict", 3)


def test_a_variant_is_a_method_of_its_own_and_settings_of_one() -> None:
    tree = {
        "methods": ["fedmf", "wide"],
        "variants": {"wide": {"method": {"base": "fedmf"}, "model": {"dim": 48}}, "unused": {"model": {"dim": 1}}},
    }
    with pytest.raises(InputError, match="unused"):
        plan({**tree}, {}, origin="here")
    plain, wide = grid(tree)  # of a grid's methods some may be left out on the command line, and so may their variants
    assert (plain.name.method, wide.name.method) == ("fedmf", "wide")
    assert wide.config.model.dim == 48 != plain.config.model.dim
    assert "model.dim" in wide.given and "model.dim" not in plain.given, "48 is kept where there are few items"
    assert [cell.config.model.dim for cell in grid(tree, methods=["wide"])] == [48]


def test_a_file_goes_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "dinner.csv"
    file.write_text("a,b\n")
    (cell,) = grid(methods=["fedmf"], datasets=[str(file)])
    assert cell.name.dataset == "dinner" and cell.config.data.dataset == str(file)


@pytest.mark.parametrize(
    ("tree", "axes", "said"),
    [
        ({}, {}, "nothing to compare"),
        (
            {},
            {"methods": ["fedmff", "fedials", "nope"], "datasets": ["ml-100", "synthetic"], "protocols": ["papr"]},
            r"unknown methods 'fedmff' \(did you mean 'fedmf'\?\), 'nope' .*; unknown data sets 'ml-100' "
            r"\(did you mean 'ml-100k'\?\); unknown protocols 'papr'",
        ),
        (
            {},
            {"methods": ["nope", "fedmff", "zzz"]},
            r"^here: unknown methods 'nope', 'fedmff' \(did you mean 'fedmf'\?\), 'zzz' \(valid: [^()]*\)$",
        ),
        ({"variants": {"mine": {"method": {"base": "fedmff"}}}}, {"methods": ["mine"]}, "unknown methods 'fedmff'"),
        ({}, {"methods": ["fedmf", "fedials", "fedmf"]}, "methods named twice: fedmf"),
        ({}, {"methods": ["fedmf"], "seeds": [1, 1]}, "seeds named twice: 1"),
        ({}, {"methods": ["fedmf"], "seeds": 0}, "how many"),
        ({}, {"methods": ["fedmf"], "seeds": [-1]}, "from 0"),
        ({"methods": "fedmf"}, {}, "write a list of names"),
        ({"seeds": "all"}, {"methods": ["fedmf"]}, "write how many"),
        ({"model": {"dim": 8}}, {"methods": ["fedmf", "fedials"]}, "whose is it"),
    ],
)
def test_what_is_refused(tree: dict[str, Any], axes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        grid(tree, **axes)
    assert "\n" not in str(refused.value)


def test_two_files_of_one_name_collide(tmp_path: Path) -> None:
    files = [tmp_path / folder / "log.csv" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text("a,b\n")
    with pytest.raises(
        InputError, match=r"two cells are both 'fedmf on log, strict, seed 0' \(.*a/log.csv and .*b/log"
    ):
        grid(methods=["fedmf"], datasets=list(map(str, files)))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_that_ship_can_be_carried_out(path: Path) -> None:
    """And begin with the command that does it."""
    tree, origin = experiment_tree(path.stem)
    assert path.read_text().splitlines()[0] == f"# fedem compare {path.stem}"
    cells = cells_of(tree, {}, Axes(seeds=1), origin=origin)
    assert len(cells) == len(tree["methods"]) * len(tree.get("datasets", [0])) * len(tree.get("protocols", [0]))
    two = cells_of(tree, {}, Axes(seeds=1, datasets=["filmtrust"], methods=tree["methods"][:2]), origin=origin)
    assert len(two) == len(tree["methods"][:2]) * len(tree.get("protocols", [0]))


def test_both_honest_tables_have_every_method_and_table_1_its_centralised_ones() -> None:
    strict, temporal, table = (experiment_tree(name)[0] for name in ("honest", "honest-temporal", "table1"))
    assert strict["methods"] == temporal["methods"] and "filmtrust" not in temporal["datasets"]
    central = {name for name in preset_names("methods") if name.endswith("-central")}
    assert {"auto", *central} <= {*strict["methods"]}
    listed = [name for name in table["methods"] if name in central]
    assert len(listed) == 3 and all(table["variants"][name]["model"] == {"dim": 16} for name in listed)
    for dataset in table["datasets"]:
        for method in table["methods"]:
            label = method + CENTRALISED if method in central else method
            assert published(dataset, "paper", label)[0].source.startswith("FedEM"), (dataset, method)


def test_a_run_is_no_grid() -> None:
    with pytest.raises(InputError, match="'seeds' makes it a grid of runs: carry it out with `fedem compare here`"):
        plan({"methods": ["fedmf"], "seeds": 3}, {}, origin="here")


@pytest.mark.parametrize("name", ["table1", "table3", "figure4"])
def test_every_row_of_the_papers_tables_has_its_common_width(name: str) -> None:
    """d = 16, as the files say; and what follows from d follows."""
    tree, origin = experiment_tree(name)
    for cell in cells_of(tree, {}, Axes(), origin=origin):
        model = cell.config.model
        assert model.dim == 16, cell.name
        assert cell.name.method != "colr" or model.init_std == model.dim**-0.5
