"""A Ray cluster that is running: how to be a driver of it, and how many actors it has room for."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from typing import Any

from fedem_flwr.errors import InputError
from fedem_flwr.text import one_line

_ANSWER_SECONDS = 10.0  # that a cluster's head may take
_GIVEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "FLWR_TELEMETRY_ENABLED")  # of this process, to actors elsewhere


def check_address(address: str) -> None:
    """Find out whether anybody answers there: Ray itself would ask for minutes.

    Args:
        address: HOST:PORT of a cluster's head.

    Raises:
        InputError: nobody does.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _not_joined(address, error) from error


def join(address: str, cpus_per_node: int) -> None:
    """Be a driver of a cluster, which Flower then uses instead of starting Ray.

    Raises:
        InputError: none answers there, this machine is not one of it, none of its machines has so many cores, or others
            have some of them.
    """
    import ray

    check_address(address)
    given = {name: os.environ[name] for name in _GIVEN if name in os.environ}
    given["PYTHONPATH"] = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))
    try:
        ray.init(address=address, runtime_env={"env_vars": given}, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray's are of many classes
        raise _not_joined(address, error) from error
    if not room(cpus_per_node):
        ray.shutdown()
        raise InputError(
            f"no machine of the Ray cluster at {address} has {cpus_per_node} CPU cores: lower run.threads, or start "
            "Ray there with more (--num-cpus)"
        )
    deadline = time.monotonic() + _ANSWER_SECONDS  # who has just left gives cores back in a moment
    while (taken := _cores() - _free()) > 0:
        if time.monotonic() > deadline:
            ray.shutdown()
            raise InputError(
                f"others have {taken:g} of the {_cores():g} CPU cores of the Ray cluster at {address}, and Flower "
                "would wait for them without a word: wait until they are done, or start a cluster of your own"
            )
        time.sleep(0.1)


def room(cpus_per_node: int) -> int:
    """How many actors Flower will start in the cluster that was joined."""
    return sum(int(one["Resources"].get("CPU", 0)) // cpus_per_node for one in _machines())


def _cores() -> float:
    return sum(float(one["Resources"].get("CPU", 0.0)) for one in _machines())


def _free() -> float:
    import ray

    return float(ray.available_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]


def _machines() -> list[dict[str, Any]]:
    import ray

    return [one for one in ray.nodes() if one["Alive"]]  # type: ignore[no-untyped-call]


def _not_joined(address: str, error: Exception) -> InputError:
    return InputError(
        f"no Ray cluster can be joined at {address}: start it with `ray start --head --port=6379`, join it on this "
        f"machine with `ray start --address={address}`, with the same versions of Python and Ray "
        f"({one_line(str(error))})"
    )
