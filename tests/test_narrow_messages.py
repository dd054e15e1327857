"""Messages with fewer bits (`[messages]`): what is lost is bounded, sums are right on average, runtimes agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedem_flwr.contract.fields import Field
from fedem_flwr.messages.narrow import SCALE, Drawn, Narrower, crossing, narrowed, widened
from fedem_flwr.messages.uploads import size_of

floats = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=80),
    elements=st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False),
    fill=st.just(0.0),
)


def there(values: np.ndarray, bits: int, drawn: Drawn | None = None) -> np.ndarray:
    """What the other end makes of an array."""
    found = widened(narrowed({"x": values}, bits, drawn=drawn))["x"]
    assert found.shape == values.shape and found.dtype == values.dtype
    return found


@settings(max_examples=60, deadline=None)
@given(floats)
def test_what_a_number_loses_is_bounded(values: np.ndarray) -> None:
    """16 bits: 2⁻¹¹ of it, or of what is 2²⁹ times smaller than the largest. 8: half a step, drawn ones a step."""
    largest = np.abs(values).max(initial=0.0)
    half = np.abs(there(values, 16) - values)
    assert bool((half <= np.maximum(np.abs(values) * 2.0**-11, largest * 2.0**-29)).all())
    step = largest / 127 * 1.001 if values.size >= 16 else 0.0
    assert np.abs(there(values, 8) - values).max(initial=0.0) <= step / 2
    assert np.abs(there(values, 8, Drawn(0, 1, 2)) - values).max(initial=0.0) <= step


def test_rows_have_scales_of_their_own_and_zeros_stay() -> None:
    """A row of small numbers beside one of large ones keeps its digits."""
    rows = np.outer([1e-4, 0.0, 1e4], np.linspace(-1, 1, 130)).astype(np.float32)
    for drawn in (None, Drawn(0, 1, 2)):
        found = there(rows, 8, drawn)
        assert np.abs(found[0] - rows[0]).max() < 1e-4 / 126 and not found[1].any()


@pytest.mark.parametrize("users", [400])
def test_sums_of_many_messages_are_right_on_average(users: int) -> None:
    """Each node rounds either way by a draw of its own; to the nearest, all of them would lose the same."""
    values = np.linspace(0, 1, 96, dtype=np.float32)
    total = sum(there(values, 8, Drawn(7, 3, user)).astype(np.float64) for user in range(users))
    nearest = there(values, 8).astype(np.float64) * users
    error, lost = np.abs(total - users * values), np.abs(nearest - users * values)
    assert error.max() < 4.5 * np.sqrt(users) / 2 / 127 < lost.max()
    again = there(values, 8, Drawn(7, 3, 5))
    assert np.array_equal(again, there(values, 8, Drawn(7, 3, 5)))
    assert not np.array_equal(again, there(values, 8, Drawn(7, 4, 5)))


@given(st.lists(st.integers(-3, 2**40), max_size=9), st.sampled_from([np.int32, np.int64]))
def test_codes_and_counts_come_back_as_they_were(numbers: list[int], kind: type) -> None:
    """In the smallest type without a sign that holds them."""
    values = np.clip(np.array(numbers, np.int64), None, np.iinfo(kind).max).astype(kind)
    sent = narrowed({"x": values}, 16)["x"]
    found = widened({"x": sent})["x"]
    assert found.dtype == kind and np.array_equal(found, values) and sent.nbytes <= values.nbytes
    if values.size and values.min() >= 0 and values.max() < 2**16:
        assert sent.nbytes <= values.nbytes // 2


def test_what_is_checked_to_the_digit_keeps_its_digits() -> None:
    """p pᵀ, counts, sums with a least entry, and small arrays; numbers that are none, so that they are refused."""
    table = np.linspace(0, 1, 64, dtype=np.float32).reshape(4, 16)
    fields = {"gram": Field((4, 16), gram=True), "pairs": Field((4, 16), least=0.0), "rows": Field((4, 16))}
    sent = narrowed({name: table for name in fields} | {"odd": np.full(32, np.nan, np.float32)}, 8, fields)
    assert {name: array.dtype.name for name, array in sent.items()} == {
        "gram": "float32",
        "pairs": "float32",
        "rows": "int8",
        f"rows{SCALE}": "float32",
        "odd": "float32",
    }


def test_an_array_for_many_nodes_is_narrowed_once_and_an_empty_one_is_forgotten() -> None:
    """The same bytes go to each of them."""
    narrow, table = Narrower(8), np.ones((32, 16), np.float32)
    first = narrow({"table": table})["table"]
    assert not widened(narrow({"table": table[:0]}))["table"].size
    assert narrow({"table": table})["table"] is first and narrow({"table": table.copy()})["table"] is not first


@pytest.mark.parametrize(("bits", "size"), [(32, 40 * 264), (16, 40 * 131 + 4), (8, 40 * 71)])
def test_bytes_of_an_upload_are_counted_as_they_cross(bits: int, size: int) -> None:
    """Forty rows of 64, their codes below 3,000, and counts, which are of one user."""
    fields = {
        "items": Field((40,), "int32", rows=3000),
        "rows": Field((40, 64)),
        "n": Field((40,), "int32", count=True),
    }
    assert size_of(crossing(fields, bits))[1] == size


@pytest.mark.parametrize("scale", [np.ones(3, np.float32), np.full(2, np.inf, np.float32)])
def test_a_scale_that_is_none_spoils_the_upload_alone(scale: np.ndarray) -> None:
    """Too many, or no numbers: there is no such array, or one that is refused."""
    codes = {"x": np.ones((2, 64), np.int8), f"x{SCALE}": scale}
    with pytest.raises(ValueError, match="has a scale"):
        widened({**codes, "x": np.ones((2, 64))})
    if len(scale) == 3:
        with pytest.raises(ValueError, match="broadcast"):
            widened(codes)
    else:
        assert not np.isfinite(widened(codes)["x"]).any()
