"""Where tensors live."""

from __future__ import annotations

import torch

from fedem_flwr.errors import InputError

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
