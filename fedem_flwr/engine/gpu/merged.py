"""Rounds through merged rows in a kernel, and the merge of whole tables (FedEM, AAAI 2026, Eq. 9–12)."""

from __future__ import annotations

import triton.language as tl

from fedem_flwr.engine.gpu.adapter import backward, bias, forward, layer, product
from fedem_flwr.engine.gpu.rows import adam, batch_rows, kernel, load_rows, residuals, stands_still, store_rows


@kernel
def both_rows(
    x: tl.tensor, received: tl.tensor, touched: tl.tensor, place: tl.tensor, dim: tl.constexpr, wide: tl.constexpr
) -> tl.tensor:
    """Own rows at places (tile,), and what lies between them and the received ones."""
    column = tl.arange(0, wide)
    q = tl.load(x + place[:, None] * wide + column[None, :])
    spot = received + tl.load(touched + place)[:, None] * dim + column[None, :]
    glob = tl.load(spot, mask=(column < dim)[None, :], other=0.0)
    return q, glob - q


@kernel
def pool_tables(
    tables: tl.tensor,
    received: tl.tensor,
    slot: tl.tensor,
    sent: tl.tensor,
    pool: tl.tensor,
    items: tl.tensor,
    dim: tl.constexpr,
    wide: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """The one row that `scalar` merging looks at: means of a client's own table, and of what a merge would add to it.

    Args:
        pool: (k, 2, wide), written. For the others see `merge_tables`.
    """
    client = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, wide)
    own = tables + tl.load(slot + client) * items * dim
    glob = received + tl.load(sent + client) * items * dim
    mean, more = tl.zeros((wide,), tl.float32), tl.zeros((wide,), tl.float32)
    for start in range(0, items, tile):
        item = start + tl.arange(0, tile)
        spot, inside = item[:, None] * dim + column[None, :], (item < items)[:, None] & (column < dim)[None, :]
        q = tl.load(own + spot, mask=inside, other=0.0)
        mean += tl.sum(q, 0)
        more += tl.sum(tl.load(glob + spot, mask=inside, other=0.0) - q, 0)
    tl.store(pool + client * 2 * wide + column, mean / items)
    tl.store(pool + client * 2 * wide + wide + column, more / items)


@kernel
def seen_rows(
    q: tl.tensor, delta: tl.tensor, pool: tl.tensor, client: tl.tensor, single: tl.constexpr, wide: tl.constexpr
) -> tl.tensor:
    """What the adapter looks at for rows (tile, wide): these, or the client's one row for each."""
    if single:
        place = pool + client * 2 * wide + tl.arange(0, wide)
        q = tl.load(place)[None, :] + tl.zeros_like(q)
        delta = tl.load(place + wide)[None, :] + tl.zeros_like(delta)
    return q, delta


