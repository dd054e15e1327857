"""From a validated configuration to the objects of the pure core."""

from __future__ import annotations

import torch

from fedem_flwr.config import Config
from fedem_flwr.engine.cohort import CohortSettings
from fedem_flwr.engine.local import LocalSettings
from fedem_flwr.engine.merge import Merge
from fedem_flwr.engine.order import OrderTask
from fedem_flwr.errors import InputError
from fedem_flwr.models.adapter import Adapter
from fedem_flwr.models.encoder import Encoder


def keeps_own_tables(config: Config) -> bool:
    """Whether users keep item tables between rounds: not where one table for all replaces them every round."""
    one_table_for_all = config.aggregate.weights in ("average", "rows")
    return not (config.merge.mode == "replace" and one_table_for_all)


def cohort_settings(config: Config, secret: bytes = b"") -> CohortSettings:
    """The method, as a client's pure core wants it; with the secret of the node whose draws it keys."""
    local, merge = config.local, config.merge
    return CohortSettings(
        dim=config.model.dim,
        init_std=config.model.init_std,
        seed=config.run.seed,
        merge=Merge(merge.mode, merge.rho, Adapter(config.model.dim, merge.hidden, merge.bias)),
        schedule=merge.schedule,
        local=LocalSettings(
            epochs=local.epochs,
            batch_size=local.batch_size,
            negatives=local.negatives,
            lr_user=local.lr_user,
            lr_item=local.lr_item,
            lr_adapter=merge.lr,
            early_stop=local.early_stop,
        ),
        own_tables=keeps_own_tables(config),
        adapter_epochs=merge.epochs,
        secret=secret,
    )


def order_task(config: Config, secret: bytes = b"") -> OrderTask:
    """The order component's training; with the secret of the node whose draws it keys.

    Raises:
        InputError: the heads do not divide the width.
    """
    order, dim = config.order, config.model.dim
    if dim % order.heads:
        raise InputError(f"order.heads = {order.heads} does not divide model.dim = {dim}: choose a divisor")
    encoder = Encoder(dim, order.layers, order.heads, order.window, order.dropout)
    return OrderTask(encoder, order.negatives, order.fine_tune, config.run.seed, secret)


DEVICES = ("auto", "cpu", "cuda")


def resolve_device(name: str) -> torch.device:
    """The device to compute on; `auto` takes CUDA where there is one.

    Raises:
        InputError: CUDA was asked for and is not there, or it is no device.
    """
    if name not in DEVICES:
        raise InputError(f"'{name}' is no device: choose {', '.join(DEVICES[:-1])} or {DEVICES[-1]}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("no CUDA device was found: use --device cpu, or install a CUDA build of torch and a driver")
    return torch.device("cuda" if name != "cpu" and available else "cpu")
