"""What a configuration names: its data, its split, its strategy; and whether they fit together."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedem_flwr.config import Config
from fedem_flwr.config.registry import STOCK_PREFIX, by_path, client_of, find, is_method
from fedem_flwr.data import KNOWN_DATASETS, Columns, Interactions, Source, load_dataset, open_source
from fedem_flwr.errors import InputError
from fedem_flwr.models.mf import initial_table
from fedem_flwr.protocol.account import Account
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.protocol.split import Split, SplitFacts
from fedem_flwr.protocol.splits import account_of, make_split, split_to
from fedem_flwr.protocol.temporal import Stages, stages_of
from fedem_flwr.pulse import tell
from fedem_flwr.runtime.resumable import Resumable
from fedem_flwr.runtime.stock import StockStrategy

DEFAULT_MIN_INTERACTIONS = 10
_MINIMA = {"min_train_nodes", "min_evaluate_nodes", "min_available_nodes"}  # options of stock strategies


def load_interactions(config: Config) -> Interactions:
    """The data set that a configuration names, in memory."""
    return load_dataset(*_where(config), **_how(config))


def split_of(config: Config, interactions: Interactions) -> Split:
    """The leave-one-out split under the configuration's protocol, in memory."""
    return make_split(interactions, config.data.protocol, **_kept(config))


def account_with(config: Config, interactions: Interactions) -> tuple[dict[str, int], Account | None]:
    """The sizes of that split and, under strict, what became of the rows, without making it."""
    return account_of(interactions, config.data.protocol, **_kept(config))


def split_into(
    folder: Path,
    config: Config,
    on_progress: Callable[[int, int], None] | None = None,
    source: Source | None = None,
) -> Split:
    """The same straight into a folder and mapped from there: neither all rows nor all negatives are in memory.

    Under ``temporal`` all rows are; the split is the first training's, with the second's in its folder.

    Args:
        folder: replaced when the split is complete.
        on_progress: told how many users are done, and of how many; by default whoever watches this step is.
        source: the data, where they are not those that the configuration names.
    """
    data = source or open_source(*_where(config), **_how(config))
    if rules_of(config.data.protocol).by_instant:
        return stages_with(config, data).save(folder)
    return split_to(
        folder,
        data,
        config.data.protocol,
        on_progress=on_progress or partial(tell, "splitting, users"),
        **_kept(config),
    )


def stages_with(config: Config, source: Source) -> Stages:
    """Both splits under a protocol that cuts by instants."""
    temporal = config.temporal
    return stages_of(source, **_kept(config), instants=temporal.instants, target=temporal.target)


def check_shards(config: Config) -> None:
    """Find out whether data can be spread over nodes that outlive a run.

    Raises:
        InputError: a run under the protocol needs more than a shard holds.
    """
    if rules_of(config.data.protocol).by_instant:
        raise InputError(
            f"protocol '{config.data.protocol}' trains twice, on different data, and a shard holds those of one "
            "training: use --protocol strict here, or `fedem run --runtime network`, whose nodes are started twice"
        )


def _kept(config: Config) -> dict[str, Any]:
    """What decides which rows are kept, and the seed."""
    data = config.data
    return {
        "seed": config.run.seed,
        "min_interactions": _fewest_interactions(config),
        "min_rating": data.min_rating,
    }


def _where(config: Config) -> tuple[str, Path | None]:
    folder = Path(config.data.data_dir) if config.data.data_dir else None
    if folder is not None and not folder.is_dir():  # also where the data set is not looked for there
        raise InputError(f"data folder {folder} does not exist; create it or name another")
    return config.data.dataset, folder


def columns_of(config: Config) -> Columns:
    """What a configuration says of the data's layout."""
    data = config.data
    return Columns(
        user=data.user_column,
        item=data.item_column,
        rating=data.rating_column,
        time=data.time_column,
        separator=data.separator,
        header=data.header,
        form=data.format,
        encoding=data.encoding,
        comment=data.comment,
        time_format=data.time_format,
        in_order=data.order == "rows",
    )


