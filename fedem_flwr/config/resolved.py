"""A run's configuration: frozen, validated, layered from TOML files, written resolved into the run's directory.

Layers, later ones win: field defaults · `configs/methods/METHOD.toml` · the data set file's `[settings.METHOD]` and
`[data]` · the experiment file · command-line options. Symbols in the descriptions are those of the FedEM paper (AAAI
2026).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w
from pydantic import ValidationError

from fedem_flwr.config.data_section import DataConfig
from fedem_flwr.config.diagnostics_section import DiagnosticsConfig
from fedem_flwr.config.ldp_section import LdpConfig
from fedem_flwr.config.least_squares import FoldInConfig, GroupTablesConfig, IalsConfig, OrderConfig
from fedem_flwr.config.messages_section import MessagesConfig
from fedem_flwr.config.registry import find, is_method, names
from fedem_flwr.config.search_section import SearchConfig
from fedem_flwr.config.section import Keywords, Section
from fedem_flwr.config.sections import (
    AggregateConfig,
    EvaluationConfig,
    GradientsConfig,
    LocalConfig,
    MergeConfig,
    MethodConfig,
    ModelConfig,
    NetworkConfig,
    PrivacyConfig,
    RunConfig,
)
from fedem_flwr.config.temporal_section import TemporalConfig
from fedem_flwr.config.tracking_section import TrackingConfig
from fedem_flwr.errors import InputError, suggest
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.rooms import presets

Tree = dict[str, Any]
_FORMER = {"elastic": "group_tables"}  # sections by the names that they had
_MOVED = {"ials.individual_uploads": "privacy.individual_uploads"}
DEFAULT_METHOD = "auto"  # where the data set's file names none


class Config(Section):
    """Everything a run depends on."""

    data: DataConfig = DataConfig()
    method: MethodConfig = MethodConfig()
    model: ModelConfig = ModelConfig()
    local: LocalConfig = LocalConfig()
    gradients: GradientsConfig = GradientsConfig()
    merge: MergeConfig = MergeConfig()
    aggregate: AggregateConfig = AggregateConfig()
    ials: IalsConfig = IalsConfig()
    fold_in: FoldInConfig = FoldInConfig()
    order: OrderConfig = OrderConfig()
    search: SearchConfig = SearchConfig()
    group_tables: GroupTablesConfig = GroupTablesConfig()
    run: RunConfig = RunConfig()
    network: NetworkConfig = NetworkConfig()
    messages: MessagesConfig = MessagesConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    ldp: LdpConfig = LdpConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    temporal: TemporalConfig = TemporalConfig()
    tracking: TrackingConfig = TrackingConfig()
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()

    @property
    def parts(self) -> tuple[Literal["validation", "test"], ...]:
        """The held-out parts that rounds are evaluated on."""
        if not rules_of(self.data.protocol).by_instant:
            return ("validation", "test")
        return ("test",) if self.temporal.rounds else ("validation",)

    def to_toml(self) -> str:
        """The resolved configuration; fields without a value are left out, as TOML has no null."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def changed(self, section: str, **values: Any) -> Config:
        """A copy with some fields of a section replaced, validated again."""
        tree = self.model_dump()
        tree[section].update(values)
        return build(tree, "an option")


def build(tree: Mapping[str, Any], origin: str) -> Config:
    """Validate a tree of sections.

    Raises:
        InputError: naming the key, what is wrong with it and, for an unknown key, the nearest valid one.
    """
    tree = renamed(tree)
    method = dict(tree.get("method", {}))
    strategy, options = str(method.get("strategy", MethodConfig().strategy)), method.pop("options", {})
    config = _valid(Config, {**tree, "method": method}, origin)
    if not isinstance(options, Mapping):
        raise InputError(f"{origin}: method.options = {options!r}: it must be a section, not a value")
    typed = _valid(_options_of(strategy), options, origin, ("method", "options"))
    return config.model_copy(update={"method": config.method.model_copy(update={"options": typed})})


def _options_of(strategy: str) -> type[Section]:
    """The class of a method's options. A strategy that is not here is refused where it is to be made."""
    try:
        kind: type[Section] = getattr(find("strategies", strategy), "Options", Keywords)
    except InputError:
        return Keywords
    return kind


_Model = TypeVar("_Model", bound=Section)


def _valid(model: type[_Model], tree: Mapping[str, Any], origin: str, above: tuple[str, ...] = ()) -> _Model:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise InputError(_explain(error.errors()[0], model, origin, above)) from None


def _explain(error: Any, model: type[Section], origin: str, above: tuple[str, ...]) -> str:
    path = [str(part) for part in error["loc"]]
    where = ".".join((*above, *path))
    if error["type"] == "extra_forbidden":
        if where in _MOVED:
            return (
                f"{origin}: '{where}' is '{_MOVED[where]}' now, for nodes that are started here; simulations need none"
            )
        valid = _fields_at(model, path[:-1])
        return f"{origin}: unknown key '{where}'{suggest(path[-1], valid)}"
    return f"{origin}: {where} = {error['input']!r}: {error['msg'].lower()}"


