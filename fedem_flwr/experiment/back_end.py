"""Which back end trains a run's clients, and why not the quick one."""

from __future__ import annotations

from fedem_flwr.contract.finding import method_of
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.engine.device import resolve_device
from fedem_flwr.engine.fallback import COMPILING, by_kernels, device_fallback, method_fallback
from fedem_flwr.runtime.prepared import PreparedRun


def back_end(run: PreparedRun) -> dict[str, str]:
    """For summary.json: what was `asked` for, what is `used`, and `why` where that is something else.

    Single users can still be trained by torch, where compiled functions would take too long (see `engine.fallback`).
    """
    config = run.config
    asked, why = config.run.engine, ""
    used, device = asked, resolve_device(config.run.device)
    if asked in COMPILING:
        kernels = by_kernels(asked)
        used = "triton" if kernels else "fused"
        method = method_of(config, run.facts.items)
        trains = any(isinstance(phase.task, LocalTraining) for phase in method.phases())
        found = method_fallback(method, kernels=kernels) or device_fallback(device, kernels=kernels)
        why = found if trains else "clients train nothing in steps"
    return {"asked": asked, "used": "torch" if why else used, "why": why}


def back_end_said(run: PreparedRun) -> list[str]:
    """The same in a line for the terminal."""
    found = back_end(run)
    names = {
        "fused": "compiled functions",
        "triton": "kernels on a GPU",
        "torch": "batched torch",
        "reference": "one client at a time, slow",
    }
    why = f" ({found['why']})" if found["why"] else ""
    return [f"local training: {names[found['used']]}{why}"]
