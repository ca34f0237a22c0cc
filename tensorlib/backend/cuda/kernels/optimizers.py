"""Many arrays in one launch: optimizers, the norm of all gradients, unscaling.

The addresses go to the GPU in a table (`tables.cuh`). It is kept, and used again while a call
names the same memory, as training steps do.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ....dtypes import HALF
from .. import capture, launch
from .arrays import DOUBLE, SINGLE, address
from .reduction import row_sums

CHUNK = 16384  # elements that a block takes at a time, as in `tables.cuh`
_WIDTH, _MASTER, _COUNTER, _SIZE = 8, 5, 6, 7
_TABLES = 32  # that are kept
_THREADS = (512, 1)


class Table(NamedTuple):
    """Addresses and sizes in the GPU's memory, and the chunks: whose each is, and where it begins.

    Attributes:
        rows: (rows, 8) int64.
        owners: The row of each chunk.
        starts: Its first element.
    """

    rows: Any
    owners: Any
    starts: Any


def chunks_of(sizes: Sequence[int]) -> tuple[Any, Any]:
    """The row and the first element of each chunk, for arrays of some sizes."""
    counts = -(-np.asarray(sizes, np.int64) // CHUNK)
    owners = np.repeat(np.arange(len(counts)), counts)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    return owners, (np.arange(len(owners)) - before[owners]) * CHUNK


def _make(put: Callable[[Any], Any], rows: Sequence[Sequence[int]]) -> Table:
    owners, starts = chunks_of([row[_SIZE] for row in rows])
    return Table(*(put(np.asarray(a, np.int64)) for a in (rows, owners, starts)))


@functools.lru_cache(maxsize=_TABLES)
def _kept(runner: Any, device: int, rows: tuple[tuple[int, ...], ...]) -> Table:
    """The table of some rows; `device` tells the same addresses of two GPUs apart."""
    return _make(runner.xp.asarray, rows)


def _table(device: int, rows: tuple[tuple[int, ...], ...]) -> Table:
    """The table of some rows, on the GPU; a graph that is being captured has its own."""
    if capture.current() is not None:
        return _make(capture.constant, rows)
    runner: Any = launch.runner()
    return _kept(runner, device, rows)


def _device(x: Any) -> int:
    return 0 if isinstance(x, np.ndarray) else x.device.id


def _start(file: str, name: str, types: Any, table: Table, *args: Any) -> None:
    chunks = len(table.owners)
    if chunks:
        grid = launch.items(chunks, _THREADS)
        launch.start(file, name, types, grid, *table, chunks, *args)


def _is_sound(row: Sequence[Any], master: Any, dtype: Any) -> bool:
    """Whether a row's arrays are contiguous, of one size, apart, and of the expected types."""
    p, g, *kept = row
    types = (dtype, SINGLE) if dtype in HALF else (dtype,)
    if p.dtype != dtype or g.dtype not in types or any(x.dtype not in types for x in kept):
        return False
    if len({x.dtype for x in kept}) > 1:
        return False
    if master is not None:
        if dtype not in HALF or master.dtype != SINGLE:
            return False
        row = [*row, master]
    if any(not x.flags.c_contiguous or x.size != p.size for x in row):
        return False
    spans = sorted((address(x), x.nbytes) for x in row)
    return all(a + n <= b for (a, n), (b, _) in itertools.pairwise(spans))


def _count(counters: list[Any]) -> tuple[float, Any]:
    """Count a step in counters that lie in the host's memory: all the same number, or an array."""
    for counter in counters:
        counter += 1
    values = [float(c) for c in counters]
    if len(set(values)) <= 1:
        return (values[0] if values else 0.0), None
    return 0.0, launch.runner().xp.asarray(np.asarray(values, np.float64))


