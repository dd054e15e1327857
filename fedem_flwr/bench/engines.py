"""Local rounds: the compiled back end against batched torch, and how the compiled one grows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from fedem_flwr.bench.local_rounds import Engine, Work, work
from fedem_flwr.bench.rows import Row
from fedem_flwr.bench.suite import Benchmark, Setting
from fedem_flwr.bench.timing import Side
from fedem_flwr.bench.worlds import config_of, shape

METHODS = ("fedem-released", "fedem", "fedmf", "pfedrec", "fedrap", "fedncf", "gpfedrec")
GROWN = "fedem-released"


def _side(one: Work, engine: Engine, label: str = "") -> Side:
    return Side(label, one.train, prepare=partial(one.cohort, engine))


def _back_ends(method: str, benchmark: Benchmark, setting: Setting) -> Row:
    users, items, mean = setting.either((100, 500, 30.0), (943, 1682, 106.0))
    one = work(config_of(method, shape(users, items, mean)))
    words = f"{users} users, {items} items, {mean:g} rows a user"
    return benchmark.ratio(setting, _side(one, "fused", "compiled"), _side(one, "torch", "batched torch"), words)


def _grown(benchmark: Benchmark, setting: Setting, along: str, sizes: Mapping[int, tuple[int, int, int]]) -> Row:
    """Of each size: users, items, d."""
    sides = {}
    for size, (users, items, dim) in sizes.items():
        config = config_of(GROWN, shape(users, items, 30.0), {"model": {"dim": dim}})
        sides[size] = _side(work(config), "fused")
    fixed = {"users": "500 items, d 16", "items": "100 users, d 16", "d": "100 users, 500 items"}
    return benchmark.growth(setting, along, sides, f"{fixed[along]}, 30 rows a user")


def _users(benchmark: Benchmark, setting: Setting) -> Row:
    sizes = setting.either((100, 200, 400, 800), (250, 500, 1000, 2000, 4000))
    return _grown(benchmark, setting, "users", {users: (users, 500, 16) for users in sizes})


def _items(benchmark: Benchmark, setting: Setting) -> Row:
    sizes = setting.either((250, 500, 1000, 2000), (500, 1000, 2000, 4000, 8000))
    return _grown(benchmark, setting, "items", {items: (100, items, 16) for items in sizes})


def _width(benchmark: Benchmark, setting: Setting) -> Row:
    sizes = setting.either((8, 16, 32, 64), (8, 16, 32, 64, 128))
    return _grown(benchmark, setting, "d", {dim: (100, 500, dim) for dim in sizes})


ENGINES = (
    *(
        Benchmark(
            f"engine/{method}",
            f"local round of {method}: compiled functions against batched torch (`run.engine`)",
            partial(_back_ends, method),
        )
        for method in METHODS
    ),
    Benchmark("growth/users", f"local round of {GROWN}, compiled, with more users", _users),
    Benchmark("growth/items", f"local round of {GROWN}, compiled, with a larger catalogue", _items),
    Benchmark("growth/d", f"local round of {GROWN}, compiled, with wider vectors", _width),
)
