"""Local rounds of clients whose methods score with a network, one client after the other: see `layers`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedem_flwr.engine.fused.adapter import begin_adapter, end_adapter
from fedem_flwr.engine.fused.compiled import entry, inner
from fedem_flwr.engine.fused.draws import Drawn, Items, Keys, shuffle
from fedem_flwr.engine.fused.lanes import LANES
from fedem_flwr.engine.fused.layer_space import FIRST, SECOND, LayerSpace, Steps
from fedem_flwr.engine.fused.layers import layered_batch
from fedem_flwr.engine.fused.mixing import AdapterSpace, Mixing
from fedem_flwr.engine.fused.moving import Moving, begin, begin_vector, end_vector
from fedem_flwr.engine.fused.rounds import drawn, stands_still
from fedem_flwr.engine.fused.rows import load_rows, rows_of, store_rows
from fedem_flwr.engine.fused.space import Rules

_f: Any = np.float32


class Tables(NamedTuple):
    """An item part of a cohort's clients.

    Attributes:
        values: (r, m, d) what rows start from. slot: (k,) the table of each client.
        own: whether the trained rows are written back there. moves: whether there are any.
    """

    values: np.ndarray
    slot: np.ndarray
    own: bool
    moves: bool


class LayerValues(NamedTuple):
    """What k clients have.

    Attributes:
        who: (k,) positions in the cohort. weights (k, P), user (k, d): trained in place. basis: (k, r · d).
        first, second: their item parts; the second's (0, 0, 0) where there is none.
    """

    who: np.ndarray
    weights: np.ndarray
    user: np.ndarray
    basis: np.ndarray
    first: Tables
    second: Tables


class Kept(NamedTuple):
    """What k clients leave of an item part: (k, t, d) rows after and before, or nothing; (k,) see `Block.left`."""

    rows: np.ndarray
    before: np.ndarray
    left: np.ndarray


class LayerResult(NamedTuple):
    """What k clients leave; as `space.Result`."""

    loss: np.ndarray
    size: np.ndarray
    weight: np.ndarray
    touched_count: np.ndarray
    touched: np.ndarray
    sign: np.ndarray
    first: Kept
    second: Kept


@inner
def _begin_rows(part: Moving, tables: Tables, kept: Kept, number: int, rows: int, room: Drawn) -> None:
    load_rows(tables.values[tables.slot[number]], room.touched, rows, part.values)
    begin(part, -(-rows // LANES) * LANES * tables.values.shape[2])
    if kept.before.shape[1]:
        rows_of(part.values, rows, kept.before[number])


@inner
def _end_rows(
    part: Moving, tables: Tables, kept: Kept, number: int, rows: int, left: float, anchor: Tables, room: Drawn
) -> None:
    """Keep trained rows, where they stay with the client and where somebody looks at them.

    Args:
        left: of the way of all other rows to the anchor's, or to 0 where that has none.
    """
    kept.left[number] = left
    if tables.own and tables.moves:
        table, gone = tables.values[tables.slot[number]], _f(1 - left)
        items, dim = table.shape
        if left != 1 and len(anchor.values):
            other = anchor.values[anchor.slot[number]]
            for i in range(items):
                for c in range(dim):
                    table[i, c] -= gone * (table[i, c] - other[i, c])
        elif left != 1:
            for i in range(items):
                for c in range(dim):
                    table[i, c] -= gone * table[i, c]
        store_rows(part.values, rows, table, room.touched)
    if kept.rows.shape[1]:
        rows_of(part.values, rows, kept.rows[number])


@inner
def _rounds(
    data: Items,
    keys: Keys,
    rules: Rules,
    steps: Steps,
    values: LayerValues,
    nothing: Tables,
    room: Drawn,
    space: LayerSpace,
    mixing: Mixing | None,
    adapter: AdapterSpace | None,
    result: LayerResult,
) -> None:
    """Rounds of clients, compiled once without and once with a merge."""
    two, first, second = len(values.second.values) > 0, values.first, values.second
    for number in range(len(values.who)):
        client = values.who[number]
        count, rows, start = drawn(data, client, number, rules, keys, room)
        _begin_rows(space.x, first, result.first, number, rows, room)
        if two:
            _begin_rows(space.y, second, result.second, number, rows, room)
        begin_vector(space.weights, values.weights[number])
        begin_vector(space.user, values.user[number])
        for at in range(len(space.basis)):
            space.basis[at] = values.basis[number, at]
        if mixing is not None and adapter is not None:
            begin_adapter(mixing, number, client, room.touched, rows, adapter)
        for part in range(4):
            space.rates[part] = steps.rates[part]
        batch = rules.batch_size if rules.batch_size else max(1, count)
        total, mean, taken, left, other_left = 0.0, 0.0, 0, 1.0, 1.0
        for epoch in range(rules.epochs if count else 0):
            shuffle(data, client, rules.first_epoch + epoch, keys, start + epoch * count, count, batch, room)
            for at in range(0, count, batch):
                taken += 1
                left *= 1 - space.rates[FIRST] * steps.pulls[FIRST]
                other_left *= 1 - space.rates[SECOND] * steps.pulls[SECOND]
                total += layered_batch(at, min(at + batch, count), rows, taken, steps, rules, room, space, adapter)
            before, mean = mean, total / (count * (epoch + 1))
            if stands_still(mean, before, epoch, rules):
                break
        if mixing is not None and adapter is not None:
            end_adapter(mixing, client, adapter)
        if not rules.trains:
            continue
        result.loss[number] = mean
        end_vector(space.weights, values.weights[number])
        end_vector(space.user, values.user[number])
        _end_rows(space.x, first, result.first, number, rows, left, second if steps.towards else nothing, room)
        if two:
            _end_rows(space.y, second, result.second, number, rows, other_left, nothing, room)
        positives = data.positive_offsets[client + 1] - data.positive_offsets[client]
        result.size[number], result.weight[number] = count, positives * (1 + rules.negatives)
        result.touched_count[number] = rows
        if result.touched.shape[1]:
            for r in range(rows):
                result.touched[number, r], result.sign[number, r] = room.touched[r], room.sign[r]


@entry
def train_layers(
    data: Items,
    keys: Keys,
    rules: Rules,
    steps: Steps,
    values: LayerValues,
    nothing: Tables,
    room: Drawn,
    space: LayerSpace,
    result: LayerResult,
) -> None:
    """Rounds on rows as they lie.

    Args:
        nothing: tables of nobody.
    """
    _rounds(data, keys, rules, steps, values, nothing, room, space, None, None, result)


@entry
def train_merged_layers(
    data: Items,
    keys: Keys,
    rules: Rules,
    steps: Steps,
    values: LayerValues,
    nothing: Tables,
    room: Drawn,
    space: LayerSpace,
    mixing: Mixing,
    adapter: AdapterSpace,
    result: LayerResult,
) -> None:
    """Rounds through merged rows: of Θ alone (Eq. 11), or of the rest, before which a batch may take a step on Θ.

    Args:
        mixing, adapter: what rows are merged with, and by.
    """
    _rounds(data, keys, rules, steps, values, nothing, room, space, mixing, adapter, result)
