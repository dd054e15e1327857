"""Local rounds of clients, one after the other: what a thread is given to do, without the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedem_flwr.engine.fused.adapter import begin_adapter, end_adapter
from fedem_flwr.engine.fused.compiled import entry, inner
from fedem_flwr.engine.fused.draws import Drawn, Items, Keys, draw, shuffle
from fedem_flwr.engine.fused.functions import fill
from fedem_flwr.engine.fused.lanes import LANES
from fedem_flwr.engine.fused.merged import adapter_batch, gather, merge_rows, merged_batch
from fedem_flwr.engine.fused.rows import begin, load_rows, plain_batch, rows_of, store_rows
from fedem_flwr.engine.fused.space import Result, Rules, Space, Values

_f: Any = np.float32


@inner
def stands_still(mean: float, before: float, epoch: int, rules: Rules) -> bool:
    """Whether a client stops, as in `engine.epochs.train_epochs`."""
    if rules.early_stop <= 0 or epoch == 0 or epoch >= rules.epochs - 1:
        return False
    return abs(mean - before) / abs(before + 1e-5) < rules.early_stop


@inner
def drawn(data: Items, client: int, number: int, rules: Rules, keys: Keys, room: Drawn) -> tuple[int, int, int]:
    """The client's samples; returns how many, of how many rows, and where its epochs' draws begin.

    Args:
        number: the client's among those of `keys.offsets`.
    """
    count, rows = draw(data, client, rules.negatives, keys, number, room)
    used = -(-rows // LANES) * LANES
    for r in range(rows, used):
        room.sign[r] = _f(1)
    fill(room.weight, used, _f(0))
    start = 0
    if keys.secret:
        positives = data.positive_offsets[client + 1] - data.positive_offsets[client]
        start = keys.offsets[number] + positives * rules.negatives
    return count, rows, start


@inner
def _kept(result: Result, number: int, rows: int, count: int, weight: int, room: Drawn, space: Space) -> None:
    """Samples and trained rows, where somebody looks at them."""
    result.size[number], result.weight[number], result.touched_count[number] = count, weight, rows
    if result.touched.shape[1]:
        for r in range(rows):
            result.touched[number, r], result.sign[number, r] = room.touched[r], room.sign[r]
        rows_of(space.x, rows, result.rows[number])


@entry
def train_plain(
    data: Items, keys: Keys, rules: Rules, values: Values, room: Drawn, space: Space, result: Result
) -> None:
    """Rounds on rows as they lie: Eq. 12."""
    dim = values.users.shape[1]
    for number in range(len(values.who)):
        client = values.who[number]
        count, rows, start = drawn(data, client, number, rules, keys, room)
        table = values.tables[values.slot[number]]
        load_rows(table, room.touched, rows, space.x)
        if result.before.shape[1]:
            rows_of(space.x, rows, result.before[number])
        begin(space, values.users[client], rows)
        batch = rules.batch_size if rules.batch_size else max(1, count)
        total, mean, steps = 0.0, 0.0, 0
        for epoch in range(rules.epochs if count else 0):
            shuffle(data, client, rules.first_epoch + epoch, keys, start + epoch * count, count, batch, room)
            for first in range(0, count, batch):
                steps += 1
                total += plain_batch(first, min(first + batch, count), rows, dim, steps, rules, room, space)
            before, mean = mean, total / (count * (epoch + 1))
            if stands_still(mean, before, epoch, rules):
                break
        result.loss[number] = mean
        for c in range(dim):
            values.users[client, c] = space.p[c]
        if values.own:
            store_rows(space.x, rows, table, room.touched)
        positives = data.positive_offsets[client + 1] - data.positive_offsets[client]
        _kept(result, number, rows, count, positives * (1 + rules.negatives), room, space)


@entry
def train_through_merge(
    data: Items, keys: Keys, rules: Rules, values: Values, room: Drawn, space: Space, result: Result
) -> None:
    """Rounds through merged rows: of Θ alone (Eq. 11), of p and Q, or in each batch of Θ and then of p and Q."""
    dim = values.users.shape[1]
    for number in range(len(values.who)):
        client = values.who[number]
        count, rows, start = drawn(data, client, number, rules, keys, room)
        table = values.tables[values.slot[number]]
        load_rows(table, room.touched, rows, space.x)
        if result.before.shape[1]:
            rows_of(space.x, rows, result.before[number])
        begin(space, values.users[client], rows)
        begin_adapter(values.mixing, number, client, room.touched, rows, space.adapter)
        batch = rules.batch_size if rules.batch_size else max(1, count)
        total, mean, steps = 0.0, 0.0, 0
        for epoch in range(rules.epochs if count else 0):
            shuffle(data, client, rules.first_epoch + epoch, keys, start + epoch * count, count, batch, room)
            for first in range(0, count, batch):
                steps += 1
                end = min(first + batch, count)
                n = end - first
                tiles = gather(first, end, dim, room, space)
                found = 0.0
                if rules.adapts:
                    found = adapter_batch(tiles, n, steps, rules, space)
                if rules.trains:
                    found = merged_batch(tiles, n, rows, dim, steps, rules, space)
                total += found
            before, mean = mean, total / (count * (epoch + 1))
            if stands_still(mean, before, epoch, rules):
                break
        end_adapter(values.mixing, client, space.adapter)
        if not rules.trains:
            continue
        result.loss[number] = mean
        for c in range(dim):
            values.users[client, c] = space.p[c]
        if values.own:
            store_rows(space.x, rows, table, room.touched)
        positives = data.positive_offsets[client + 1] - data.positive_offsets[client]
        _kept(result, number, rows, count, positives * (1 + rules.negatives), room, space)


@entry
def merge_tables(
    own: np.ndarray,
    slot: np.ndarray,
    received: np.ndarray,
    received_slot: np.ndarray,
    theta: np.ndarray,
    theta_slot: np.ndarray,
    widths: np.ndarray,
    rho: np.ndarray,
    features: np.ndarray,
    hidden: np.ndarray,
    logits: np.ndarray,
) -> None:
    """Eq. 9–10 of k clients: tables own[slot] (m, d) in place, with received[received_slot] and theta[theta_slot].

    Args:
        rho: (k, m), or (1, m) if nobody looks at it; written.
        features, hidden, logits: room for a tile.
    """
    for number in range(len(slot)):
        merge_rows(
            own[slot[number]],
            received[received_slot[number]],
            theta[theta_slot[number]],
            widths,
            features,
            hidden,
            logits,
            rho[number if len(rho) > 1 else 0],
        )
