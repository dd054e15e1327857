"""A run's configuration: frozen, validated, layered from TOML files, written resolved into the run's directory.

Layers, later ones win: field defaults · `configs/methods/METHOD.toml` · the data set file's `[settings.METHOD]` and
`[data]` · the experiment file · command-line options. Symbols in the descriptions are those of the FedEM paper (AAAI
2026).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedem_flwr.data.synthetic import SyntheticConfig
from fedem_flwr.errors import InputError, suggest

Tree = dict[str, Any]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Section):
    """What is learnt from, and how it is split."""

    dataset: str = Field("synthetic", description="a known name, or the path of a delimited file")
    protocol: Literal["strict", "paper"] = Field("strict", description="evaluation protocol; `paper` leaks")
    data_dir: str | None = Field(
        None, description="folder with known data sets; else $FEDEM_DATA, the cache, a download"
    )
    min_interactions: int | None = Field(
        None, ge=3, description="rows a user must have; default: the data set's own, or 10"
    )
    separator: str | None = Field(None, description="of a delimited file; default: detected")
    header: bool | None = Field(None, description="whether the file has a header line; default: detected")
    user_column: str | int | None = Field(None, description="name or number (from 0)")
    item_column: str | int | None = Field(None, description="name or number (from 0)")
    rating_column: str | int | None = Field(None, description="name or number (from 0)")
    time_column: str | int | None = Field(None, description="name or number (from 0)")
    synthetic: SyntheticConfig = SyntheticConfig()


class MethodConfig(_Section):
    """Which Flower strategy and client a method is made of."""

    name: str = Field("fedmf", pattern=_NAME, description="name of the preset; shown in results, and a folder's name")
    base: str = Field("", description="preset whose settings this method starts from; default: the one of its name")
    title: str = Field("", description="one line for reports")
    strategy: str = Field("fedmf", description="a registered strategy, or `flwr.NAME` for a stock Flower strategy")
    client: str = Field("cohort", description="a registered client kind")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the strategy")


class ModelConfig(_Section):
    """Matrix factorisation."""

    dim: int = Field(16, ge=1, le=1024, description="d, embedding width (paper: 16)")
    init_std: float = Field(1.0, gt=0, description="standard deviation of initial embeddings (released program: 1)")


class LocalConfig(_Section):
    """Local training, Eq. 12. Defaults are the paper's."""

    epochs: int = Field(10, ge=1, description="E")
    batch_size: int = Field(256, ge=1, description="B")
    negatives: int = Field(4, ge=0, le=100, description="drawn for each positive, fresh every round")
    lr_user: float = Field(0.1, gt=0, description="η for p_u (Adam)")
    lr_item: float = Field(0.1, gt=0, description="η for Q_u (Adam)")
    early_stop: float = Field(
        0.0, ge=0, description="relative change of the running loss at which a client stops; 0 never"
    )


class MergeConfig(_Section):
    """Elastic merging, Eq. 9–11, and the variants of Table 2."""

    mode: Literal["none", "replace", "static", "scalar", "elastic"] = Field(
        "replace", description="how G and Q become one"
    )
    schedule: Literal["paper", "released"] = Field("paper", description="merge once a round, or again in every batch")
    rho: float = Field(0.5, ge=0, le=1, description="ρ of `static`")
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16, 8), min_length=1, description="hidden widths of the adapter"
    )
    bias: float = Field(0.0, description="added to the adapter's output at the start; > 0 favours the global table")
    lr: float = Field(0.1, gt=0, description="β for Θ_u (Adam)")
    epochs: int = Field(1, ge=1, description="epochs of Eq. 11 under the `paper` schedule")


class AggregateConfig(_Section):
    """What the server makes of the uploads, Eq. 13 and its alternatives."""

    weights: Literal["average", "rows", "eq13", "released", "cvxpy"] = Field(
        "average",
        description="average: w = p_v; rows: each row over the clients that trained it; others: one w a client",
    )
    similarity: Literal["frobenius", "pca", "cosine"] = Field("frobenius", description="σ between two clients' tables")
    alpha: float = Field(0.9, ge=0, description="α, weight of similarity")
    fraction: float = Field(1.0, gt=0, le=1, description="share of participants whose tables are aggregated")
    saturate: float | None = Field(None, gt=0, description="similarities above this become 1 (released program: 0.9)")
    pca_sign: Literal["raw", "fixed"] = Field("raw", description="sign of the first principal component")
    block_items: int = Field(512, ge=1, description="items combined at a time; bounds the server's memory")
    max_norm: float = Field(1e6, gt=0, description="an uploaded table with a larger Frobenius norm is refused")


