"""Configuration: layers, presets, the resolved file, and messages about what is wrong."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from fedem_flwr.cli.options import experiment_tree, options_tree
from fedem_flwr.config import Config, build, load_resolved, merge_trees, preset_names, read_toml, resolve
from fedem_flwr.data import Interactions
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.plan import plan
from fedem_flwr.protocol.splits import make_split
from fedem_flwr.runtime.inputs import adapted, check_method

METHODS, DATASETS = preset_names("methods"), preset_names("datasets")
EXPERIMENTS = sorted(p.name.removesuffix(".toml") for p in files("configs").joinpath("experiments").iterdir())


def fields(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a model and of the models in it."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", field


# ---- presets


def test_there_are_presets() -> None:
    table2 = {"fedmf-sr", "fedsim", "fedsim-sm", "fedsim-dm"}
    assert table2 | {"fedem", "fedem-released", "fedmf", "local-only"} <= set(METHODS)
    assert set(DATASETS) == {"synthetic", "filmtrust", "ml-100k", "ml-1m", "lastfm-2k"}


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_resolves_to_a_method_that_can_be_made(method: str, dataset: str) -> None:
    config = resolve({}, {"method": {"name": method}, "data": {"dataset": dataset}})
    assert config.method.name == method and config.data.dataset == dataset and config.method.title
    check_method(config)


@pytest.mark.parametrize("kind", ["methods", "datasets", "experiments"])
def test_every_file_begins_with_the_command_that_runs_it(kind: str) -> None:
    for path in files("configs").joinpath(kind).iterdir():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        name = path.name.removesuffix(".toml")
        assert first.startswith("# fedem ") and first.split()[-1] == name, path.name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_resolves(name: str) -> None:
    tree, origin = experiment_tree(name)
    if "datasets" in tree:
        with pytest.raises(InputError, match="carry it out with `fedem compare"):
            plan(tree, {}, origin=origin)
        return  # a grid: see test_grid.py
    asked = plan(tree, {}, origin=origin)
    assert origin == name and len(asked.others) == len(tree["methods"]) - 1
    for config in (asked.config, *asked.others):
        check_method(config)
    titles = [config.method.title for config in (asked.config, *asked.others)]
    assert len({*titles}) == len(titles)


def test_variants_are_of_one_method_each() -> None:
    tree = {
        "methods": ["mine", "fedmf", "deep"],
        "variants": {
            "mine": {"method": {"base": "fedmf"}, "merge": {"mode": "elastic"}},
            "deep": {"method": {"base": "fedem"}, "merge": {"hidden": []}},
        },
        "run": {"rounds": 7},
    }
    asked = plan(tree, {"local": {"epochs": 2}}, origin="a test")
    assert [c.method.name for c in (asked.config, *asked.others)] == tree["methods"]
    assert [c.merge.mode for c in (asked.config, *asked.others)] == ["elastic", "replace", "elastic"]
    assert asked.config.local.epochs == asked.others[1].local.epochs == 2
    assert asked.config.local.lr_user == resolve({}, {"method": {"name": "fedmf"}}).local.lr_user
    assert asked.others[1].merge.hidden == () and asked.others[1].run.rounds == 7
    for variants, words in (({"fedmv": {}}, "'fedmf'"), ({"fedmf": 1}, "variants.NAME.SECTION"), (3, "sections")):
        with pytest.raises(InputError, match=words):
            plan({"methods": ["fedmf"], "variants": variants}, {}, origin="a test")


def test_a_section_of_a_former_name_is_read() -> None:
    """Also from the file of a run that was carried out before."""
    config = resolve({"elastic": {"groups": 3}}, {"method": {"name": "fedmf-elastic"}})
    assert config.group_tables.groups == 3 and config.group_tables.rounds == 20
    tree = config.model_dump()
    assert build({**tree, "elastic": tree.pop("group_tables")}, "a test") == config


def test_defaults_are_the_ones_that_are_promised() -> None:
    config = resolve({}, {})
    assert (config.data.dataset, config.method.name, config.data.protocol) == ("synthetic", "fedials", "strict")
    assert (config.run.runtime, config.run.seed, config.run.participants) == ("inprocess", 0, 1.0)


# ---- layers


def test_later_layers_win() -> None:
    preset = resolve({}, {"method": {"name": "fedem-released"}})
    assert (preset.local.early_stop, preset.aggregate.fraction) == (1e-4, 0.1), "the method's file over the defaults"
    experiment = {"method": {"name": "fedem-released"}, "local": {"early_stop": 0.5, "epochs": 3}, "run": {"seed": 4}}
    layered = resolve(experiment, {"local": {"epochs": 7}, "run": {"rounds": 2}})
    assert layered.local.early_stop == 0.5, "the experiment over the method's file"
    assert layered.local.epochs == 7, "options over the experiment"
    assert (layered.run.seed, layered.run.rounds) == (4, 2), "sections are laid over each other key by key"
    assert layered.aggregate == preset.aggregate, "what nobody mentions stays"
    other = resolve(experiment, {"method": {"name": "fedmf"}})
    assert other.aggregate.fraction == 1.0 and other.local.epochs == 3, "options choose the preset, too"


def test_a_data_sets_file_lies_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its [settings.METHOD] are over the method's preset, and under the experiment."""
    from fedem_flwr.config import resolved as module

    preset = module._preset

    def with_settings(kind: Any, name: str) -> Any:
        found = preset(kind, name)
        if kind == "datasets":
            found["settings"] = {"fedem": {"local": {"epochs": 4, "lr_user": 0.5}}, "fedmf": {"local": {"epochs": 99}}}
        return found

    monkeypatch.setattr(module, "_preset", with_settings)
    config = resolve({"local": {"lr_user": 0.25}}, {"method": {"name": "fedem"}})
    assert (config.local.epochs, config.local.lr_user, config.local.lr_item) == (4, 0.25, 0.1)


