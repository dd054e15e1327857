"""Aggregation weights against a solver and the KKT conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from client_tables import tables_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedem_flwr.aggregation import combine, oracle, weights
from fedem_flwr.aggregation.similarity import SimilarityKind, similarity
from fedem_flwr.errors import InputError

ALPHAS = (0.0, 0.9, 1e3, 1e9)
GRIDS = ("random", "ties", "zero", "ones", "identity", "near ties", "realistic")


def problem(kind: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Proportions (n,) that sum to 1 and similarities (n, n) of an ordinary or adversarial kind."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(n, generator=generator, dtype=torch.float64) ** 2 + 1e-3
    noise = torch.rand(n, n, generator=generator, dtype=torch.float64)
    sigma = {
        "random": noise,
        "ties": (noise * 3).floor() / 2,
        "zero": torch.zeros_like(noise),
        "ones": torch.ones_like(noise),
        "identity": torch.eye(n, dtype=torch.float64),
        "near ties": 1 - noise * 1e-9,
        "realistic": (noise * 0.02).fill_diagonal_(1.0),
    }[kind]
    if kind == "ties":
        share = torch.ones_like(share)
    return share / share.sum(), sigma


def slow_projection(row: list[float]) -> list[float]:
    """Textbook sort-and-threshold, one row, plain floats."""
    ordered, total, threshold = sorted(row, reverse=True), 0.0, 0.0
    for j, score in enumerate(ordered, start=1):
        total += score
        if score - (total - 1) / j > 0:
            threshold = (total - 1) / j
    return [max(score - threshold, 0.0) for score in row]


def assert_projection(scores: Tensor, result: Tensor, tolerance: float = 1e-9) -> None:
    """The KKT conditions, which suffice: one τ a row, w = s - τ where w > 0, and s <= τ where w = 0."""
    assert (result >= 0).all()
    torch.testing.assert_close(result.sum(-1), torch.ones(len(result), dtype=torch.float64))
    gap = scores - result  # τ where w > 0
    positive = result > 0
    tau = torch.where(positive, gap, -torch.inf).amax(-1, keepdim=True)
    assert (torch.where(positive, tau - gap, 0.0) <= tolerance).all()
    assert (torch.where(positive, -torch.inf, gap) <= tau + tolerance).all()


class TestSimplexWeights:
    @pytest.mark.parametrize(
        ("scores", "expected"),
        [
            ([0.9, 0.1, 0.0], [0.9, 0.1, 0.0]),
            ([1.0, 1.0], [0.5, 0.5]),
            ([2.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
            ([-7.0], [1.0]),
            ([5.0, 4.5, 1.0], [0.75, 0.25, 0.0]),
            ([1e9 + 0.5, 1e9, -1e9], [0.75, 0.25, 0.0]),
            ([1e308, 1e308, -1e308], [0.5, 0.5, 0.0]),
        ],
    )
    def test_worked_cases(self, scores: list[float], expected: list[float]) -> None:
        result = weights.simplex_weights(torch.tensor([scores], dtype=torch.float64))
        torch.testing.assert_close(result, torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-15)

    @given(
        st.lists(st.floats(-3, 3) | st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40),
        st.floats(1e-6, 1e6),
    )
    def test_equals_the_textbook_loop(self, row: list[float], scale: float) -> None:
        scaled = [score * scale for score in row]
        result = weights.simplex_weights(torch.tensor([scaled], dtype=torch.float64))[0]
        np.testing.assert_allclose(result.numpy(), slow_projection(scaled), atol=1e-15 * max(scale, 1) * 30)

    @pytest.mark.parametrize("kind", ["normal", "ties", "steep", "flat"])
    def test_kkt_at_size(self, kind: str) -> None:
        noise = torch.randn(70, 4001, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        scores = {"normal": noise, "ties": noise.round(), "steep": noise * 1e4, "flat": noise * 1e-7}[kind]
        assert_projection(scores, weights.simplex_weights(scores))

    def test_rows_that_newton_does_not_settle_are_sorted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = torch.randn(50, 300, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        expected = weights.simplex_weights(scores)
        for steps in (0, 1, 2, 3):
            monkeypatch.setattr(weights, "_NEWTON_STEPS", steps)
            torch.testing.assert_close(weights.simplex_weights(scores), expected, rtol=0, atol=1e-14)

    def test_blocks_of_rows_do_not_matter_and_the_input_is_kept(self) -> None:
        scores = torch.randn(300, 1000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        before = scores.clone()
        together = weights.simplex_weights(scores)
        alone = torch.cat([weights.simplex_weights(row[None]) for row in scores])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-15)
        assert torch.equal(scores, before)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_names_the_row_that_is_not_finite(self, bad: float) -> None:
        scores = torch.zeros(2000, 900)
        scores[1234, 7] = bad
        with pytest.raises(ValueError, match="row 1234 "):
            weights.simplex_weights(scores)

    def test_shapes(self) -> None:
        assert weights.simplex_weights(torch.zeros(0, 3)).shape == (0, 3)
        with pytest.raises(ValueError, match="no columns"):
            weights.simplex_weights(torch.zeros(3, 0))
        with pytest.raises(ValueError, match="want"):
            weights.simplex_weights(torch.zeros(3))


class TestAggregationWeights:
    @settings(max_examples=25, deadline=None)
    @given(
        st.sampled_from(GRIDS),
        st.integers(1, 30),
        st.sampled_from(ALPHAS) | st.floats(0, 5),
        st.integers(0, 99),
    )
    def test_closed_forms_equal_the_solver(self, kind: str, n: int, alpha: float, seed: int) -> None:
        share, sigma = problem(kind, n, seed)
        rows = slice(0, 3)  # receivers are independent; three a problem keep the solver's time down
        eq13 = weights.aggregation_weights("eq13", share, sigma, alpha)[rows]
        released = weights.aggregation_weights("released", share, sigma, alpha)[rows]
        solved = oracle.cvxpy_weights(share, sigma[rows], alpha)
        torch.testing.assert_close(eq13, solved, rtol=0, atol=1e-6)
        solved = oracle.cvxpy_weights(share, sigma[rows], alpha, objective="released")
        torch.testing.assert_close(released, solved, rtol=0, atol=1e-6)

    @given(st.sampled_from(GRIDS), st.integers(1, 60), st.sampled_from(ALPHAS), st.integers(0, 999))
    def test_feasible_for_every_rule(self, kind: str, n: int, alpha: float, seed: int) -> None:
        share, sigma = problem(kind, n, seed)
        for rule in ("average", "eq13", "released"):
            result = weights.aggregation_weights(rule, share, sigma, alpha)
            assert result.dtype == torch.float64
            assert (result >= 0).all()
            torch.testing.assert_close(result.sum(-1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-12)

    @given(st.integers(2, 40), st.integers(0, 999))
    def test_renumbering_clients_renumbers_weights(self, n: int, seed: int) -> None:
        share, sigma = problem("random", n, seed)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        for rule in ("average", "eq13", "released"):
            plain = weights.aggregation_weights(rule, share, sigma, 0.9)
            moved = weights.aggregation_weights(rule, share[order], sigma[order][:, order], 0.9)
            torch.testing.assert_close(moved, plain[order][:, order], rtol=0, atol=1e-14)

    def test_without_similarity_it_is_federated_averaging(self) -> None:
        share, sigma = problem("random", 9, 0)
        for rule in ("average", "eq13", "released", "cvxpy"):
            result = weights.aggregation_weights(rule, share, sigma, 0.0)
            torch.testing.assert_close(result, share.expand(9, 9), rtol=0, atol=1e-7)

    def test_own_weight_is_what_theory_says(self) -> None:
        """For σ = identity and many equal clients: α / (1 + α) for Eq. 13, near 0.9 for the released one."""
        sigma = torch.eye(1000, dtype=torch.float64)
        eq13 = weights.aggregation_weights("eq13", torch.ones(1000), sigma, 0.9)
        assert eq13[0, 0] == pytest.approx(0.9 / 1.9, abs=1e-3)
        released = weights.aggregation_weights("released", torch.ones(1000), sigma, 0.9)
        assert released[0, 0] == pytest.approx(0.9 * (1 - 1 / 1000) + 1 / 1000, abs=1e-9)

    def test_counts_serve_as_proportions(self) -> None:
        result = weights.aggregation_weights("average", torch.tensor([30, 10]), torch.eye(2), 0.9)
        assert result.tolist() == [[0.75, 0.25], [0.75, 0.25]]

    def test_negligible_weights_are_dropped(self) -> None:
        share = torch.tensor([1.0, 1e-21, 0.0], dtype=torch.float64)
        result = weights.aggregation_weights("released", share, torch.zeros(3, 3), 0.0)
        assert result.tolist() == [[1.0, 0.0, 0.0]] * 3

    def test_rejects_bad_input_by_row(self) -> None:
        sigma = torch.eye(3)
        broken = sigma.clone()
        broken[2, 0] = torch.nan
        for rule in ("eq13", "released", "cvxpy"):
            with pytest.raises(ValueError, match="row 2 "):
                weights.aggregation_weights(rule, torch.ones(3), broken, 0.9)
        for share in ([1.0, torch.nan, 1.0], [1.0, -1.0, 1.0], [1.0, torch.inf, 1.0]):
            with pytest.raises(ValueError, match="row 1 "):
                weights.aggregation_weights("average", torch.tensor(share), sigma, 0.9)
        with pytest.raises(ValueError, match="sum to 0"):
            weights.aggregation_weights("eq13", torch.zeros(3), sigma, 0.9)
        with pytest.raises(ValueError, match="fit"):
            weights.aggregation_weights("eq13", torch.ones(2), sigma, 0.9)
        with pytest.raises(ValueError, match="unknown weight rule"):
            weights.aggregation_weights("fedsim", torch.ones(3), sigma, 0.9)  # type: ignore[arg-type]
        for alpha in (-0.1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="alpha"):
                weights.aggregation_weights("eq13", torch.ones(3), sigma, alpha)


class TestOracle:
    SHARE = torch.full((4,), 0.25, dtype=torch.float64)
    SIGMA = torch.eye(4, dtype=torch.float64)

    def test_caps(self) -> None:
        capped = oracle.cvxpy_weights(self.SHARE, self.SIGMA, 0.9, caps=0.3)
        expected = torch.full((4, 4), 0.7 / 3, dtype=torch.float64).fill_diagonal_(0.3)
        torch.testing.assert_close(capped, expected, rtol=0, atol=1e-7)
        only_point = oracle.cvxpy_weights(self.SHARE, self.SIGMA, 0.9, caps=0.25)
        torch.testing.assert_close(only_point, torch.full_like(only_point, 0.25), rtol=0, atol=1e-7)

    def test_caps_with_a_huge_alpha_take_the_best_until_full(self) -> None:
        sigma = torch.tensor([[1.0, 0.5, 0.2, 0.0]], dtype=torch.float64)
        result = oracle.cvxpy_weights(self.SHARE, sigma, 1e9, objective="released", caps=0.4)
        assert result[0].tolist() == pytest.approx([0.4, 0.4, 0.2, 0.0], abs=1e-6)
        # Eq. 13 projects σ itself then: min(σ - τ, 0.4) with τ = 0.05
        result = oracle.cvxpy_weights(self.SHARE, sigma, 1e9, caps=0.4)
        assert result[0].tolist() == pytest.approx([0.4, 0.4, 0.2, 0.0], abs=1e-6)

    def test_banned_neighbours(self) -> None:
        banned = torch.zeros(4, 4, dtype=torch.bool)
        banned[2, 2] = banned[1, 0] = True
        result = oracle.cvxpy_weights(self.SHARE, self.SIGMA, 0.9, banned=banned)
        assert (result[banned] == 0).all()
        assert result[2].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=1e-7)
        others = weights.aggregation_weights("eq13", self.SHARE, self.SIGMA, 0.9)
        torch.testing.assert_close(result[[0, 3]], others[[0, 3]], rtol=0, atol=1e-7)

    def test_group_floors(self) -> None:
        group = torch.tensor([True, True, False, False])
        result = oracle.cvxpy_weights(self.SHARE, self.SIGMA, 0.9, floors=[(group, 0.8)])
        assert (result[:, group].sum(-1) >= 0.8 - 1e-8).all()
        own, other = (0.25 + 0.9) / 1.9, 0.25 / 1.9  # each member is lifted by half of what is missing
        lift = (0.8 - own - other) / 2
        assert result[0].tolist() == pytest.approx([own + lift, other + lift, 0.1, 0.1], abs=1e-7)

    def test_infeasible_constraints_name_the_row(self) -> None:
        banned = torch.zeros(4, 4, dtype=torch.bool)
        banned[2] = True
        with pytest.raises(InputError, match="row 2"):
            oracle.cvxpy_weights(self.SHARE, self.SIGMA, 0.9, banned=banned)
        with pytest.raises(InputError, match="row 0"):
            oracle.cvxpy_weights(self.SHARE, self.SIGMA, 0.9, caps=0.2)
        group = torch.tensor([True, True, False, False])
        with pytest.raises(InputError, match="row 0"):
            oracle.cvxpy_weights(self.SHARE, self.SIGMA, 0.9, floors=[(group, 0.7), (~group, 0.4)])

    def test_rejects_bad_shapes_and_options(self) -> None:
        with pytest.raises(ValueError, match="banned"):
            oracle.cvxpy_weights(self.SHARE, self.SIGMA, 0.9, banned=torch.zeros(3, 4, dtype=torch.bool))
        with pytest.raises(ValueError, match="floor 0"):
            oracle.cvxpy_weights(self.SHARE, self.SIGMA, 0.9, floors=[(torch.ones(3, dtype=torch.bool), 0.1)])
        with pytest.raises(ValueError, match="caps"):
            oracle.cvxpy_weights(self.SHARE, self.SIGMA, 0.9, caps=float("nan"))
        with pytest.raises(ValueError, match="objective"):
            oracle.cvxpy_weights(self.SHARE, self.SIGMA, 0.9, objective="l1")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="fit"):
            oracle.cvxpy_weights(self.SHARE[:2], self.SIGMA, 0.9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["frobenius", "pca", "cosine"])
def test_cuda_equals_cpu(kind: SimilarityKind) -> None:
    tables = tables_of(30, 50, 8)
    sigma = similarity(tables, kind)
    sigma_cuda = similarity(tables.cuda(), kind)
    torch.testing.assert_close(sigma_cuda.cpu(), sigma, rtol=0, atol=1e-9)
    for rule in ("average", "eq13", "released"):
        mine = weights.aggregation_weights(rule, torch.ones(30), sigma, 0.9)
        theirs = weights.aggregation_weights(rule, torch.ones(30), sigma.cuda(), 0.9)
        torch.testing.assert_close(theirs.cpu(), mine, rtol=0, atol=1e-12)
    combined = combine.combine_tables(mine.cuda(), tables.cuda(), 7)
    torch.testing.assert_close(combined.cpu(), combine.combine_tables(mine, tables), rtol=1e-4, atol=1e-5)
