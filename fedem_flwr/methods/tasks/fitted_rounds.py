"""How many rounds `auto` takes, by what everybody may know of the data."""

from __future__ import annotations

from fedem_flwr.config import Config
from fedem_flwr.methods.tasks.order_map import most_pairs
from fedem_flwr.protocol.split import SplitFacts

_PASSES, _TOGETHER, _ROUNDS = 15, 64, (150, 1500)  # of the encoder: over the users; users a round; fewest and most
_LOOKS = 5  # at the encoder
_LARGE, _ENTRIES = 10_000, 64  # items from which a row of the map has fewer entries: it goes down to every device
_PAIRS = 20_000_000  # of items with sums, half a gigabyte: with more and so many items there is no map


def fitted(config: Config, facts: SplitFacts, given: frozenset[str]) -> Config:
    """Rounds of the encoder by the number of users; none without times; a narrower map of many items, or none.

    Args:
        given: dotted names of settings that were asked for, and stay.
    """
    ordered, (fewest, most) = facts.has_times and config.search.order, _ROUNDS
    entries = config.order.map
    if facts.items > _LARGE:
        entries = min(entries, _ENTRIES) if most_pairs(facts) <= _PAIRS else 0
    order = {
        "rounds": round(min(most, max(fewest, _PASSES * facts.users / _TOGETHER))) if ordered else 0,
        "map": entries,
        "participants": min(1.0, _TOGETHER / max(1, facts.users)),
    }
    free = {name: value for name, value in order.items() if f"order.{name}" not in given}
    config = config.changed("order", **(free if ordered else order))
    if not facts.has_times:
        config = config.changed("search", half_lives=[0.0])
    if "run.rounds" not in given:
        config = config.changed("run", rounds=config.search.rounds + config.order.rounds)
    if "evaluation.every" not in given:
        config = config.changed("evaluation", every=max(config.search.rounds, config.run.rounds // _LOOKS))
    return config