def _fields_at(model: Any, path: list[str]) -> list[str]:
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field is not None else None
    return list(getattr(model, "model_fields", {}))


def merge_trees(*trees: Mapping[str, Any]) -> Tree:
    """Overlay nested mappings; later ones win, key by key."""
    out: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merge_trees(out[key], value) if both else value
    return out


def renamed(tree: Mapping[str, Any]) -> Tree:
    """A tree of sections in which those with a former name have today's."""
    return merge_trees(*({_FORMER.get(section, section): keys} for section, keys in tree.items()))


def read_toml(path: Path) -> Tree:
    """Read a TOML file, or raise an InputError that names the file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        said = re.search(r"line (\d+)", str(error))
        line = text.split("\n")[int(said[1]) - 1] if said else ""
        hint = "; write a path in single quotes, or with / for \\" if re.search(r'"[^"]*\\', line) else ""
        raise InputError(f"{path} is not valid TOML: {error}{hint}") from None


def preset_names(kind: Literal["methods", "datasets"]) -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(path.stem for path in (presets() / kind).glob("*.toml"))


def _preset(kind: Literal["methods", "datasets"], name: str) -> Tree:
    if name not in preset_names(kind):  # it may be a path
        return {}
    return read_toml(presets() / kind / f"{name}.toml")


def method_names() -> list[str]:
    """What `--method` takes: presets, and methods of other packages."""
    return sorted({*preset_names("methods"), *names("strategies")})


def _own_preset(name: str, strategy: object) -> Tree:
    """What a method without a preset file starts from: its class says so."""
    for candidate in (name, str(strategy or "")):
        if ":" in candidate or candidate in names("strategies"):
            kind = find("strategies", candidate)
            if is_method(kind):
                return merge_trees({"method": {"strategy": candidate}}, kind.PRESET)
    return {}


def name_of_class(path: str) -> str:
    """What a class without a name of its own goes by: `package.module:MyMethod` as `my-method`."""
    words = re.findall(r"[A-Z]+[0-9]*(?![a-z])|[A-Z]?[a-z0-9]+", path.rpartition(":")[2].rpartition(".")[2])
    return "-".join(words).lower()


def resolve(experiment: Mapping[str, Any], options: Mapping[str, Any], origin: str = "configuration") -> Config:
    """Lay an experiment and command-line options over the presets of their method and data set.

    Args:
        experiment: tree of an experiment file; may be empty.
        options: tree of command-line options; wins over everything.
        origin: what to call the source in error messages.

    Raises:
        InputError: unknown method, data set or key, or a value out of range.
    """
    given = merge_trees(renamed(experiment), renamed(options))
    for key, value in given.items():
        if key not in Config.model_fields:
            raise InputError(f"{origin}: unknown section [{key}]{suggest(key, Config.model_fields)}")
        if not isinstance(value, Mapping):
            raise InputError(f"{origin}: '{key}' must be a section, not a value")
    dataset = str(given.get("data", {}).get("dataset", DataConfig().dataset))
    data_preset = _preset("datasets", dataset) if given.get("search", {}).get("presets", True) else {}
    settings = data_preset.pop("settings", {})
    default_method = data_preset.get("method", {}).get("name", DEFAULT_METHOD)
    method = str(given.get("method", {}).get("name", default_method))
    base = str(given.get("method", {}).get("base", method))
    own_strategy = given.get("method", {}).get("strategy")
    method_preset = _preset("methods", base) or _own_preset(base, own_strategy)
    if not method_preset and (base != method or own_strategy is None):
        raise InputError(f"{origin}: unknown method '{base}'{suggest(base, method_names())}")
    of_data = merge_trees(settings.get(base, {}), settings.get(method, {}))
    tree = merge_trees(method_preset, data_preset, of_data, _untuned(given), given)
    unnamed = "name" not in given.get("method", {}) and own_strategy not in (None, method_preset["method"]["strategy"])
    named = str(own_strategy) if unnamed else method  # results must not pass as the preset's
    tree.setdefault("method", {})["name"] = name_of_class(named) if ":" in named else named
    return build(tree, origin)


def _untuned(given: Mapping[str, Any]) -> Tree:
    """Settings that were given are used, not tuned away on validation."""
    values = {"fold_in": ("half_life", "ridge"), "order": ("weight", "map_weight")}
    off = {section: {"tune": False} for section, keys in values.items() if set(keys) & set(given.get(section, {}))}
    grids = {"weight": "weights", "ridge": "ridges"}
    fixed = {grids[name]: [value] for name, value in given.get("ials", {}).items() if name in grids}
    return merge_trees(off, {"search": fixed})


def load_resolved(path: Path) -> Config:
    """Read a run directory's config.toml, which needs no presets."""
    return build(read_toml(path), str(path))
