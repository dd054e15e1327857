"""Parts of a compiled round alone, with the arguments of the whole; see `round_pieces`."""

from __future__ import annotations

from typing import Any

from fedem_flwr.engine.fused.adapter import begin_adapter, end_adapter
from fedem_flwr.engine.fused.compiled import entry, inner
from fedem_flwr.engine.fused.draws import Drawn, Items, Keys, shuffle
from fedem_flwr.engine.fused.merged import adapter_batch, gather
from fedem_flwr.engine.fused.rounds import drawn
from fedem_flwr.engine.fused.rows import begin, load_rows, rows_of, store_rows
from fedem_flwr.engine.fused.space import Result, Rules, Space, Values

_DRAWN, _ROWS, _SHUFFLED, _GATHERED, _ADAPTED = range(1, 6)


@inner
def _client(
    upto: int,
    number: int,
    data: Items,
    keys: Keys,
    rules: Rules,
    values: Values,
    room: Drawn,
    space: Space,
    out: Result,
) -> tuple[int, int, int]:
    """Draws, rows in and out, as the whole has them."""
    client = values.who[number]
    count, rows, start = drawn(data, client, number, rules, keys, room)
    if upto >= _ROWS:
        table = values.tables[values.slot[number]]
        load_rows(table, room.touched, rows, space.x)
        if out.before.shape[1]:
            rows_of(space.x, rows, out.before[number])
        begin(space, values.users[client], rows)
        if values.own:
            store_rows(space.x, rows, table, room.touched)
        if out.touched.shape[1]:
            for r in range(rows):
                out.touched[number, r], out.sign[number, r] = room.touched[r], room.sign[r]
            rows_of(space.x, rows, out.rows[number])
    return count, rows, start


@entry
def _plain(
    upto: int, data: Items, keys: Keys, rules: Rules, values: Values, room: Drawn, space: Space, out: Result
) -> None:
    for number in range(len(values.who)):
        count, _, start = _client(upto, number, data, keys, rules, values, room, space, out)
        batch = rules.batch_size if rules.batch_size else max(1, count)
        for epoch in range(rules.epochs if count and upto >= _SHUFFLED else 0):
            client = values.who[number]
            shuffle(data, client, rules.first_epoch + epoch, keys, start + epoch * count, count, batch, room)


@entry
def _merged(
    upto: int, data: Items, keys: Keys, rules: Rules, values: Values, room: Drawn, space: Space, out: Result
) -> None:
    dim = values.users.shape[1]
    for number in range(len(values.who)):
        count, rows, start = _client(upto, number, data, keys, rules, values, room, space, out)
        client = values.who[number]
        if upto >= _ROWS:
            begin_adapter(values.mixing, number, client, room.touched, rows, space.adapter)
        batch, steps = rules.batch_size if rules.batch_size else max(1, count), 0
        for epoch in range(rules.epochs if count and upto >= _SHUFFLED else 0):
            shuffle(data, client, rules.first_epoch + epoch, keys, start + epoch * count, count, batch, room)
            for first in range(0, count if upto >= _GATHERED else 0, batch):
                steps += 1
                tiles = gather(first, min(first + batch, count), dim, room, space)
                if upto >= _ADAPTED and rules.adapts:
                    adapter_batch(tiles, min(first + batch, count) - first, steps, rules, space)
        if upto >= _ADAPTED:
            end_adapter(values.mixing, client, space.adapter)


def _stage(run: Any, upto: int) -> Any:
    return lambda *args: run(upto, *args)


def _nothing(*args: Any) -> None:
    """No client trains."""


THROUGH_A_MERGE = "(through a merge)"
_NAMES = {
    _DRAWN: "samples drawn, rows found",
    _ROWS: "rows and moments laid out and put back",
    _SHUFFLED: "shuffles",
    _GATHERED: f"rows of batches laid aside {THROUGH_A_MERGE}",
    _ADAPTED: f"steps on Θ {THROUGH_A_MERGE}",
}
STAGES = [
    ("around: blocks, merges of whole tables, sums, Python", _nothing, _nothing),
    *((name, _stage(_plain, upto), _stage(_merged, upto)) for upto, name in _NAMES.items()),
]
