"""Arrays on the wire: nothing is serialised until it is read, and then as Flower does it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedem_flwr.messages.wire import LazyArray, pack_arrays, payload_bytes, unpack_arrays

ARRAYS = hnp.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@given(ARRAYS)
def test_lazy_array_serialises_like_flowers_own(array: np.ndarray) -> None:
    lazy, plain = LazyArray(array), Array(array)
    assert (lazy.dtype, lazy.shape, lazy.stype, lazy.data) == (
        plain.dtype,
        plain.shape,
        plain.stype,
        plain.data,
    )
    assert lazy == LazyArray(array.copy()) and lazy != LazyArray(np.append(array.ravel(), 1))
    assert lazy.object_id == plain.object_id
    record, same = pack_arrays({"x": array}), ArrayRecord({"x": plain})
    assert get_all_nested_objects(record).keys() == get_all_nested_objects(same).keys()
    restored = Array.inflate(lazy.deflate(), lazy.children)
    np.testing.assert_array_equal(restored.numpy(), array)


@given(ARRAYS)
def test_record_survives_protobuf_and_pickle(array: np.ndarray) -> None:
    named = {"x": array, "transposed": array.T}
    sent = RecordDict({"tables": pack_arrays(named)})
    through = [recorddict_from_proto(recorddict_to_proto(sent)), pickle.loads(pickle.dumps(sent))]
    for received in through:
        taken = unpack_arrays(received["tables"])
        assert list(taken) == list(named)
        for name, values in taken.items():
            assert values.dtype == array.dtype and not values.flags.writeable
            np.testing.assert_array_equal(values, named[name])
        assert payload_bytes(sent) == 2 * array.nbytes + len("xtransposed") <= payload_bytes(received)


def test_nothing_is_serialised_until_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("serialised")

    monkeypatch.setattr(np, "save", refuse)
    array, tensor = np.ones((3, 2), dtype=np.float32), torch.ones(4, dtype=torch.float64, requires_grad=True)
    record = pack_arrays({"é": array, "tensor": tensor})
    taken = unpack_arrays(record)
    assert np.shares_memory(taken["é"], array) and np.shares_memory(taken["tensor"], tensor.detach().numpy())
    assert array.flags.writeable, "the sender may still write"
    assert payload_bytes(record) == 3 * 2 * 4 + 4 * 8 + 2 + len("tensor")
    assert "LazyArray" in repr(record)
    with pytest.raises(ValueError, match="read-only"):
        taken["é"][0] = 2
    with pytest.raises(AssertionError, match="serialised"):
        _ = record["é"].data


def test_pickle_carries_the_array_out_of_band() -> None:
    array = np.arange(1000.0)
    buffers: list[pickle.PickleBuffer] = []
    small = pickle.dumps(pack_arrays({"x": array}), protocol=5, buffer_callback=buffers.append)
    assert len(small) < 2000 and [buffer.raw().nbytes for buffer in buffers] == [8000]
    received = unpack_arrays(pickle.loads(small, buffers=buffers))["x"]
    assert np.shares_memory(received, array)


def test_objects_are_refused_and_foreign_formats_weigh_their_bytes() -> None:
    with pytest.raises(TypeError, match="Python objects"):
        pack_arrays({"x": np.array([None])})
    for dtype, shape in (("bfloat16", (2,)), ("O" * 9, (-1,)), ("float64", (10**18,)), ("(2,", ())):
        for kind in ("other", "numpy.ndarray"):
            foreign = ArrayRecord({"x": Array(dtype, shape, kind, b"abcd")})
            assert payload_bytes(foreign) == 4 + 1, "what it says of itself is not believed"
