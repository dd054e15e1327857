"""Combining tables by weights, in blocks and in place, and averaging rows."""

from __future__ import annotations

import pytest
import torch
from client_tables import tables_of
from hypothesis import given
from hypothesis import strategies as st

from fedem_flwr.aggregation import combine


class TestCombine:
    @pytest.mark.parametrize("receivers", [1, 3, 5])
    @pytest.mark.parametrize("block_items", [None, 1, 2, 3, 6, 7, 50])
    def test_blocks_equal_the_dense_product(self, receivers: int, block_items: int | None) -> None:
        tables = tables_of(5, 7, 3)
        matrix = torch.rand(receivers, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        dense = torch.einsum("rk,kmd->rmd", matrix, tables.double()).float()
        result = combine.combine_tables(matrix, tables, block_items)
        torch.testing.assert_close(result, dense, rtol=0, atol=1e-6)
        assert result.dtype == tables.dtype
        for block, rows in combine.combine_blocks(matrix, tables, block_items):
            assert torch.equal(rows, result[:, block])

    def test_in_place_over_the_uploads(self) -> None:
        for block_items in (1, 4, None):
            tables = tables_of(5, 7, 3)
            matrix = torch.rand(5, 5, generator=torch.Generator().manual_seed(1))
            expected = combine.combine_tables(matrix, tables, block_items)
            assert combine.combine_tables(matrix, tables, block_items, out=tables) is tables
            assert torch.equal(tables, expected)

    def test_known_weights(self) -> None:
        tables = tables_of(3, 4, 2)
        assert torch.equal(combine.combine_tables(torch.eye(3), tables, 2), tables)
        half = combine.combine_tables(torch.tensor([[0.5, 0.5, 0.0]]), tables, 3)
        torch.testing.assert_close(half[0], (tables[0] + tables[1]) / 2)

    def test_half_precision_is_summed_in_float32(self) -> None:
        tables = torch.ones(4096, 2, 1, dtype=torch.float16)
        result = combine.combine_tables(torch.full((1, 4096), 1 / 4096), tables)
        assert result.dtype == torch.float16
        assert (result == 1).all()

    def test_rejects_what_does_not_fit(self) -> None:
        tables = tables_of(3, 4, 2)
        with pytest.raises(ValueError, match="do not fit"):
            combine.combine_tables(torch.eye(2), tables)
        with pytest.raises(ValueError, match="out has shape"):
            combine.combine_tables(torch.eye(3), tables, out=torch.zeros(3, 4, 1))
        with pytest.raises(ValueError, match="block_items"):
            combine.combine_tables(torch.eye(3), tables, 0)

    @given(st.integers(0, 40), st.integers(1, 50))
    def test_item_blocks_partition_the_axis(self, items: int, block_items: int) -> None:
        covered = [i for block in combine.item_blocks(items, 8, block_items) for i in range(items)[block]]
        assert covered == list(range(items))

    def test_item_blocks_keep_to_the_memory_limit(self) -> None:
        per_item = 1000
        sizes = [b.stop - b.start for b in combine.item_blocks(10**6, per_item)]
        assert max(sizes) * per_item <= combine.BLOCK_BYTES < (max(sizes) + 1) * per_item


class TestAverageRows:
    def test_rows_touched_by_no_one_one_and_two_clients(self) -> None:
        previous = torch.tensor([[7.0, 8.0], [7.0, 8.0], [7.0, 8.0]])
        sums = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0 + 5.0, 4.0 + 0.0]])
        result = combine.average_rows(sums, torch.tensor([0, 1, 2]), previous)
        assert result.tolist() == [[7.0, 8.0], [3.0, 4.0], [4.0, 2.0]]

    def test_weighted_clients(self) -> None:
        result = combine.average_rows(torch.tensor([[3.0]]), torch.tensor([0.25]), torch.tensor([[1.0]]))
        assert result.tolist() == [[12.0]]

    def test_rejects_bad_counts_and_shapes(self) -> None:
        rows = torch.zeros(2, 1)
        with pytest.raises(ValueError, match="row 1 "):
            combine.average_rows(rows, torch.tensor([1.0, -1.0]), rows)
        with pytest.raises(ValueError, match="row 0 "):
            combine.average_rows(rows, torch.tensor([torch.nan, 1.0]), rows)
        with pytest.raises(ValueError, match="disagree"):
            combine.average_rows(rows, torch.tensor([1, 1, 1]), rows)
