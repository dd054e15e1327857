"""Sixteen numbers that are computed with together: a type for compiled functions, and what can be done with it.

A loop over samples that is written with it runs in vector units whatever a compiler thinks of the loop; LLVM splits the
sixteen lanes over whatever units a processor has. Outside of compiled functions nothing here can be called.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Protocol

from llvmlite import ir
from numba.core import config, types
from numba.core.cgutils import get_or_insert_function
from numba.core.datamodel import models
from numba.core.extending import intrinsic, lower_builtin, register_model
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature

LANES = 16
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_FAST = ("contract", "nsz")  # a product and a sum may become one operation; nothing is reordered


class LanesType(types.Type):
    """numba's name for sixteen float32."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


LANES_TYPE = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


def _arithmetic(symbol: Any, build: str) -> None:
    class _Template(ConcreteTemplate):  # type: ignore[misc]
        cases = [signature(LANES_TYPE, LANES_TYPE, LANES_TYPE)]  # noqa: RUF012

    infer_global(symbol)(_Template)

    def lowered(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, build)(*args, flags=_FAST)

    lower_builtin(symbol, LANES_TYPE, LANES_TYPE)(lowered)


for _symbol, _build in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _arithmetic(_symbol, _build)


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any, count: int) -> Any:
    """The address of one of an array's numbers, from where `count` are read or written.

    Where the compiler is told to look at bounds (`NUMBA_BOUNDSCHECK=1`), as it then does at every other index, all of
    them have to be in the array; else an IndexError is raised.
    """
    there = context.make_array(kind)(context, builder, array)
    if config.BOUNDSCHECK:
        last = builder.add(index, index.type(count))
        below, beyond = builder.icmp_signed("<", index, index.type(0)), builder.icmp_signed(">", last, there.nitems)
        with builder.if_then(builder.or_(below, beyond), likely=False):
            context.call_conv.return_user_exc(builder, IndexError, ("lanes lie outside of an array",))
    return builder.gep(there.data, [index])


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.bitcast(_place(context, builder, kind, array, index, LANES), _FLOATS.as_pointer())


def _spread(builder: Any, vector: Any, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _constant(value: float) -> Any:
    return ir.Constant(_FLOATS, [value] * LANES)


def _elementwise(name: str, arguments: int) -> Callable[..., Any]:
    """A function that LLVM has for vectors."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * arguments)
        return builder.call(get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32"), args)

    def unary(typing: Any, x: Any) -> Any:
        return LANES_TYPE(LANES_TYPE), generate

    def binary(typing: Any, x: Any, y: Any) -> Any:
        return LANES_TYPE(LANES_TYPE, LANES_TYPE), generate

    return unary if arguments == 1 else binary


def _load(typing: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, sig.args[0], *args), align=4)

    return LANES_TYPE(array, types.intp), generate


def _store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, sig.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES_TYPE), generate


def _spread_at(typing: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _spread(builder, _FLOATS, builder.load(_place(context, builder, sig.args[0], args[0], args[1], 1)))

    return LANES_TYPE(array, types.intp), generate


def _add_product(typing: Any, x: Any, y: Any, z: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fadd(args[0], builder.fmul(args[1], args[2], flags=_FAST), flags=_FAST)

    return LANES_TYPE(LANES_TYPE, LANES_TYPE, LANES_TYPE), generate


def _every(typing: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _spread(builder, _FLOATS, args[0])

    return LANES_TYPE(types.float32), generate


def _total(typing: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (x,), width = args, LANES
        while width > 1:  # halves added up: the same order on every processor
            width //= 2
            undefined = ir.Constant(x.type, ir.Undefined)
            low, high = (
                builder.shuffle_vector(x, undefined, ir.Constant(ir.VectorType(_INT, width), list(range(a, a + width))))
                for a in (0, width)
            )
            x = builder.fadd(low, high)
        return builder.extract_element(x, ir.Constant(_INT, 0))

    return types.float32(LANES_TYPE), generate


def _where_positive(typing: Any, x: Any, yes: Any, no: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[0], _constant(0.0)), args[1], args[2])

    return LANES_TYPE(LANES_TYPE, LANES_TYPE, LANES_TYPE), generate


def _power_of_two(typing: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.add(builder.fptosi(args[0], _INTS), ir.Constant(_INTS, [127] * LANES))
        return builder.bitcast(builder.shl(bits, ir.Constant(_INTS, [23] * LANES)), _FLOATS)

    return LANES_TYPE(LANES_TYPE), generate


class Lanes(Protocol):
    """Sixteen float32, as a type checker sees them."""

    def __add__(self, other: Lanes) -> Lanes: ...
    def __sub__(self, other: Lanes) -> Lanes: ...
    def __mul__(self, other: Lanes) -> Lanes: ...
    def __truediv__(self, other: Lanes) -> Lanes: ...


load: Callable[[Any, int], Lanes] = intrinsic(_load)
store: Callable[[Any, int, Lanes], None] = intrinsic(_store)
spread: Callable[[Any, int], Lanes] = intrinsic(_spread_at)
add_product: Callable[[Lanes, Lanes, Lanes], Lanes] = intrinsic(_add_product)
every: Callable[[Any], Lanes] = intrinsic(_every)
total: Callable[[Lanes], Any] = intrinsic(_total)
where_positive: Callable[[Lanes, Lanes, Lanes], Lanes] = intrinsic(_where_positive)
power_of_two: Callable[[Lanes], Lanes] = intrinsic(_power_of_two)
root: Callable[[Lanes], Lanes] = intrinsic(_elementwise("sqrt", 1))
magnitude: Callable[[Lanes], Lanes] = intrinsic(_elementwise("fabs", 1))
nearest: Callable[[Lanes], Lanes] = intrinsic(_elementwise("nearbyint", 1))
larger: Callable[[Lanes, Lanes], Lanes] = intrinsic(_elementwise("maxnum", 2))
