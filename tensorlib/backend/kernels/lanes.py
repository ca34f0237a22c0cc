"""Rows of windows as vectors: numbers some steps apart in a row, and what is done with them."""

from __future__ import annotations

from typing import Any

LANES = 16  # windows of a row that are worked on at a time
_ALIGN = 16  # bytes, of the buffers for these


def on_lanes(step: int, update: Any, fill: float) -> Any:
    """A helper: `update` for `LANES` numbers of a row, `step` apart, as vector instructions.

    Loops as short as a row of windows would be taken one by one. The helper's arguments are arrays
    of `LANES` numbers, then the row, where to start in it, and one number more.

    Args:
        step: 1 or 2.
        update: Called with the IR builder, the arrays' vectors, that of the row, and the number in
            all lanes of the last array's type; returns the arrays' new vectors.
        fill: Stands for what lies before and behind the row, which is not read.
    """
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic
    from numba.np.arrayobj import make_array

    half = ir.IntType(32)
    lanes = ir.VectorType(half, LANES)
    same = ir.Constant(lanes, None)

    def splat(builder: Any, number: Any) -> Any:
        vector = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
        vector = builder.insert_element(vector, number, half(0))
        return builder.shuffle_vector(vector, vector, same)

    def read(builder: Any, row: Any, element: Any, start: Any) -> Any:
        """`LANES` elements of a row from `start` on, `fill` where there are none."""
        vector = ir.VectorType(element, LANES)
        numbers = ir.Constant(lanes, list(range(LANES)))
        places = builder.add(splat(builder, builder.trunc(start, half)), numbers)
        length = builder.trunc(builder.extract_value(row.shape, 0), half)
        mask = builder.icmp_unsigned("<", places, splat(builder, length))
        pointer = builder.gep(row.data, [start], source_etype=element)
        pointer = builder.bitcast(pointer, vector.as_pointer())
        bits = 32 if isinstance(element, ir.FloatType) else 64
        name = f"llvm.masked.load.v{LANES}f{bits}.p0"
        function = builder.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(vector, [pointer.type, half, mask.type, vector])
            function = ir.Function(builder.module, kind, name)
        absent = ir.Constant(vector, [ir.Constant(element, fill)] * LANES)
        return builder.call(function, [pointer, half(bits // 8), mask, absent])

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = [
            make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args[:-2], args, strict=False)
        ]
        elements = [context.get_data_type(kind.dtype) for kind in signature.args[:-2]]
        values = read(builder, arrays[-1], elements[-1], args[-2])
        if step == 2:
            behind = builder.add(args[-2], args[-2].type(LANES))
            even = ir.Constant(lanes, list(range(0, 2 * LANES, 2)))
            more = read(builder, arrays[-1], elements[-1], behind)
            values = builder.shuffle_vector(values, more, even)
        places, old = [], []
        for array, element in zip(arrays[:-1], elements, strict=False):
            vector = ir.VectorType(element, LANES)
            places.append(builder.bitcast(array.data, vector.as_pointer()))
            old.append(builder.load(places[-1], typ=vector, align=_ALIGN))
        found = update(builder, old, values, splat(builder, args[-1]))
        for place, new in zip(places, found, strict=True):
            builder.store(new, place, align=_ALIGN)
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def two(typing: Any, a: Any, b: Any, row: Any, start: Any, number: Any) -> Any:
        return types.void(a, b, row, types.int64, b.dtype), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def one(typing: Any, a: Any, row: Any, start: Any, number: Any) -> Any:
        return types.void(a, row, types.int64, a.dtype), generate

    return two if update is larger else one


def larger(builder: Any, kept: Any, values: Any, number: Any) -> Any:
    """The larger of the best so far and the values, and the number where these are it."""
    best, won = kept
    better = builder.or_(
        builder.fcmp_ordered(">", values, best), builder.fcmp_unordered("uno", values, values)
    )
    return builder.select(better, values, best), builder.select(better, number, won)


def plus(builder: Any, kept: Any, values: Any, number: Any) -> Any:
    """The sums with the values added."""
    return [builder.fadd(kept[0], values)]