def test_a_method_of_ones_own_needs_no_preset() -> None:
    config = resolve({"method": {"name": "mine", "strategy": "flwr.FedAvg", "client": "table"}}, {})
    assert config.method.strategy == "flwr.FedAvg" and config.local == Config().local
    with pytest.raises(InputError, match="unknown method 'mine'"):
        resolve({"method": {"name": "mine"}}, {})


TREES = st.recursive(
    st.integers(0, 3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
)


def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {place: value for key, inner in tree.items() for place, value in leaves(inner, (*path, key)).items()}


@given(st.dictionaries(st.sampled_from("abc"), TREES), st.dictionaries(st.sampled_from("abc"), TREES))
def test_merged_trees_hold_the_later_leaves(first: dict[str, Any], second: dict[str, Any]) -> None:
    merged = leaves(merge_trees(first, second))
    assert leaves(second).items() <= merged.items()
    for place, value in merged.items():
        assert leaves(second).get(place, leaves(first).get(place)) == value
    assert merge_trees(first, {}) == merge_trees({}, first) == first


# ---- the resolved file


@pytest.mark.parametrize("method", METHODS)
def test_round_trip(method: str, tmp_path: Path) -> None:
    data = {"dataset": 'a "b"\\c.csv', "user_column": 0, "item_column": "item é", "header": False}
    config = resolve({"data": data}, {"method": {"name": method}, "run": {"seed": 2**40}})
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert load_resolved(path) == config
    assert load_resolved(path).to_toml() == config.to_toml()


def test_options_of_a_stock_strategy_round_trip(tmp_path: Path) -> None:
    options = {"fraction_train": 0.5, "nested": {"x": [1, 2]}}
    config = resolve({}, {"method": {"name": "mean", "strategy": "flwr.FedAvg", "options": options}})
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert load_resolved(path) == config and load_resolved(path).method.options.model_dump() == options


def test_the_resolved_file_says_everything() -> None:
    tree = tomllib.loads(resolve({}, {}).to_toml())
    for name, field in fields(Config):
        inner: Any = tree
        for part in name.split("."):
            inner = inner.get(part) if isinstance(inner, dict) else None
        assert inner is not None or field.default is None, name


def test_a_configuration_cannot_be_changed() -> None:
    config = resolve({}, {})
    with pytest.raises(ValueError, match="frozen"):
        config.run.rounds = 3
    assert config.changed("run", rounds=3).run.rounds == 3 and config.run.rounds != 3
    with pytest.raises(InputError, match=r"run.rounds = 0"):
        config.changed("run", rounds=0)


def test_every_field_is_described() -> None:
    found = dict(fields(Config))
    assert len(found) > 50
    assert [name for name, field in found.items() if not (field.description or "").strip()] == []
    assert [name for name, field in found.items() if (field.description or "").endswith(".")] == []


# ---- what is wrong


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"local": {"epoch": 1}}, "here: unknown key 'local.epoch'; did you mean 'epochs'?"),
        ({"data": {"synthetic": {"user": 1}}}, "here: unknown key 'data.synthetic.user'; did you mean 'users'?"),
        ({"evaluaton": {}}, r"here: unknown section \[evaluaton\]; did you mean 'evaluation'?"),
        ({"run": 3}, "here: 'run' must be a section, not a value"),
        ({"run": {"rounds": "ten"}}, "here: run.rounds = 'ten': .*integer"),
        ({"run": {"participants": 0}}, "here: run.participants = 0: .*greater than 0"),
        ({"aggregate": {"fraction": 1.5}}, "here: aggregate.fraction = 1.5"),
        ({"local": {"lr_user": float("inf")}}, "here: local.lr_user = inf"),
        ({"merge": {"rho": -0.1}}, "here: merge.rho"),
        ({"method": {"name": "fedem-relased"}}, "here: unknown method 'fedem-relased'; did you mean 'fedem-released'?"),
        ({"method": "fedem"}, "here: 'method' must be a section"),
        ({"data": "filmtrust"}, "here: 'data' must be a section"),
    ],
)
def test_errors_name_the_key_and_the_way_out(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        resolve(tree, {}, "here")
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*nothing.toml: No such file"):
        read_toml(tmp_path / "nothing.toml")
    (tmp_path / "latin.toml").write_bytes(b'title = "\xe9"')
    with pytest.raises(InputError, match=r"latin.toml is not valid TOML"):
        read_toml(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("settings", "tree"),
    [
        (["local.epochs=3", "local.lr_user=0.5"], {"local": {"epochs": 3, "lr_user": 0.5}}),
        (["merge.hidden=[4, 2]"], {"merge": {"hidden": [4, 2]}}),
        (["data.dataset=my=file.csv"], {"data": {"dataset": "my=file.csv"}}),
        (['data.dataset="3"', "data.header=false"], {"data": {"dataset": "3", "header": False}}),
        (["data.synthetic.users=50"], {"data": {"synthetic": {"users": 50}}}),
        (["run.seed=1", "run.seed=2"], {"run": {"seed": 2}}),
    ],
)
def test_settings_are_read_as_toml_or_text(settings: list[str], tree: dict[str, Any]) -> None:
    assert options_tree({"run": {"rounds": None}}, settings) == tree


def test_settings_that_are_given_are_not_tuned_away() -> None:
    assert resolve({}, {}).fold_in.tune and resolve({}, {"method": {"name": "fedials-order"}}).order.tune
    given = resolve({"fold_in": {"half_life": 4.0}}, {"method": {"name": "fedials-order"}, "order": {"weight": 1.0}})
    assert not given.fold_in.tune and not given.order.tune
    assert resolve({}, {"fold_in": {"ridge": 2.0, "tune": True}}).fold_in.tune, "unless that is asked for"


def test_a_preset_width_is_lowered_for_a_small_catalogue_and_a_given_one_is_refused() -> None:
    few = Interactions(
        "few",
        np.repeat(np.arange(12), 12),
        np.tile(np.arange(12), 12),
        None,
        None,
        np.arange(12).astype(str),
        np.arange(12).astype(str),
    )
    split = make_split(few, "strict", seed=0)
    config = resolve({}, {"method": {"name": "fedials"}})
    assert adapted(config, split, frozenset()).model.dim == 2
    with pytest.raises(InputError, match=r"model\.dim = 16 is more than the 12 items"):
        adapted(config, split)