def _how(config: Config) -> dict[str, Any]:
    layout = columns_of(config)
    columns = None if layout == Columns() else layout
    return {"columns": columns, "seed": config.run.seed, "synthetic": config.data.synthetic}


def _fewest_interactions(config: Config) -> int:
    data, known = config.data, KNOWN_DATASETS.get(config.data.dataset)
    return data.min_interactions or (known.min_interactions(data.protocol) if known else DEFAULT_MIN_INTERACTIONS)


def build_strategy(config: Config, items: int) -> Resumable:
    """The strategy a configuration names, as the loop wants it.

    A method is carried out by the strategy that it names. A Flower strategy gets its options as keyword arguments; one
    of another package also the configuration and m, where its constructor has parameters `config` and `items`.

    Raises:
        InputError: there is no such strategy, it does not take these options, or it refuses them: ours with an
            InputError, Flower's with a ValueError. What else a constructor raises is an error in it, and passes.
    """
    name = config.method.strategy
    kind = find("strategies", name)
    if is_method(kind):
        of_method: Resumable = by_path(kind.STRATEGY)(config, items)
        return of_method
    if config.messages.narrow:
        raise InputError(
            f"[messages] narrows what methods send: the Flower strategy '{name}' is none; name a method, such as "
            "fedmf, or leave [messages] out"
        )
    options = config.method.options.model_dump()
    stock = name.startswith(STOCK_PREFIX)
    signature = inspect.signature(kind)
    wanted = {} if stock else {"config": config, "items": items}
    options |= {name: value for name, value in wanted.items() if name in signature.parameters}
    if stock:
        for minimum in _MINIMA & signature.parameters.keys():
            options.setdefault(minimum, 1)  # Flower's default of 2 waits for ever where one node hosts everybody
    try:
        signature.bind(**options)
    except TypeError as error:
        raise InputError(f"[method.options] does not fit the strategy '{name}': {error}") from None
    try:
        built = kind(**options)
    except ValueError as error:
        if not stock:
            raise
        raise InputError(f"the strategy '{name}' refuses its [method.options]: {error}") from error
    return built if isinstance(built, Resumable) else _wrapped(built, config, items)


def _wrapped(strategy: Strategy, config: Config, items: int) -> StockStrategy:
    """A strategy that knows Flower's interface alone, with one item table for all as its model."""
    model = config.model
    table = initial_table(items, model.dim, model.init_std, config.run.seed).numpy()
    return StockStrategy(strategy, {"item_table": table}, config)


def check_method(config: Config, items: int = 1) -> None:
    """Find out whether the strategy and the client can be made, as far as that is known before the data are.

    Args:
        items: m, where it is known already.

    Raises:
        InputError: they cannot.
    """
    build_strategy(config, items)
    client_of(config.method.strategy, config.method.client)


def adapted(config: Config, split: SplitFacts, given: frozenset[str] | None = None) -> Config:
    """A configuration that fits the data.

    Without times nothing uses order: the rows' order would be that of the file. A width that nobody asked for is
    lowered where there are hardly more items than that.

    Args:
        given: dotted names of the settings that were asked for; None: all of them.

    Raises:
        InputError: the method learns from order, or needs more items than there are.
    """
    strategy = find("strategies", config.method.strategy)
    free = given is not None and "model.dim" not in given
    if free and getattr(strategy, "LOW_RANK", False) and 4 * config.model.dim > split.items:
        config = config.changed("model", dim=max(2, min(config.model.dim, split.items // 8 * 2)))
    if getattr(strategy, "LOW_RANK", False) and config.model.dim > split.items:
        raise InputError(
            f"model.dim = {config.model.dim} is more than the {split.items} items of {split.dataset}: the table would "
            f"have no low rank; lower it (--set model.dim={max(1, split.items // 4)})"
        )
    if given is not None and is_method(strategy):
        config = strategy.fitted(config, split, given)
    if split.has_times:
        return config
    if getattr(strategy, "NEEDS_TIMES", False):
        raise InputError(
            f"method '{config.method.name}' learns what follows what, and {split.dataset} has no times: use a method "
            "without order, such as --method fedials"
        )
    return config.changed("fold_in", half_life=0.0, half_lives=[0.0])