def optimize(
    rule: str, dtype: Any, objects: list[Any], arrays: int, counted: bool, options: Any, *,
    masters: list[Any] | None = None, unscale: Any = None, clip: Any = None, found: Any = None,
) -> Sequence[int]:  # fmt: skip
    """One step of an optimizer over many parameters.

    Args:
        rule: The kernel's name.
        dtype: Which parameters to update.
        objects: A row for each parameter: it, its gradient, what the optimizer keeps of it, and if
            `counted` the counter of its steps, in the memory of the host or of the GPU.
        arrays: Arrays in a row, without the counter.
        counted: Whether a row ends with a counter, which is increased.
        options: The rule's numbers; or eight of them, the rest 0, as a float64 array in the GPU's
            memory.
        masters: A float32 copy of each parameter, which is updated in its place.
        unscale: A float32 number in the GPU's memory that gradients are multiplied by.
        clip: Another.
        found: A float32 number in the GPU's memory; unless it is 0 nothing is updated, and no
            counter in the GPU's memory increased.

    Returns:
        The numbers of the rows that were refused: other dtypes, strides, or shared memory.
    """
    width = arrays + counted
    refused: list[int] = []
    groups: dict[tuple[Any, ...], list[tuple[list[Any], Any, Any]]] = {}
    for i in range(len(objects) // width):
        row = objects[i * width : (i + 1) * width]
        counter = row.pop() if counted else None
        master = masters[i] if masters is not None else None
        if not _is_sound(row, master, dtype):
            refused.append(i)
            continue
        state = row[2].dtype if arrays > 2 else dtype
        key = (row[1].dtype, state, type(counter) is np.ndarray, _device(row[0]))
        groups.setdefault(key, []).append((row, counter, master))
    live = options if hasattr(options, "dtype") else None
    numbers = [0.0] * 8 if live is not None else [*map(float, options), *[0.0] * (8 - len(options))]
    for (gradient, state, on_host, device), members in groups.items():
        rows = []
        for row, counter, master in members:
            line = [address(x) for x in row] + [0] * (_MASTER - len(row))
            line.append(0 if master is None else address(master))
            line.append(0 if counter is None or on_host else address(counter))
            rows.append((*line, row[0].size))
        table = _table(device, tuple(rows))
        types = (np.dtype(dtype), gradient, state)
        step, steps = 0.0, None
        if on_host:
            step, steps = _count([counter for _, counter, _ in members])
        elif counted:
            grid = launch.elements(len(rows))
            launch.start("optimizers", "count_steps", types, grid, table.rows, len(rows), found)
        _start("optimizers", rule, types, table, steps, step, unscale, clip, found, live,
               *numbers)  # fmt: skip
    return refused


# --- gradients -----------------------------------------------------------------------------------


def _by_dtype(arrays: Sequence[Any]) -> list[tuple[Any, Table]]:
    """A table of the arrays of each dtype."""
    found: dict[Any, list[Any]] = {}
    for x in arrays:
        found.setdefault(x.dtype, []).append(x)
    return [
        (
            dtype,
            _table(
                _device(group[0]),
                tuple([(address(x), *(0,) * (_SIZE - 1), x.size) for x in group]),
            ),
        )
        for dtype, group in found.items()
    ]


def square_sums(arrays: Sequence[Any]) -> Any:
    """Σ x² over all elements of all arrays, which are contiguous: a float64 of no dimensions."""
    xp = launch.runner().xp
    tables = _by_dtype(arrays)
    parts = xp.zeros(max(1, sum(len(t.owners) for _, t in tables)), np.float64)
    at = 0
    for dtype, table in tables:
        part = parts[at : at + len(table.owners)]
        _start("gradients", "square_chunks", (dtype,), table, part)
        at += len(table.owners)
    return row_sums(parts, 1, parts.size, DOUBLE, False, False).reshape(())


def unscale(arrays: Sequence[Any], factor: Any, found: Any = None) -> None:
    """Multiply contiguous arrays by a number in the GPU's memory, and look for what is not finite.

    Args:
        arrays: Written to.
        factor: A float32.
        found: A float32 that becomes 1 if an element was infinite or not a number.
    """
    for dtype, table in _by_dtype(arrays):
        _start("gradients", "scale_chunks", (dtype,), table, factor, found)
