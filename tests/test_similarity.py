"""Similarity of item tables, against slow twins."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from client_tables import tables_of
from torch import Tensor

from fedem_flwr.aggregation import combine
from fedem_flwr.aggregation.similarity import PcaSign, SimilarityKind, principal_scores, similarity


def slow_similarity(tables: Tensor, kind: str) -> np.ndarray:
    """Pair by pair in float64, straight from the definitions."""
    arrays = tables.double().numpy()
    axes = principal_scores(tables).numpy()
    result = np.ones((len(arrays), len(arrays)))
    for u, own in enumerate(arrays):
        for v, other in enumerate(arrays):
            if u == v:
                continue
            if kind == "frobenius":
                result[u, v] = 1 / (1 + ((own - other) ** 2).sum())
            elif kind == "pca":
                result[u, v] = 1 / (1 + np.sqrt(((axes[u] - axes[v]) ** 2).sum()))
            else:
                norms = np.linalg.norm(own) * np.linalg.norm(other)
                result[u, v] = max(0.0, float((own * other).sum()) / norms) if norms > 0 else 0.0
    return result


class TestSimilarity:
    @pytest.mark.parametrize("kind", ["frobenius", "pca", "cosine"])
    @pytest.mark.parametrize("block_items", [None, 1, 3, 100])
    def test_equals_the_slow_twin(self, kind: SimilarityKind, block_items: int | None) -> None:
        tables = tables_of(7, 11, 4) + 5 * tables_of(1, 11, 4, seed=1)  # a large common part
        result = similarity(tables, kind, block_items=block_items)
        np.testing.assert_allclose(result.numpy(), slow_similarity(tables, kind), rtol=0, atol=1e-12)
        assert (result.diagonal() == 1).all()
        assert torch.equal(result, result.T)

    def test_tiles_of_clients_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tables = tables_of(10, 6, 3)
        expected = similarity(tables)
        for tile in (1, 3, 4, 10):
            monkeypatch.setattr(sys.modules[similarity.__module__], "_TILE", tile)
            result = similarity(tables)
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-14)
            assert torch.equal(result, result.T)

    def test_small_differences_between_large_tables_survive(self) -> None:
        """Float32 tables of norm 4e5 that differ in one number by 1/8: σ = 1 / (1 + 1/64)."""
        tables = (tables_of(1, 1000, 16) * 4096).round().repeat(3, 1, 1)
        tables[1, 17, 3] += 0.125
        result = similarity(tables)
        assert result[0, 1].item() == pytest.approx(64 / 65, abs=1e-9)
        assert result[0, 2].item() == pytest.approx(1.0, abs=1e-9)

    def test_principal_scores_equal_sklearn_up_to_sign(self) -> None:
        decomposition = pytest.importorskip("sklearn.decomposition")
        tables = tables_of(6, 40, 5) * torch.tensor([3.0, 1.0, 1.0, 0.5, 2.0]) + 1
        for sign in ("raw", "fixed"):
            scores = principal_scores(tables, sign).numpy()
            for own, table in zip(scores, tables.double().numpy(), strict=True):
                twin = decomposition.PCA(n_components=1, svd_solver="full").fit_transform(table)[:, 0]
                np.testing.assert_allclose(own * np.sign(own @ twin), twin, atol=1e-10)

    def test_fixed_sign(self) -> None:
        """The largest component of the axis is positive, whatever the eigensolver gave."""
        tables = tables_of(5, 30, 4)
        scores = principal_scores(tables, "fixed")
        centred = tables.double() - tables.double().mean(1, keepdim=True)
        axis = (centred.mT @ scores.unsqueeze(-1)).squeeze(-1)  # proportional to v_1, same sign
        assert (axis.gather(1, axis.abs().argmax(1, keepdim=True)) > 0).all()

    @pytest.mark.parametrize("sign", ["raw", "fixed"])
    def test_sign_depends_on_the_own_table_only(self, sign: PcaSign, monkeypatch: pytest.MonkeyPatch) -> None:
        tables = tables_of(20, 30, 4)
        together = principal_scores(tables, sign)
        alone = torch.cat([principal_scores(table[None], sign) for table in tables])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
        monkeypatch.setattr(combine, "BLOCK_BYTES", 3 * 30 * 4 * 8)  # three clients a block
        torch.testing.assert_close(principal_scores(tables, sign), together, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("kind", ["frobenius", "pca", "cosine"])
    def test_corner_cases(self, kind: SimilarityKind) -> None:
        assert similarity(tables_of(1, 5, 2), kind).tolist() == [[1.0]]
        identical = tables_of(1, 5, 2).repeat(4, 1, 1)
        torch.testing.assert_close(
            similarity(identical, kind), torch.ones(4, 4, dtype=torch.float64), rtol=0, atol=1e-6
        )
        empty = similarity(torch.zeros(2, 5, 2), kind)
        assert empty.diagonal().tolist() == [1.0, 1.0]
        assert empty[0, 1].item() == (0.0 if kind == "cosine" else 1.0)
        order = torch.tensor([3, 0, 2, 1])
        tables = tables_of(4, 9, 3)
        torch.testing.assert_close(
            similarity(tables[order], kind),
            similarity(tables, kind)[order][:, order],
            rtol=0,
            atol=1e-12,
        )

    def test_opposite_tables_have_cosine_zero(self) -> None:
        table = tables_of(1, 5, 2)
        assert similarity(torch.cat([table, -table]), "cosine")[0, 1] == 0

    def test_saturation(self) -> None:
        tables = torch.zeros(3, 1, 1)
        tables[1], tables[2] = 0.1, 2.0  # σ = 1 / 1.01 and 0.2
        result = similarity(tables, saturate=0.9)
        assert result[0, 1] == 1
        assert result[0, 2].item() == pytest.approx(0.2, abs=1e-12)

    @pytest.mark.parametrize("kind", ["frobenius", "pca", "cosine"])
    def test_names_the_table_that_is_not_finite(self, kind: SimilarityKind) -> None:
        tables = tables_of(6, 8, 2)
        tables[4, 7, 1] = torch.inf
        with pytest.raises(ValueError, match="row 4 "):
            similarity(tables, kind, block_items=3)

    def test_says_where_squares_are_too_large(self) -> None:
        tables = tables_of(3, 4, 2).double()
        tables[1, 2, 0] = 1e200
        with pytest.raises(ValueError, match="squares are too large"):
            similarity(tables)

    def test_rejects_unknown_options(self) -> None:
        with pytest.raises(ValueError, match="unknown similarity"):
            similarity(tables_of(2, 3, 2), "l2")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="unknown pca_sign"):
            similarity(tables_of(2, 3, 2), "pca", pca_sign="free")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="want"):
            similarity(torch.zeros(2, 3))
