"""The causal encoder, its dropout and the server's Adam, each against torch's own modules."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from fedem_flwr.aggregation.adam import ServerAdam, cosine_rate
from fedem_flwr.models.encoder import Dropout, Encoder, unit_rows

SHAPE = Encoder(dim=8, layers=2, heads=2, window=7, dropout=0.3)


def weights_of(shape: Encoder = SHAPE, seed: int = 3) -> Tensor:
    """Random everywhere: also where the initial weights are 1 or 0."""
    noise = torch.randn(shape.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return shape.initial(seed).double() + 0.3 * noise


def rows_of(*lengths: int, width: int | None = None, dim: int = SHAPE.dim) -> tuple[Tensor, Tensor]:
    """Right-aligned sequences of item rows, junk where there is none, and which are real."""
    width = width or max(lengths)
    rows = torch.randn(len(lengths), width, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    real = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return rows, real


class Twin(nn.Module):
    """The same network out of torch's modules; a sequence at a time, without padding."""

    def __init__(self, shape: Encoder, weights: Tensor) -> None:
        super().__init__()
        self.shape, self.w = shape, shape.named(weights)

    def norm(self, gain: str) -> nn.RMSNorm:
        module = nn.RMSNorm(self.shape.dim, eps=1e-6, dtype=torch.float64)
        module.weight.data = self.w[gain]
        return module

    def linear(self, weight: str, bias: str | None = None) -> nn.Linear:
        module = nn.Linear(*self.w[weight].shape, bias=bias is not None, dtype=torch.float64)
        module.weight.data = self.w[weight].T
        if bias is not None:
            module.bias.data = self.w[bias]
        return module

    def forward(self, rows: Tensor) -> Tensor:
        """(l, d) to (l, d)."""
        length, dim = rows.shape
        x = (rows * dim**0.5 + self.w["positions"][-length:])[None]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        for layer in range(self.shape.layers):
            attention = nn.MultiheadAttention(dim, self.shape.heads, bias=False, batch_first=True, dtype=torch.float64)
            attention.in_proj_weight.data = self.w[f"qkv-{layer}"].T
            attention.out_proj.weight.data = self.w[f"out-{layer}"].T
            y = self.norm(f"in-{layer}")(x)
            x = x + attention(y, y, y, attn_mask=later, need_weights=False)[0]
            inner = nn.GELU()(self.linear(f"up-{layer}", f"bias-{layer}")(self.norm(f"mid-{layer}")(x)))
            x = x + self.linear(f"down-{layer}")(inner)
        found: Tensor = self.norm("last")(x)[0]
        return found


@pytest.mark.parametrize("shape", [SHAPE, Encoder(6, 1, 1, 7, 0.0), Encoder(12, 3, 4, 20, 0.0)], ids=str)
def test_a_forward_pass_is_that_of_torchs_modules(shape: Encoder) -> None:
    weights, lengths = weights_of(shape), (7, 1, 4, 6)
    rows, real = rows_of(*lengths, dim=shape.dim)
    found, twin = shape.hidden(weights, rows, real), Twin(shape, weights)
    assert found.shape == rows.shape
    newest = shape.hidden(weights, rows, real, newest=True)
    torch.testing.assert_close(newest, found[:, -1:], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="nothing is dropped"):
        shape.hidden(weights, rows, real, Dropout(0.5, 1, 1, torch.arange(4)), newest=True)
    for user, length in enumerate(lengths):
        torch.testing.assert_close(found[user, -length:], twin(rows[user, -length:]), rtol=0, atol=1e-9)


def test_it_does_not_see_what_comes_later() -> None:
    rows, real = rows_of(7, 5)
    weights = weights_of()
    before = SHAPE.hidden(weights, rows, real)
    for place in range(7):
        changed = rows.clone()
        changed[:, place] += 1
        after = SHAPE.hidden(weights, changed, real)
        assert (after[:, :place] - before[:, :place]).abs().max().item() < 1e-6 if place else True
        assert (after[0, place] - before[0, place]).abs().max() > 1e-3
        assert (after[0, 6] - before[0, 6]).abs().max() > 1e-4, "the newest sees everything"


