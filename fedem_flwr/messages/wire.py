"""Arrays in messages: no copy inside a process, shared memory through Ray, Flower's bytes over the network.

Flower's ``Array`` is made of serialised bytes. ``LazyArray`` is an ``Array`` that still holds the numpy array
and makes the bytes only if somebody reads them, which happens when a message goes over the network. Pickled
(as on the way to a Ray actor) it carries the array itself, which Ray puts into shared memory: the receiver
reads it there.

Every array taken out of a message is read-only, on every runtime: in one process it is the sender's own
memory. The sender in turn leaves an array alone once it is packed, until the receiver is done with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

if TYPE_CHECKING:
    import torch
    from flwr.supercore.inflatable.inflatable_object import InflatableObject

NUMPY_FORMAT = "numpy.ndarray"  # Flower's name for "serialised by numpy.save"


class LazyArray(Array):
    """A Flower ``Array`` over memory that already exists; its bytes are made when first asked for, then kept.

    Args:
        values: a numpy array, not copied; or a tensor: on the CPU not copied, on a GPU copied to the CPU
            once.

    Raises:
        TypeError: the array holds Python objects, which have no safe serial form.
    """

    def __init__(self, values: np.ndarray | torch.Tensor) -> None:
        view = (values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()).view(np.ndarray)
        if view.dtype.hasobject:
            raise TypeError("an array of Python objects cannot be sent in a message")
        view.flags.writeable = False  # of this view; the owner of the memory may still write
        self.dtype = str(view.dtype)
        self.shape = tuple(view.shape)
        self.stype = NUMPY_FORMAT
        self.__dict__["_view"] = view

    @property
    def data(self) -> bytes:  # type: ignore[override]  # an attribute in Array, but never set from outside
        """The bytes that ``numpy.save`` writes: a full copy of the array."""
        return self._serialised().data

    def numpy(self) -> np.ndarray:
        """The array itself, as a read-only view."""
        view: np.ndarray = self.__dict__["_view"]
        return view

    def _serialised(self) -> Array:
        if "_plain" not in self.__dict__:
            self.__dict__["_plain"] = Array(self.numpy())
        plain: Array = self.__dict__["_plain"]
        return plain

    # Over the network an object goes under the name of its class, and the other end only knows "Array".
    def deflate(self) -> bytes:
        """The wire form of the plain ``Array`` with the same content."""
        return self._serialised().deflate()

    def slice_array(self) -> list[tuple[str, InflatableObject]]:
        """The chunks of the plain ``Array`` with the same content."""
        return self._serialised().slice_array()

    def __reduce__(self) -> tuple[type[LazyArray], tuple[np.ndarray]]:
        return LazyArray, (self.numpy(),)

    def __repr__(self) -> str:
        return f"LazyArray(dtype={self.dtype!r}, shape={self.shape})"


def pack_arrays(named: Mapping[str, np.ndarray | torch.Tensor]) -> ArrayRecord:
    """Put named arrays into a Flower record without copying them (see :class:`LazyArray`)."""
    record = ArrayRecord()  # its constructor would serialise: it copies every Array by its bytes
    for name, values in named.items():
        record[name] = LazyArray(values)
    return record


def unpack_arrays(record: ArrayRecord) -> dict[str, np.ndarray]:
    """Take the arrays out of a record, lazy or plain, in its order; all of them read-only."""
    return {name: _read_only(array.numpy()) for name, array in record.items()}


def payload_bytes(content: Message | RecordDict | ArrayRecord) -> int:
    """How many bytes the arrays of a message take: values and names; nothing is serialised to find out.

    Configuration and metric values are left out, and so is the header of about 130 bytes that an array gets on the
    wire, unless it has come over one. An error reply weighs nothing.
    """
    if isinstance(content, Message):
        return payload_bytes(content.content) if content.has_content() else 0
    if isinstance(content, RecordDict):
        return sum(map(payload_bytes, content.array_records.values()))
    return sum(len(name.encode()) + _value_bytes(array) for name, array in content.items())


def plain_numbers(metrics: MetricRecord) -> dict[str, float]:
    """The single numbers of a metric record, as floats, infinite where they are too large; lists are left out."""
    return {name: number(value) for name, value in metrics.items() if isinstance(value, int | float)}


def number(value: float) -> float:
    """A number as a float; infinite where it is too large for one."""
    try:
        return float(value)
    except OverflowError:  # an int of any size may come in
        return math.inf if value > 0 else -math.inf


def _value_bytes(array: Array) -> int:
    # What a foreign array says of its shape and type is text off the wire, and may be anything.
    return array.numpy().nbytes if isinstance(array, LazyArray) else len(array.data)


def _read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array
