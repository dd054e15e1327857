"""A SuperLink's Control API: runs are started, and nodes made known."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedem_flwr.errors import FedemError
from fedem_flwr.network.link import Address, Patience, already_known
from fedem_flwr.version import __version__


@cache
def app_bundle() -> bytes:
    """The smallest Flower app: it names this package's apps and holds no code; nodes run what they have installed."""
    from flwr.cli.build import build_fab_from_files  # brings all of Flower's command line

    project = f"""
[project]
name = "fedem-flwr"
version = "{__version__}"
description = "Names the apps of an installed fedem-flwr."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedem"

[tool.flwr.app.components]
serverapp = "fedem_flwr.server_app:app"
clientapp = "fedem_flwr.client_app:app"
"""
    return build_fab_from_files({"pyproject.toml": project.encode()})[0]


def control_client(address: Address, patience: Patience) -> ControlHttpClient:
    """The API that starts runs and registers nodes."""
    interceptors = [RuntimeVersionHttpInterceptor(component_name="flwr CLI")]
    return address.client(ControlHttpClient, interceptors, patience)


def register_nodes(client: ControlHttpClient, names: Iterable[tuple[str, bytes]]) -> int:
    """Make nodes known to the SuperLink by name and public key; returns how many it did not know yet."""
    new = 0
    for name, public_key in names:
        try:
            client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))
            new += 1
        except FedemError as error:
            if not already_known(error):
                raise
    return new
