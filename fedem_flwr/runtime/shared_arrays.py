"""Arrays that go to many nodes: in a bundle of messages once, and what is large in Ray's object store once for all."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from fedem_flwr.errors import FedemError
from fedem_flwr.messages.wire import LazyArray

_STORED_BYTES = 1 << 20  # arrays from here on are in the object store


class StoredArray(LazyArray):
    """An array in Ray's object store: pickled, it is the name that it has there."""

    def __init__(self, values: np.ndarray) -> None:
        import ray

        super().__init__(values)
        if not ray.is_initialized():  # it would be started anew, in its own way
            raise FedemError("the simulation was stopped: Ray has gone")
        self.__dict__["_reference"] = ray.put(self.numpy())

    def __reduce__(self) -> tuple[Any, ...]:
        return _fetched, (self.__dict__["_reference"],)


def _fetched(reference: Any) -> LazyArray:
    import ray

    return LazyArray(ray.get(reference))


class Once:
    """Arrays over the same memory as one, so that a bundle holds them once, and the object store what is large.

    What was large in a bundle is remembered for the next one, and no longer: each node's own does not pile up.
    """

    def __init__(self) -> None:
        self._before: dict[Any, LazyArray] = {}
        self._here: dict[Any, LazyArray] = {}

    def begin(self) -> None:
        """Begin a new bundle."""
        self._before = {key: array for key, array in self._here.items() if isinstance(array, StoredArray)}
        self._here = {}

    def adds(self, content: RecordDict) -> int:
        """Take in a message; returns by how many bytes of arrays the bundle grows."""
        return sum(self._adds(array) for record in content.array_records.values() for array in record.values())

    def _adds(self, array: Array) -> int:
        if not isinstance(array, LazyArray):
            return len(array.data)
        key, values = _memory(array), array.numpy()
        if key in self._here:
            return 0
        if values.nbytes < _STORED_BYTES:
            self._here[key] = array
            return values.nbytes
        known = self._before.get(key)
        self._here[key] = known or StoredArray(values)
        return 0 if known else values.nbytes

    def shared(self, record: ArrayRecord) -> ArrayRecord:
        """A record that was taken in, of the arrays that others have, too."""
        once = ArrayRecord()
        for name, array in record.items():
            once[name] = self._here[_memory(array)] if isinstance(array, LazyArray) else array
        return once


def _memory(array: LazyArray) -> tuple[Any, ...]:
    """What two arrays have in common that are one."""
    values = array.numpy()
    return values.ctypes.data, values.shape, values.strides, values.dtype.str
