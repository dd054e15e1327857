"""A SuperLink's Control API: runs are started, and nodes made known.

Flower's open edition has no accounts for it: whoever reaches it may do so, stop runs, and shut nodes out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import cache

from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, RegisterNodeRequest
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.network.link import Address, Missing, Patience, Refused, Unreachable, already_known
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


def shut_out(client: ControlHttpClient, names: Iterable[tuple[str, bytes]]) -> list[str]:
    """Which of these nodes somebody has unregistered: Flower lets their keys in no more, nor registers them again."""
    nodes = client.ListNodes(ListNodesRequest()).nodes_info
    gone = {node.public_key for node in nodes if node.status == NodeStatus.UNREGISTERED}
    return [name for name, key in names if key in gone]


def remedy(names: Iterable[str]) -> str:
    """What to do about nodes that were shut out, in a line."""
    nodes = list(names)
    options = " ".join(f"--rekey {name}" for name in nodes)
    return (
        f"{', '.join(nodes)}: somebody has unregistered them at the SuperLink, which takes no key twice: make new ones "
        f"(`fedem deploy certs --out CERTS {options}`), start these nodes and the server with them, close /v1/control"
    )


def is_open(address: Address) -> bool:
    """Whether the Control API answers here without an account.

    Raises:
        Unreachable: nobody answers, or not in a way that tells. InputError: TLS fails.
    """
    client = control_client(address, Patience(address, 0.0, threading.Event()))
    try:
        client.ListRuns(ListRunsRequest(limit=1))
    except (Refused, Missing):
        return False
    except (Unreachable, InputError):
        raise
    except FedemError as error:
        raise Unreachable(str(error)) from None  # it fails, or floods: that does not say that it is closed
    finally:
        client.close()
    return True
