"""The adapter and the merge: against torch.nn.Sequential and autograd, and where the answer is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fedem_flwr.engine.merge import Merge, MergeMode, pooled
from fedem_flwr.models.adapter import Adapter

SHAPES = [Adapter(16), Adapter(3, (7,)), Adapter(4, (5, 6, 3)), Adapter(1, (2, 2)), Adapter(3, ())]
TOLERANCE = 1e-9


def twin(adapter: Adapter, theta: Tensor) -> nn.Sequential:
    """One client's adapter as plain torch modules."""
    modules: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(adapter.mlp.widths):
        modules += [nn.Linear(n_in, n_out, dtype=theta.dtype), nn.ReLU()]
    net = nn.Sequential(*modules[:-1], nn.Sigmoid())
    nn.utils.vector_to_parameters(theta, net.parameters())
    return net


def random_case(adapter: Adapter, k: int = 6, b: int = 11, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parameters (k, P), own and global rows (k, b, d), and dL/dρ (k, b), in float64."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    rows = (k, b, adapter.dim)
    return 0.6 * normal(k, adapter.parameters), normal(*rows), normal(*rows), normal(k, b)


@pytest.mark.parametrize("adapter", SHAPES)
def test_forward_equals_torch_modules(adapter: Adapter) -> None:
    theta, local, glob, _ = random_case(adapter)
    rho = adapter.forward(theta, local, glob).rho
    for u in range(len(theta)):
        expected = twin(adapter, theta[u])(torch.cat([local[u], glob[u] - local[u]], dim=-1)).squeeze(-1)
        torch.testing.assert_close(rho[u], expected.detach(), rtol=0, atol=TOLERANCE)
    assert float(rho.std()) > 0.01  # the case is not a constant


@pytest.mark.parametrize("adapter", SHAPES)
@pytest.mark.parametrize("b", [1, 11])
def test_backward_equals_autograd(adapter: Adapter, b: int) -> None:
    theta, local, glob, d_rho = random_case(adapter, b=b, seed=1)
    seen = adapter.forward(theta, local, glob)
    by_theta = adapter.backward(theta, seen, d_rho, "theta")
    by_local = adapter.backward(theta, seen, d_rho, "local")
    largest = 0.0
    for u in range(len(theta)):
        net = twin(adapter, theta[u])
        own = local[u].clone().requires_grad_()
        loss = (net(torch.cat([own, glob[u] - own], dim=-1)).squeeze(-1) * d_rho[u]).sum()
        loss.backward()
        gradient = nn.utils.parameters_to_vector([p.grad for p in net.parameters() if p.grad is not None])
        assert own.grad is not None
        largest = max(largest, float(own.grad.abs().max()))
        torch.testing.assert_close(by_theta[u, : len(gradient)], gradient, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(by_local[u], own.grad, rtol=0, atol=TOLERANCE)
    assert largest > 1e-3  # not every ReLU is dead


def test_float32_stays_close_to_float64() -> None:
    adapter = Adapter(16)
    theta, local, glob, d_rho = random_case(adapter, b=64)
    exact = adapter.backward(theta, adapter.forward(theta, local, glob), d_rho, "theta")
    theta, local, glob, d_rho = (x.float() for x in (theta, local, glob, d_rho))
    single = adapter.backward(theta, adapter.forward(theta, local, glob), d_rho, "theta")
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)


def test_shape_and_views() -> None:
    adapter = Adapter(16)
    assert adapter.mlp.widths == (32, 16, 8, 1)
    assert adapter.parameters == -(-(33 * 16 + 17 * 8 + 9) // 16) * 16 == 688
    theta = torch.zeros(2, adapter.parameters)
    for number, (weight, bias) in enumerate(adapter.layers(theta), start=1):
        weight.fill_(number)
        bias.fill_(-number)
    sizes = [weight[0].numel() for weight, _ in adapter.layers(theta)]
    outputs = adapter.mlp.widths[1:]
    expected = [v for j, (w, o) in enumerate(zip(sizes, outputs, strict=True), 1) for v in [j] * w + [-j] * o]
    assert theta[1].tolist() == expected + [0] * (688 - 673)  # whole vectors: the rest is unused


def test_initial_values_have_the_distribution_of_torch_linear() -> None:
    adapter = Adapter(16)
    drawn = torch.stack([adapter.initial(seed) for seed in range(40)])  # (40, P)
    assert drawn.dtype == torch.float32
    for (weight, bias), n_in in zip(adapter.layers(drawn), adapter.mlp.widths, strict=False):
        reference = nn.Linear(n_in, 4096)
        for values, torchs in ((weight, reference.weight), (bias, reference.bias)):
            flat = (values.flatten() * math.sqrt(n_in)).double().numpy()  # U(-1, 1)
            assert abs(flat).max() <= 1 + 1e-6
            assert float(torchs.detach().abs().max()) * math.sqrt(n_in) == pytest.approx(1, abs=0.01)
            assert stats.kstest(flat, "uniform", args=(-1, 2)).pvalue > 1e-3
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(adapter.initial(3), adapter.initial(3))


def test_initial_bias_moves_the_output_bias_only() -> None:
    plain, biased = Adapter(4).initial(5), Adapter(4, bias=2.5).initial(5)
    output_bias = 9 * 16 + 17 * 8 + 9 - 1  # the last parameter that is used
    moved = biased - plain
    assert float(moved[output_bias]) == pytest.approx(2.5, abs=1e-6)
    assert int((moved != 0).sum()) == 1


@pytest.mark.parametrize("bias", [-40.0, -1.0, 0.0, 0.7, 40.0])
def test_zero_weights_give_the_sigmoid_of_the_bias_and_a_convex_combination(bias: float) -> None:
    adapter = Adapter(6)
    _, local, glob, _ = random_case(adapter)
    theta = torch.zeros(6, adapter.parameters, dtype=torch.float64)
    adapter.layers(theta)[-1][1].fill_(bias)
    rho = 1 / (1 + math.exp(-bias))
    merged, weights = Merge("elastic", 0.5, adapter).tables(theta, local, glob)
    torch.testing.assert_close(weights, torch.full_like(weights, rho), rtol=0, atol=1e-12)
    torch.testing.assert_close(merged, (1 - rho) * local + rho * glob, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["replace", "static", "scalar", "elastic"])
def test_merging_a_table_with_itself_changes_nothing(mode: MergeMode) -> None:
    adapter = Adapter(6)
    theta, local, _, _ = random_case(adapter)
    merged, _ = Merge(mode, 0.3, adapter).tables(theta.float(), local.float(), local.float())
    assert torch.equal(merged, local.float())


def test_modes_give_the_weights_of_table_2() -> None:
    adapter = Adapter(5)
    theta, local, glob, _ = (x.float() for x in random_case(adapter))
    delta = glob - local
    replaced, ones = Merge("replace", 0.3, adapter).tables(None, local, glob)
    assert torch.equal(ones, torch.ones(6, 1)) and torch.equal(replaced, glob)
    static, fixed = Merge("static", 0.3, adapter).tables(None, local, glob)
    assert torch.equal(fixed, torch.full((6, 1), 0.3))
    torch.testing.assert_close(static, local + 0.3 * delta)
    scalar, one_each = Merge("scalar", 0.3, adapter).tables(theta, local, glob)
    assert one_each.shape == (6, 1)
    for u in range(6):
        mean_own, mean_glob = local[u].mean(0), glob[u].mean(0)
        expected = twin(adapter, theta[u])(torch.cat([mean_own, mean_glob - mean_own]))
        torch.testing.assert_close(one_each[u], expected.detach())
        torch.testing.assert_close(scalar[u], local[u] + expected.detach() * delta[u])
    elastic, each = Merge("elastic", 0.3, adapter).tables(theta, local, glob)
    assert each.shape == (6, 11) and bool((each.std(1) > 0).all())
    torch.testing.assert_close(elastic, local + each.unsqueeze(-1) * delta)
    assert [Merge(m, 0.3, adapter).learned for m in ("none", "replace", "static")] == [False] * 3
    assert pooled(local, glob)[1].shape == (6, 1, 5)