class RunConfig(_Section):
    """How the run is carried out; nothing here changes what is computed, apart from seed, rounds and participants."""

    rounds: int = Field(30, ge=1, description="T")
    seed: int = Field(0, ge=0, description="of every draw")
    participants: float = Field(1.0, gt=0, le=1, description="share of users that train in a round")
    runtime: Literal["inprocess", "ray"] = Field("inprocess", description="where clients run")
    users_per_node: int = Field(
        0, ge=0, description="users that one Flower node hosts; 0: all on one node (ray: two nodes)"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where tensors live")
    threads: int = Field(0, ge=0, description="torch threads; 0: torch's own choice")
    round_timeout: float = Field(
        3600.0, gt=0, description="seconds after which a round goes on without missing replies"
    )
    checkpoint_every: int = Field(5, ge=1, description="rounds between checkpoints; the last round always has one")


class EvaluationConfig(_Section):
    """What stands beside the result."""

    controls: bool = Field(True, description="compute random, popularity and EASE")
    local_only: bool = Field(True, description="train the same method without federation, as a control")
    ease_lambda: float = Field(300.0, gt=0, description="ridge of EASE")
    cache_dir: str | None = Field(None, description="where controls are kept; default: the user's cache folder")


class Config(_Section):
    """Everything a run depends on."""

    data: DataConfig = DataConfig()
    method: MethodConfig = MethodConfig()
    model: ModelConfig = ModelConfig()
    local: LocalConfig = LocalConfig()
    merge: MergeConfig = MergeConfig()
    aggregate: AggregateConfig = AggregateConfig()
    run: RunConfig = RunConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

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
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(_explain(first, origin)) from None


def _explain(error: Any, origin: str) -> str:
    path = [str(part) for part in error["loc"]]
    where = ".".join(path)
    if error["type"] == "extra_forbidden":
        valid = _fields_at(path[:-1])
        return f"{origin}: unknown key '{where}'{suggest(path[-1], valid)}"
    return f"{origin}: {where} = {error['input']!r}: {error['msg'].lower()}"


def _fields_at(path: list[str]) -> list[str]:
    model: Any = Config
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


def read_toml(path: Path) -> Tree:
    """Read a TOML file, or raise an InputError that names the file and line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None


def preset_names(kind: Literal["methods", "datasets"]) -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(p.name.removesuffix(".toml") for p in _presets(kind).iterdir() if p.name.endswith(".toml"))


def _presets(kind: str) -> Any:
    return files("configs").joinpath(kind)


def _preset(kind: Literal["methods", "datasets"], name: str) -> Tree:
    if name not in preset_names(kind):  # it may be a path
        return {}
    return tomllib.loads(_presets(kind).joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def resolve(experiment: Mapping[str, Any], options: Mapping[str, Any], origin: str = "configuration") -> Config:
    """Lay an experiment and command-line options over the presets of their method and data set.

    Args:
        experiment: tree of an experiment file; may be empty.
        options: tree of command-line options; wins over everything.
        origin: what to call the source in error messages.

    Raises:
        InputError: unknown method, data set or key, or a value out of range.
    """
    given = merge_trees(experiment, options)
    for key, value in given.items():
        if key not in Config.model_fields:
            raise InputError(f"{origin}: unknown section [{key}]{suggest(key, Config.model_fields)}")
        if not isinstance(value, Mapping):
            raise InputError(f"{origin}: '{key}' must be a section, not a value")
    dataset = str(given.get("data", {}).get("dataset", DataConfig().dataset))
    data_preset = _preset("datasets", dataset)
    settings = data_preset.pop("settings", {})
    default_method = data_preset.get("method", {}).get("name", MethodConfig().name)
    method = str(given.get("method", {}).get("name", default_method))
    base = str(given.get("method", {}).get("base", method))
    method_preset = _preset("methods", base)
    if not method_preset and (base != method or "strategy" not in given.get("method", {})):
        raise InputError(f"{origin}: unknown method '{base}'{suggest(base, preset_names('methods'))}")
    tree = merge_trees(method_preset, data_preset, settings.get(method, {}), given)
    own_strategy = given.get("method", {}).get("strategy")
    unnamed = "name" not in given.get("method", {}) and own_strategy not in (None, method_preset["method"]["strategy"])
    tree.setdefault("method", {})["name"] = own_strategy if unnamed else method  # results must not pass as the preset's
    return build(tree, origin)


def load_resolved(path: Path) -> Config:
    """Read a run directory's config.toml, which needs no presets."""
    return build(read_toml(path), str(path))