@kernel
def merge_tables(
    tables: tl.tensor,
    received: tl.tensor,
    theta: tl.tensor,
    pool: tl.tensor,
    slot: tl.tensor,
    sent: tl.tensor,
    whose: tl.tensor,
    rho: tl.tensor,
    items: tl.tensor,
    parameters: tl.tensor,
    single: tl.constexpr,
    seen: tl.constexpr,
    dim: tl.constexpr,
    wide: tl.constexpr,
    h1: tl.constexpr,
    h2: tl.constexpr,
    wide1: tl.constexpr,
    wide2: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Eq. 9–10 of a tile of items of a client, in place.

    Args:
        slot, sent, whose: (k,) which of the tables, of the received ones and of the adapters are the client's.
        pool: of `pool_tables`, where there is a `single` ρ a client. rho: (k, m), written where it is `seen`.
    """
    client = tl.program_id(0).to(tl.int64)
    item, column = tl.program_id(1) * tile + tl.arange(0, tile), tl.arange(0, wide)
    inside = (item < items)[:, None] & (column < dim)[None, :]
    spot = item[:, None] * dim + column[None, :]
    own = tables + tl.load(slot + client) * items * dim + spot
    own_theta = theta + tl.load(whose + client) * parameters
    q = tl.load(own, mask=inside, other=0.0)
    delta = tl.load(received + tl.load(sent + client) * items * dim + spot, mask=inside, other=0.0) - q
    w_own, _, _ = layer(own_theta, 0, 2 * dim, dim, h1, wide, wide1)
    w_more, _, _ = layer(own_theta, dim, 2 * dim, dim, h1, wide, wide1)
    b1, _, _ = bias(own_theta, 2 * dim * h1, h1, wide1)
    w2, _, _ = layer(own_theta, (2 * dim + 1) * h1, h1, h1, h2, wide1, wide2)
    b2, _, _ = bias(own_theta, (2 * dim + 1 + h2) * h1, h2, wide2)
    w3, _, _ = bias(own_theta, (2 * dim + 1 + h2) * h1 + h2, h2, wide2)
    b3 = tl.load(own_theta + (2 * dim + 1 + h2) * h1 + 2 * h2)
    looked, more = seen_rows(q, delta, pool, client, single, wide)
    _, _, found = forward(looked, more, w_own, w_more, b1, w2, b2, w3, b3)
    tl.store(own, q + found[:, None] * delta, mask=inside)
    if seen:
        tl.store(rho + client * items + item, found, mask=item < items)


@kernel
def train_merged(
    users: tl.tensor,
    tables: tl.tensor,
    received: tl.tensor,
    theta: tl.tensor,
    pool: tl.tensor,
    who: tl.tensor,
    slot: tl.tensor,
    sent: tl.tensor,
    offsets: tl.tensor,
    places: tl.tensor,
    counts: tl.tensor,
    touched: tl.tensor,
    sign: tl.tensor,
    order: tl.tensor,
    weights: tl.tensor,
    x: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    gradient: tl.tensor,
    scales: tl.tensor,
    losses: tl.tensor,
    samples: tl.tensor,
    items: tl.tensor,
    parameters: tl.tensor,
    epochs: tl.tensor,
    batch: tl.tensor,
    lr_user: tl.tensor,
    lr_item: tl.tensor,
    lr_theta: tl.tensor,
    fixed: tl.tensor,
    early_stop: tl.tensor,
    own: tl.constexpr,
    adapts: tl.constexpr,
    trains: tl.constexpr,
    learned: tl.constexpr,
    single: tl.constexpr,
    ordered: tl.constexpr,
    dim: tl.constexpr,
    wide: tl.constexpr,
    h1: tl.constexpr,
    h2: tl.constexpr,
    wide1: tl.constexpr,
    wide2: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """A client's round: each batch takes a step on Θ (`adapts`), and then one on p and Q (`trains`).

    Args:
        received: (r', m, d), and `sent` (k,) the client's. theta: (n, P). pool: see `merge_tables`.
        gradient: (r, wide) 0.
        fixed: ρ where it is not `learned`. For the others see `rows.train_plain`.
    """
    client = tl.program_id(0).to(tl.int64)
    user, base = tl.load(who + client), tl.load(places + client)
    begin = tl.load(offsets + client)
    count = (tl.load(offsets + client + 1) - begin).to(tl.int32)
    rows = tl.load(counts + client)
    table = tables + tl.load(slot + client) * items * dim
    glob = received + tl.load(sent + client) * items * dim
    column = tl.arange(0, wide)
    p = tl.load(users + user * dim + column, mask=column < dim, other=0.0)
    p_first, p_second = tl.zeros((wide,), tl.float32), tl.zeros((wide,), tl.float32)
    if learned:
        mine = theta + user * parameters
        w_own, own_at, own_real = layer(mine, 0, 2 * dim, dim, h1, wide, wide1)
        w_more, more_at, more_real = layer(mine, dim, 2 * dim, dim, h1, wide, wide1)
        b1, b1_at, b1_real = bias(mine, 2 * dim * h1, h1, wide1)
        w2, w2_at, w2_real = layer(mine, (2 * dim + 1) * h1, h1, h1, h2, wide1, wide2)
        b2, b2_at, b2_real = bias(mine, (2 * dim + 1 + h2) * h1, h2, wide2)
        w3, w3_at, w3_real = bias(mine, (2 * dim + 1 + h2) * h1 + h2, h2, wide2)
        b3_at = mine + (2 * dim + 1 + h2) * h1 + 2 * h2
        b3 = tl.load(b3_at)
    if adapts:
        zero_1, zero_2 = tl.zeros((wide1,), tl.float32), tl.zeros((wide2,), tl.float32)
        zero_in, zero_w2 = tl.zeros((wide, wide1), tl.float32), tl.zeros((wide1, wide2), tl.float32)
        own_m, own_v, more_m, more_v, w2_m, w2_v = zero_in, zero_in, zero_in, zero_in, zero_w2, zero_w2
        b1_m, b1_v, b2_m, b2_v, w3_m, w3_v = zero_1, zero_1, zero_2, zero_2, zero_2, zero_2
        b3_m, b3_v = tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    load_rows(table, touched, x, base, rows, dim, wide, tile)
    tl.debug_barrier()
    size = tl.where(batch == 0, tl.maximum(count, 1), batch)
    total, mean = tl.zeros((), tl.float64), tl.zeros((), tl.float64)
    epoch, step, going = 0, 0, (count > 0) & (epochs > 0)
    while going:
        for start in range(0, count, size):
            n = tl.minimum(size, count - start)
            at = begin + start + epoch * samples
            share = 1.0 / n.to(tl.float32)
            step += 1
            one, other = tl.load(scales + 2 * step), tl.load(scales + 2 * step + 1)
            if adapts:
                own_g, more_g, w2_g = zero_in, zero_in, zero_w2
                b1_g, b2_g, w3_g, b3_g = zero_1, zero_2, zero_2, tl.zeros((), tl.float32)
                for some in range(0, n, tile):
                    row, weight = batch_rows(order, weights, at, some, n, ordered, tile)
                    q, delta = both_rows(x, glob, touched, base + row, dim, wide)
                    slope = tl.sum(delta * p[None, :], 1)
                    looked, more = seen_rows(q, delta, pool, client, single, wide)
                    hidden, last, rho = forward(looked, more, w_own, w_more, b1, w2, b2, w3, b3)
                    logits = tl.sum(q * p[None, :], 1) + rho * slope
                    loss, residual = residuals(logits, tl.load(sign + base + row), weight)
                    if trains == 0:
                        total += loss.to(tl.float64)
                    by_output = residual * share * slope * rho * (1.0 - rho)
                    by_hidden, by_last = backward(by_output, hidden, last, w2, w3)
                    own_g += product(tl.trans(looked), by_hidden)
                    more_g += product(tl.trans(more), by_hidden)
                    w2_g += product(tl.trans(hidden), by_last)
                    b1_g += tl.sum(by_hidden, 0)
                    b2_g += tl.sum(by_last, 0)
                    w3_g += tl.sum(by_output[:, None] * last, 0)
                    b3_g += tl.sum(by_output, 0)
                rate = lr_theta * one
                w_own, own_m, own_v = adam(w_own, own_m, own_v, own_g, rate, other)
                w_more, more_m, more_v = adam(w_more, more_m, more_v, more_g, rate, other)
                w2, w2_m, w2_v = adam(w2, w2_m, w2_v, w2_g, rate, other)
                b1, b1_m, b1_v = adam(b1, b1_m, b1_v, b1_g, rate, other)
                b2, b2_m, b2_v = adam(b2, b2_m, b2_v, b2_g, rate, other)
                w3, w3_m, w3_v = adam(w3, w3_m, w3_v, w3_g, rate, other)
                b3, b3_m, b3_v = adam(b3, b3_m, b3_v, b3_g, rate, other)
            if trains:
                by_user = tl.zeros((wide,), tl.float32)
                for some in range(0, n, tile):
                    row, weight = batch_rows(order, weights, at, some, n, ordered, tile)
                    q, delta = both_rows(x, glob, touched, base + row, dim, wide)
                    slope = tl.sum(delta * p[None, :], 1)
                    if learned:
                        looked, more = seen_rows(q, delta, pool, client, single, wide)
                        hidden, last, rho = forward(looked, more, w_own, w_more, b1, w2, b2, w3, b3)
                    else:
                        rho = tl.zeros((tile,), tl.float32) + fixed
                    logits = tl.sum(q * p[None, :], 1) + rho * slope
                    loss, residual = residuals(logits, tl.load(sign + base + row), weight)
                    total += loss.to(tl.float64)
                    residual = residual * share
                    by_row = ((1.0 - rho) * residual)[:, None] * p[None, :]
                    if learned and single == 0:  # ρ looks at the own row too; a single one is held fixed
                        by_output = residual * slope * rho * (1.0 - rho)
                        by_hidden, _ = backward(by_output, hidden, last, w2, w3)
                        by_row += product(by_hidden, tl.trans(w_own - w_more))
                    by_user += tl.sum(residual[:, None] * (q + rho[:, None] * delta), 0)
                    spot = gradient + (base + row)[:, None] * wide + column[None, :]
                    if ordered:
                        tl.store(spot, by_row, mask=(weight > 0)[:, None])
                    else:
                        tl.atomic_add(spot, by_row, mask=(weight > 0)[:, None], sem="relaxed")
                tl.debug_barrier()
                for some in range(0, rows, tile):
                    row = some + tl.arange(0, tile)
                    inside = (row < rows)[:, None]
                    place = (base + row)[:, None] * wide + column[None, :]
                    q, g = tl.load(x + place, mask=inside, other=0.0), tl.load(gradient + place, mask=inside, other=0.0)
                    m, v = (
                        tl.load(first + place, mask=inside, other=0.0),
                        tl.load(second + place, mask=inside, other=0.0),
                    )
                    q, m, v = adam(q, m, v, g, lr_item * one, other)
                    tl.store(x + place, q, mask=inside)
                    tl.store(first + place, m, mask=inside)
                    tl.store(second + place, v, mask=inside)
                    tl.store(gradient + place, tl.zeros((tile, wide), tl.float32), mask=inside)
                p, p_first, p_second = adam(p, p_first, p_second, by_user, lr_user * one, other)
                tl.debug_barrier()
        before = mean
        mean = total / (count * (epoch + 1)).to(tl.float64)
        still = stands_still(mean, before, epoch, epochs, early_stop)
        epoch += 1
        going = (epoch < epochs) & (still == 0)
    if adapts:
        tl.store(own_at, w_own, mask=own_real)
        tl.store(more_at, w_more, mask=more_real)
        tl.store(w2_at, w2, mask=w2_real)
        tl.store(b1_at, b1, mask=b1_real)
        tl.store(b2_at, b2, mask=b2_real)
        tl.store(w3_at, w3, mask=w3_real)
        tl.store(b3_at, b3)
    if trains:
        tl.store(losses + client, mean)
        tl.store(users + user * dim + column, p, mask=column < dim)
        if own:
            store_rows(table, touched, x, base, rows, dim, wide, tile)
