"""Room for arrays in compiled code, in line: NumPy's own functions would be compiled for each kind of shape and dtype."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

_ALIGNED = 32  # as NumPy's arrays are in compiled code


@intrinsic
def empty(context, shape, dtype):  # type: ignore[no-untyped-def]
    """Return an array of that shape, a number or a tuple, and dtype, with anything in it; it is no larger than one in memory."""
    return _kind(shape, dtype)(shape, dtype), _generate(fill=None)


@intrinsic
def zeros(context, shape, dtype):  # type: ignore[no-untyped-def]
    """Return an array of zeros of that shape and dtype; see `empty`."""
    return _kind(shape, dtype)(shape, dtype), _generate(fill=0)


def _kind(shape: Any, dtype: Any) -> Any:
    """The type of an array."""
    return types.Array(dtype.dtype, getattr(shape, "count", 1), "C")


def _generate(fill: int | None) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, shape = signature.return_type, signature.args[0]
        parts = list(zip(cgutils.unpack_tuple(builder, args[0]), shape, strict=True)) if kind.ndim > 1 else [(args[0], shape)]  # fmt: skip
        lengths = [context.cast(builder, length, of, types.intp) for length, of in parts]
        array = make_array(kind)(context, builder)
        real = context.get_data_type(kind.dtype)
        strides = [context.get_constant(types.intp, context.get_abi_sizeof(real))]
        for length in reversed(lengths):
            strides.append(builder.mul(strides[-1], length))
        size = strides.pop()
        meminfo = context.nrt.meminfo_alloc_aligned(builder, size, _ALIGNED)
        data = context.nrt.meminfo_data(builder, meminfo)
        if fill is not None:
            cgutils.memset(builder, data, size, fill)
        populate_array(
            array,
            data=builder.bitcast(data, real.as_pointer()),
            shape=cgutils.pack_array(builder, lengths),
            strides=cgutils.pack_array(builder, strides[::-1]),
            itemsize=context.get_constant(types.intp, context.get_abi_sizeof(real)),
            meminfo=meminfo,
        )
        return array._getvalue()

    return generate
