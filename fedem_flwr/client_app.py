"""The Flower ClientApp: unpacks a message, calls the NumPyClient's `fit` or `evaluate`, packs the reply."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedem_flwr.registry import find
from fedem_flwr.runtime.node import NodeHost
from fedem_flwr.runtime.wire import pack_arrays, unpack_arrays


def build_client_app(host: NodeHost | None = None) -> ClientApp:
    """A ClientApp whose nodes are hosted by `host`, or described by the context's run configuration.

    Args:
        host: given where the process that makes the app also runs the clients, or hands it to Ray's actors.
    """
    app = ClientApp()

    def client_of(context: Context) -> Any:
        here = host if host is not None else _host_from(context)
        kind = here.config.method.client
        return find("clients", kind)(here, int(context.node_config["partition-id"]))

    @app.query()
    def query(message: Message, context: Context) -> Message:
        arrays = client_of(context).introduce()
        return Message(RecordDict({"arrays": pack_arrays(arrays)}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = client_of(context)
        config = _config(message)
        try:
            parameters = _parameters(message, client.DOWNLOAD)
            arrays, examples, metrics = client.fit(parameters, config)
        except Exception:
            client.host.forget(client.node)
            raise
        names = client.upload_names(config)
        if "participants" in client.DOWNLOAD and not len(parameters[client.DOWNLOAD.index("participants")]):
            arrays = [array[(slice(0, 0),) * array.ndim] for array in arrays]  # whoever only evaluates sends no zeros
        return _reply(message, metrics, examples, dict(zip(names, arrays, strict=True)))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = client_of(context)
        _, examples, metrics = client.evaluate(_parameters(message, client.DOWNLOAD), _config(message))
        return _reply(message, metrics, examples, None)

    return app


def _host_from(context: Context) -> NodeHost:
    settings = context.run_config
    return NodeHost(
        Path(str(settings["run-dir"])), int(context.node_config["num-partitions"]), int(settings["threads"])
    )


def _config(message: Message) -> dict[str, Any]:
    return dict(message.content.config_records.get("config", ConfigRecord()))


def _parameters(message: Message, names: tuple[str, ...]) -> list[np.ndarray]:
    """The message's arrays in the order that the client takes them."""
    received = unpack_arrays(message.content.array_records["arrays"])
    missing = [name for name in names if name not in received]
    if missing:
        raise ValueError(f"the message lacks the arrays {missing}; the strategy and the client do not fit together")
    return [received[name] for name in names]


def _reply(
    message: Message, metrics: Mapping[str, Any], examples: int, arrays: Mapping[str, np.ndarray] | None
) -> Message:
    content = RecordDict({"metrics": MetricRecord({**metrics, "num-examples": examples})})
    if arrays is not None:
        content["arrays"] = pack_arrays(arrays)
    return Message(content, reply_to=message)


app = build_client_app()