def test_left_padding_does_not_matter() -> None:
    weights = weights_of()
    for length in range(1, 7):
        rows, real = rows_of(length, width=7)
        alone = SHAPE.hidden(weights, rows[:, -length:], real[:, -length:])
        padded = SHAPE.hidden(weights, rows, real)[:, -length:]
        junk = SHAPE.hidden(weights, torch.where(real[..., None], rows, 99.0), real)[:, -length:]
        torch.testing.assert_close(padded, alone, rtol=0, atol=1e-9)
        torch.testing.assert_close(junk, padded, rtol=0, atol=1e-9)
    nothing = SHAPE.hidden(weights, rows, torch.zeros_like(real))
    assert torch.isfinite(nothing).all(), "also where there is no item at all"


def test_flat_and_named_are_the_same_weights() -> None:
    flat = weights_of()
    named = SHAPE.named(flat)
    assert {name: tuple(part.shape) for name, part in named.items()} == SHAPE.shapes()
    torch.testing.assert_close(torch.cat([part.reshape(-1) for part in named.values()]), flat, rtol=0, atol=0)
    assert flat.numel() == SHAPE.size == sum(math.prod(shape) for shape in SHAPE.shapes().values())
    named["positions"][0, 0] = 42.0
    assert flat[0] == 42.0, "views, not copies"


def test_initial_weights_are_keyed_by_the_seed() -> None:
    first, again, other = (SHAPE.initial(seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and first.dtype == torch.float32
    large = Encoder(64, 2, 2, 50, 0.0)
    named = large.named(large.initial(0))
    assert all((named[name] == 1).all() for name in ("last", "in-0", "mid-1")) and (named["bias-1"] == 0).all()
    for name, deviation in (("qkv-0", 1 / 8), ("up-1", 1 / 8), ("out-0", 0.5 / 8), ("down-1", 0.5 / 128**0.5)):
        assert named[name].std() == pytest.approx(deviation, rel=0.05), name
    assert named["positions"].std() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(named["qkv-0"], named["qkv-1"])


def test_rows_start_from_a_table_of_unit_scale() -> None:
    table = torch.randn(400, 16, generator=torch.Generator().manual_seed(0)) * 0.01
    rows = unit_rows(table)
    assert rows.std() == pytest.approx(1 / 4, rel=1e-4)
    torch.testing.assert_close(rows / rows[0, 0], table / table[0, 0])
    assert torch.equal(unit_rows(torch.zeros(3, 2)), torch.zeros(3, 2))


# ---- dropout


def masks(share: float, users: list[int], length: int, dim: int = 16, calls: int = 1, round_: int = 2) -> Tensor:
    drop = Dropout(share, 5, round_, torch.tensor(users))
    return torch.stack([drop(torch.ones(len(users), length, dim)) for _ in range(calls)])


def test_a_users_mask_does_not_depend_on_its_cohort() -> None:
    """Neither on who else is there, nor on how far others' longer histories pad it to the left."""
    together = masks(0.3, [4, 9, 2], 12, calls=9)
    torch.testing.assert_close(masks(0.3, [9], 12, calls=9)[:, 0], together[:, 1])
    torch.testing.assert_close(masks(0.3, [2, 9], 12, calls=9), together[:, [2, 1]])
    torch.testing.assert_close(masks(0.3, [9], 5, calls=9)[:, 0], together[:, 1, -5:])
    assert not torch.equal(together[0, 0], together[0, 1])
    assert not torch.equal(masks(0.3, [4], 12, round_=3)[0, 0], together[0, 0])
    assert not torch.equal(together[0, 0, 0], together[0, 0, 1]), "positions differ"


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_the_right_share_is_dropped(share: float) -> None:
    found = masks(share, list(range(40)), 20, calls=9)  # more calls than one draw of bits serves
    dropped = (found == 0).double()
    for call in dropped:
        assert call.mean() == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / call.numel()) + 0.001)
    kept = found[found > 0]
    assert kept.unique().numel() == 1 and kept[0] == pytest.approx(1 / (1 - share), rel=0.01)
    for one, other in itertools.combinations(dropped, 2):
        both = float((one * other).mean())
        assert both == pytest.approx(share**2, abs=0.02), "calls are independent"


