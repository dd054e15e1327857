"""The rounds of a prepared run, on the runtime that it names."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from flwr.serverapp import Grid

from fedem_flwr.config import Config
from fedem_flwr.config.sections import NetworkConfig
from fedem_flwr.engine.device import resolve_device
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.bottleneck import Observer, check_bottleneck
from fedem_flwr.experiment.controls import trained_configs
from fedem_flwr.experiment.second import check_instants
from fedem_flwr.experiment.tables_of_one import check_tables
from fedem_flwr.experiment.tracking import check_tracking
from fedem_flwr.nodes.answering import build_client_app
from fedem_flwr.nodes.host import NodeHost
from fedem_flwr.privacy.accounting import check_finite
from fedem_flwr.runtime.cluster import check_address
from fedem_flwr.runtime.inprocess import run_inprocess
from fedem_flwr.runtime.inputs import check_method
from fedem_flwr.runtime.lines import Line
from fedem_flwr.runtime.loop import Outcome
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.runtime.surroundings import peak_rss_bytes


def check_run(config: Config) -> None:
    """Find out before anything is read or written whether a run could be carried out.

    Raises:
        InputError: no such device, strategy or client, options that do not fit, an infinite ε, a limit of it that lets
            nothing go, or a network or Ray cluster that cannot be reached.
    """
    resolve_device(config.run.device)
    check_method(config)
    check_finite(config.ldp, config.run.rounds)
    check_bottleneck(config)
    check_tables(config)
    trained_configs(config)
    check_instants(config)
    check_tracking(config)
    if config.run.runtime == "network":
        from fedem_flwr.network.launch import check_network, check_privacy  # brings Flower's network clients

        check_network(config.network)
        check_privacy(config)
    _refuse_unused(config)
    if config.run.ray_address:
        check_address(config.run.ray_address)


def _refuse_unused(config: Config) -> None:
    """What only a network or Ray has use for is not passed over in silence elsewhere.

    Raises:
        InputError: it was given.
    """
    if config.run.ray_address and config.run.runtime != "ray":
        raise InputError(
            f"run.ray_address goes with --runtime ray, and this run's is {config.run.runtime}: leave it out, or give "
            "that"
        )
    if config.run.runtime == "network":
        return
    default = NetworkConfig()
    given = [name for name in NetworkConfig.model_fields if getattr(config.network, name) != getattr(default, name)]
    if given:
        option = f" (--{given[0]})" if given[0] in ("superlink", "certs", "insecure") else ""
        raise InputError(
            f"network.{given[0]}{option} goes with --runtime network, and this run's is {config.run.runtime}: "
            "leave it out, or give that"
        )


def carry_out_rounds(run: PreparedRun, on_line: Callable[[Line], None], *, resume: bool = False) -> Outcome:
    """Carry out the rounds that are left.

    Args:
        on_line: called with every finished metrics line, after it was written.
        resume: go on from the newest checkpoint, if there is one; over a network the server does so in any case.
    """
    if run.config.run.runtime == "network":
        from fedem_flwr.network.launch import carry_out_network  # brings Flower's network clients

        return carry_out_network(run, on_line)
    outcome = _here(run, run.server(on_line, resume=resume))
    return replace(outcome, peak_rss_bytes=peak_rss_bytes())  # now: controls may need more


def _here(prepared: PreparedRun, server: Callable[[Grid], Outcome]) -> Outcome:
    run = prepared.config.run
    device = resolve_device(run.device)
    run_dir = prepared.directory.path.resolve()
    if run.runtime == "inprocess":
        looks = prepared.config.diagnostics.bottleneck
        observe = Observer(run_dir, prepared.config, prepared.facts.users) if looks else None
        host = NodeHost(run_dir, prepared.nodes, run.threads, resident=True, observe=observe)
        return run_inprocess(build_client_app(host), server, nodes=prepared.nodes, run_config={})
    from fedem_flwr.runtime.simulation import run_simulation_runtime  # Ray takes seconds to import

    threads = max(1, run.threads)
    host = NodeHost(run_dir, prepared.nodes, threads, lasting=False)
    gpus = 0.0 if device.type == "cpu" else 1.0 / min(prepared.nodes, os.cpu_count() or 1)
    return run_simulation_runtime(
        build_client_app(host),
        server,
        nodes=prepared.nodes,
        run_config={},
        cpus_per_node=threads,
        gpus_per_node=gpus,
        address=run.ray_address,
    )
