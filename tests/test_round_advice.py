"""Too few rounds for a method with phases: each advice that is given can be followed, for every method that ships."""

from __future__ import annotations

import re

import pytest

from fedem_flwr.cli.options import options_tree
from fedem_flwr.config import preset_names, resolve
from fedem_flwr.errors import InputError
from fedem_flwr.runtime.inputs import check_method

ADVICE = re.compile(r"(?:--rounds \d+|--set [a-z_.]+=\d+)(?: (?:--rounds \d+|--set [a-z_.]+=\d+))*")


def problem(method: str, *settings: str) -> str:
    """What is said about a run; empty where it could begin."""
    given = options_tree({"method": {"name": method}}, [f"{text}" for text in settings])
    try:
        check_method(resolve({}, given), 60)
    except InputError as error:
        return str(error)
    return ""


def as_settings(advice: str) -> list[str]:
    return advice.replace("--rounds ", "--set run.rounds=").replace("--set ", "").split()


@pytest.mark.parametrize("rounds", [1, 2, 3, 5, 12, 20, 60])
def test_what_is_advised_works(rounds: int) -> None:
    refused = 0
    variants = [(name, ()) for name in preset_names("methods")]
    variants += [
        (f"{name}-elastic", (f"group_tables.merge={by}",)) for name in ("fedials", "fedmf") for by in ("item", "client")
    ]
    variants += [("fedials-order", ("order.map=0",)), ("fedials-order", ("order.rounds=1", "order.map=20"))]
    for method, others in variants:
        said = problem(method, *others, f"run.rounds={rounds}")
        ways = ADVICE.findall(said)
        assert bool(ways) == bool(said), said
        refused += bool(said)
        assert not said or f"'{method}'" in said
        for way in ways:
            after = problem(method, *others, f"run.rounds={rounds}", *as_settings(way))
            assert after == "", f"{method} {others}: {said}: {way}: {after}"
    assert refused or rounds == 60


def test_the_advice_is_part_of_the_message() -> None:
    said = problem("fedials-order", "run.rounds=1", "order.rounds=400", "order.map=5")
    assert said.endswith("give --rounds 3 --set order.rounds=2, or --rounds 401 or more")
    said = problem("fedials-elastic", "run.rounds=1")
    assert said.endswith("--rounds 5 --set group_tables.clustering=1 --set group_tables.rounds=1")
