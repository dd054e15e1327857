"""The method that a configuration names."""

from __future__ import annotations

from fedem_flwr.config import Config
from fedem_flwr.config.registry import find, is_method
from fedem_flwr.contract.guarded import guarded
from fedem_flwr.contract.merging import plugged
from fedem_flwr.contract.method import Method
from fedem_flwr.errors import InputError

TRAINED_UNDER_FLOWER = "fedmf"  # what clients train under a Flower strategy that knows of no method


def uploads_single_users(config: Config) -> bool:
    """Whether the method asks for single users' own values, which nodes may refuse."""
    method = method_of(config, 1)
    fields = (field for phase in method.phases() for field in phase.task.fields().values())
    return method.federated and any(field.each for field in fields)


def method_of(config: Config, items: int) -> Method:
    """The method that devices carry out.

    With `merge.mode` they keep tables of their own; see `contract.merging`. Under a Flower strategy, stock or one of
    your own, they train matrix factorisation.

    Raises:
        InputError: there is no such method, or it does not fit the configuration.
    """
    kind = find("strategies", config.method.strategy)
    if not is_method(kind):
        if config.ldp.active:
            raise InputError(
                f"[ldp] guards the uploads of methods: the Flower strategy '{config.method.strategy}' is none; name a "
                "method, such as fedmf, or leave [ldp] out"
            )
        kind = find("strategies", TRAINED_UNDER_FLOWER)
        config = config.changed("aggregate", weights="average", fraction=1.0)
    if config.ldp.active and config.method.client:
        raise InputError(
            f"[ldp] guards what a method's own client sends: method.client = '{config.method.client}' is another; "
            "leave either out"
        )
    return guarded(plugged(kind, config), config)(config, items)