def test_without_dropout_nothing_is_dropped() -> None:
    weights, (rows, real) = weights_of(), rows_of(7, 3)
    plain = SHAPE.hidden(weights, rows, real)
    users = torch.tensor([1, 2])
    assert torch.equal(SHAPE.hidden(weights, rows, real, Dropout(0.0, 0, 1, users)), plain)
    assert not torch.allclose(SHAPE.hidden(weights, rows, real, Dropout(0.3, 0, 1, users)), plain)


# ---- Adam


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_servers_adam_is_torchs(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(6, 3, generator=generator, dtype=dtype)
    ours, theirs = ServerAdam.start(value), torch.nn.Parameter(value.clone())
    optimiser = torch.optim.Adam([theirs], betas=(0.9, 0.98), eps=1e-8)
    for step in range(1, 30):
        gradient = torch.randn(6, 3, generator=generator, dtype=dtype) * 10.0 ** (step % 4 - 2)
        gradient[5] = 0
        rate = 0.01 / step
        optimiser.param_groups[0]["lr"], theirs.grad = rate, gradient.clone()
        optimiser.step()
        ours = ours.step(gradient, rate)
        torch.testing.assert_close(ours.value, theirs.detach(), rtol=0, atol=1e-6)
    assert ours.steps == 29 and torch.equal(ours.value[5], value[5]) and not torch.equal(ours.value[0], value[0])


def test_a_step_leaves_the_old_state_alone() -> None:
    start = ServerAdam.start(torch.ones(3))
    moved = start.step(torch.ones(3), 0.1)
    assert start.value.tolist() == [1, 1, 1] and start.first.tolist() == [0, 0, 0] and start.steps == 0
    assert moved.value.tolist() == pytest.approx([0.9] * 3, abs=1e-6)


def test_the_learning_rate_warms_up_and_ends_low() -> None:
    for steps in (1, 7, 40, 400, 5000):
        rates = [cosine_rate(0.2, step, steps) for step in range(1, steps + 1)]
        warm = max(1, min(100, steps // 20))
        assert all(0 < rate <= 0.2 for rate in rates)
        assert rates[0] == pytest.approx(0.2 / warm), "from the first step on"
        assert all(a < b for a, b in itertools.pairwise(rates[: warm // 2])), "up"
        assert all(a > b for a, b in itertools.pairwise(rates[warm - 1 :])), "and down"
    assert rates[-1] == pytest.approx(0.01, rel=1e-3) and max(rates) > 0.199
    assert rates[2500] == pytest.approx(0.2 * 0.525, rel=0.01), "halfway between both ends"


@pytest.mark.parametrize("size", [1e-2, 1e-7])
def test_the_servers_adam_is_torchs_for_small_means_too(size: float) -> None:
    """A mean over many clients may be no larger than ε."""
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    ours, theirs = ServerAdam.start(start.clone()), start.clone().requires_grad_()
    optimiser = torch.optim.Adam([theirs], lr=0.1)
    for _ in range(5):
        gradient = size * torch.randn(6, 3, generator=generator, dtype=torch.float64)
        ours = ours.step(gradient, 0.1, beta2=0.999)
        theirs.grad = gradient.clone()
        optimiser.step()
    torch.testing.assert_close(ours.value, theirs.detach(), rtol=1e-9, atol=1e-12)
