"""The functions that NumPy calls for the memory of arrays (NEP 49), as machine code.

Small blocks are left to NumPy. Larger ones come from an *arena*, a range of addresses that is
reserved once and whose pages exist once they are written. What is freed there stays, and is taken
again by the next block that fits: a training step, which frees and takes the same sizes again and
again, then runs without a page fault. The arena is a row of extents::

    base  header|payload   header|payload   header|payload   top ....... touched ....... limit
              in use            free            in use         | once written | never written

A free extent merges with free neighbours at once, and stands in the list of its size class: 32
classes for each power of two, so that a size is rounded up by at most 3 %. A request takes the
first extent of its own class, or of the next larger one that has any, and leaves what is too much.
Both take a few dozen instructions, however many blocks there are.

A payload starts at a page, and the page of the header that follows it holds none of it, so that a
payload's pages can be exchanged for others (`distributed/arena.py` puts pages of a file there,
which other processes can map; freed ones then go back to the system by a hole in the file).

What was needed in the last two periods is kept, a period being eight times that much memory handed
out; at its end, pages beyond that go back to the system.

The functions' first argument is the arena's *record*, a block of 64-bit words (below).

Source: Masmano, Ripoll, Crespo, Real (2004), "TLSF: A new dynamic memory allocator for real-time
systems".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import atomics
from .compiler import inline
from .raw import load, store

SMALLEST = 1 << 15  # bytes; smaller blocks are malloc's
WORDS = 2048

# The record: words of 8 bytes.
LOCK, BASE, LIMIT, TOP, TOUCHED, LAST = 0, 1, 2, 3, 4, 5
# Bytes: of all arrays, the most so far, in extents in use, given back to the system.
LIVE, PEAK, HELD, RELEASED = 8, 9, 10, 11
# Bytes: handed out in this period, the most held in this and in the last one.
FLOW, PERIOD_PEAK, LAST_PEAK = 12, 13, 14
# NumPy's own functions and their first argument; functions of the C library; for madvise.
CONTEXT, MALLOC, CALLOC, REALLOC, FREE = 16, 17, 18, 19, 20
MADVISE, MEMSET, MEMCPY, USABLE, ADVICE = 21, 22, 23, 24, 25
LARGE = 26  # bytes of arrays in extents
# A file that some of the pages may belong to, the address of its first byte, `fallocate`.
FILE, ORIGIN, FALLOCATE = 27, 28, 29
NO_FILE, FOREIGN_FILE = -1, -2  # foreign: the parent's; pages that may be in it are never released
LEVELS, LISTS, HEADS = 31, 32, 96  # bitmaps of levels and of lists in them; the lists
_SUBCLASSES = 5  # bits

# An extent's header: words of 8 bytes.
_SIZE, _FREE, _PREVIOUS, _NEXT_FREE, _LAST_FREE, _GIVEN, _WANTED = 0, 1, 2, 3, 4, 5, 6
HEADER = 64  # bytes
PAGE = 4096
_PUNCH_HOLE = 3  # fallocate's mode: make pages read as zeros, keep the size
_SLACK = 1 << 26  # bytes that may be kept in any case
_PERIOD = 1 << 28  # bytes that a period takes at least


def _bits(name: str) -> Any:
    """A helper: LLVM's count of leading (ctlz) or trailing (cttz) zeros."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic  # type: ignore[untyped-decorator]
    def count(typing: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            word, bit = ir.IntType(64), ir.IntType(1)
            function = builder.module.declare_intrinsic(
                f"llvm.{name}", [word], ir.FunctionType(word, [word, bit])
            )
            return builder.call(function, [args[0], ir.Constant(bit, 0)])

        return types.int64(types.int64), generate

    return count


def _lists() -> tuple[Any, Any, Any, Any]:
    """Helpers: a size's class; a size rounded up to one; enter and leave the list of a class."""
    read, write, leading = load("i8"), store("i8"), _bits("ctlz")

    def class_of(size):  # type: ignore[no-untyped-def]
        level = 63 - leading(size)
        return (level << _SUBCLASSES) + ((size >> (level - _SUBCLASSES)) & 31)

    class_of = inline(class_of)

    def rounded(size):  # type: ignore[no-untyped-def]
        size = max(size + PAGE, SMALLEST)
        step = max(1 << (63 - leading(size) - _SUBCLASSES), PAGE)
        return (size + step - 1) & -step

    def enter(record, extent):  # type: ignore[no-untyped-def]
        place = class_of(read(extent + 8 * _SIZE))
        level, bit = place >> _SUBCLASSES, place & 31
        head = record + 8 * (HEADS + place)
        first = read(head)
        write(extent + 8 * _FREE, 1)
        write(extent + 8 * _NEXT_FREE, first)
        write(extent + 8 * _LAST_FREE, 0)
        if first:
            write(first + 8 * _LAST_FREE, extent)
        write(head, extent)
        bitmap = record + 8 * (LISTS + level)
        write(bitmap, read(bitmap) | (1 << bit))
        write(record + 8 * LEVELS, read(record + 8 * LEVELS) | (1 << level))

    def leave(record, extent):  # type: ignore[no-untyped-def]
        following, last = read(extent + 8 * _NEXT_FREE), read(extent + 8 * _LAST_FREE)
        write(extent + 8 * _FREE, 0)
        if following:
            write(following + 8 * _LAST_FREE, last)
        if last:
            write(last + 8 * _NEXT_FREE, following)
            return
        place = class_of(read(extent + 8 * _SIZE))
        write(record + 8 * (HEADS + place), following)
        if following == 0:
            level, bit = place >> _SUBCLASSES, place & 31
            bitmap = record + 8 * (LISTS + level)
            left = read(bitmap) & ~(1 << bit)
            write(bitmap, left)
            if left == 0:
                levels = record + 8 * LEVELS
                write(levels, read(levels) & ~(1 << level))

    return class_of, inline(rounded), inline(enter), inline(leave)


def _trim() -> Any:
    """A helper: give the pages of everything that is free back to the system."""
    read, write, call, call_four = load("i8"), store("i8"), atomics.call(), atomics.call(4)

    def release(record, start, pages):  # type: ignore[no-untyped-def]
        advice, file = read(record + 8 * ADVICE), read(record + 8 * FILE)
        if call(read(record + 8 * MADVISE), start, pages, advice) & 0xFFFFFFFF:
            return False
        if file == NO_FILE:
            return True
        offset = start - read(record + 8 * ORIGIN)
        fallocate = read(record + 8 * FALLOCATE)
        return call_four(fallocate, file, _PUNCH_HOLE, offset, pages) & 0xFFFFFFFF == 0

    release = inline(release)

    def trim(record):  # type: ignore[no-untyped-def]
        if read(record + 8 * FILE) == FOREIGN_FILE:
            return
        top, extent = read(record + 8 * TOP), read(record + 8 * BASE)
        while extent < top:
            end = extent + read(extent + 8 * _SIZE)
            if read(extent + 8 * _FREE):
                start = (extent + HEADER + PAGE - 1) & -PAGE
                pages = max((end & -PAGE) - start, 0)
                given = read(extent + 8 * _GIVEN)
                if pages > given and release(record, start, pages):
                    write(extent + 8 * _GIVEN, pages)
                    write(record + 8 * RELEASED, read(record + 8 * RELEASED) + pages - given)
            extent = end
        start = (top + PAGE - 1) & -PAGE
        pages = read(record + 8 * TOUCHED) - start
        if pages > 0 and release(record, start, pages):
            write(record + 8 * TOUCHED, start)

    return inline(trim)


def _take() -> tuple[Any, Any]:  # noqa: C901 (two helpers in one)
    """Helpers: count a request; the payload of an extent for it, 0 if none fits; under the lock."""
    read, write, trailing = load("i8"), store("i8"), _bits("cttz")
    class_of, rounded, enter, leave = _lists()
    trim = _trim()

    def period(record, size):  # type: ignore[no-untyped-def]
        peak = max(read(record + 8 * PERIOD_PEAK), read(record + 8 * HELD) + size)
        kept = max(peak, read(record + 8 * LAST_PEAK))
        flow = read(record + 8 * FLOW) + size
        if flow > 8 * kept + _PERIOD:
            present = read(record + 8 * TOUCHED) - read(record + 8 * BASE)
            if present - read(record + 8 * RELEASED) > kept + (kept >> 2) + _SLACK:
                trim(record)
            write(record + 8 * LAST_PEAK, peak)
            peak, flow = read(record + 8 * HELD) + size, 0
        write(record + 8 * PERIOD_PEAK, peak)
        write(record + 8 * FLOW, flow)

    def find(record, place):  # type: ignore[no-untyped-def]
        level, bit = place >> _SUBCLASSES, place & 31
        fitting = read(record + 8 * (LISTS + level)) & (-1 << bit)
        if fitting == 0:
            levels = read(record + 8 * LEVELS) & (-1 << (level + 1))
            if levels == 0:
                return 0
            level = trailing(levels)
            fitting = read(record + 8 * (LISTS + level))
        return read(record + 8 * (HEADS + (level << _SUBCLASSES) + trailing(fitting)))

    period, find = inline(period), inline(find)

    def take(record, wanted):  # type: ignore[no-untyped-def]
        need = rounded(wanted)
        extent = find(record, class_of(need))
        if extent:
            leave(record, extent)
            given = read(extent + 8 * _GIVEN)
            write(record + 8 * RELEASED, read(record + 8 * RELEASED) - given)
            size = read(extent + 8 * _SIZE)
            if size - need >= SMALLEST:
                rest = extent + need
                write(rest + 8 * _SIZE, size - need)
                write(rest + 8 * _PREVIOUS, extent)
                write(rest + 8 * _GIVEN, 0)
                write(extent + size + 8 * _PREVIOUS, rest)
                enter(record, rest)
            else:
                need = size
        else:
            extent = read(record + 8 * TOP)
            top = extent + need
            if top + PAGE > read(record + 8 * LIMIT):
                return 0
            write(extent + 8 * _PREVIOUS, read(record + 8 * LAST))
            write(record + 8 * LAST, extent)
            write(record + 8 * TOP, top)
            write(record + 8 * TOUCHED, max(top, read(record + 8 * TOUCHED)))
        write(extent + 8 * _SIZE, need)
        write(extent + 8 * _FREE, 0)
        write(extent + 8 * _GIVEN, 0)
        write(extent + 8 * _WANTED, wanted)
        write(record + 8 * HELD, read(record + 8 * HELD) + need)
        return extent + HEADER

    return period, inline(take)


def _give() -> Any:
    """A helper: an extent comes back; the lock is held."""
    read, write = load("i8"), store("i8")
    _, _, enter, leave = _lists()

    def give(record, extent):  # type: ignore[no-untyped-def]
        size, top = read(extent + 8 * _SIZE), read(record + 8 * TOP)
        given = 0
        write(record + 8 * HELD, read(record + 8 * HELD) - size)
        following = extent + size
        if following != top and read(following + 8 * _FREE):
            leave(record, following)
            size += read(following + 8 * _SIZE)
            given += read(following + 8 * _GIVEN)
        before = read(extent + 8 * _PREVIOUS)
        if before and read(before + 8 * _FREE):
            leave(record, before)
            size += read(before + 8 * _SIZE)
            given += read(before + 8 * _GIVEN)
            extent = before
        write(extent + 8 * _SIZE, size)
        write(extent + 8 * _GIVEN, given)
        if extent + size == top:
            write(record + 8 * RELEASED, read(record + 8 * RELEASED) - given)
            write(record + 8 * TOP, extent)
            write(record + 8 * LAST, read(extent + 8 * _PREVIOUS))
        else:
            write(extent + size + 8 * _PREVIOUS, extent)
            enter(record, extent)

    return inline(give)


def _large() -> tuple[Any, Any, Any]:
    """Helpers: count bytes; take a block of our own, or 0; give such a block back."""
    read, write = load("i8"), store("i8")
    add, exchange, call = atomics.add(), atomics.exchange(), atomics.call()
    period, take = _take()
    give = _give()

    def count(record, bytes):  # type: ignore[no-untyped-def]
        live = add(record + 8 * LIVE, bytes) + bytes
        if live > read(record + 8 * PEAK):
            write(record + 8 * PEAK, live)

    count = inline(count)

    def large(record, size, clear):  # type: ignore[no-untyped-def]
        while not exchange(record, 0, 1):
            pass
        period(record, size)
        touched = read(record + 8 * TOUCHED)  # all above is zero
        address = take(record, size)
        add(record, -1)
        if address:
            count(record, size)
            add(record + 8 * LARGE, size)
            dirty = min(size, touched - address)
            if clear and dirty > 0:
                call(read(record + 8 * MEMSET), address, 0, dirty)
        return address

    def drop(record, address):  # type: ignore[no-untyped-def]
        extent = address - HEADER
        size = read(extent + 8 * _WANTED)
        add(record + 8 * LIVE, -size)
        add(record + 8 * LARGE, -size)
        while not exchange(record, 0, 1):
            pass
        give(record, extent)
        add(record, -1)

    return count, inline(large), inline(drop)


def functions() -> dict[str, tuple[int, Callable[..., int]]]:  # noqa: C901 (short ones)
    """The number of arguments and the source of each of malloc, calloc, realloc, free and trim.

    Functions of C are called with three arguments; they do not look at those beyond their own.
    """
    read = load("i8")
    add, exchange, call = atomics.add(), atomics.exchange(), atomics.call()
    trim = _trim()
    count, large, drop = _large()

    def owns(record, address):  # type: ignore[no-untyped-def]
        return read(record + 8 * BASE) <= address < read(record + 8 * LIMIT)

    owns = inline(owns)

    def malloc(record: int, size: int) -> int:
        if size >= SMALLEST:
            address = large(record, size, False)
            if address:
                return address
        address = call(read(record + 8 * MALLOC), read(record + 8 * CONTEXT), size, 0)
        if address:
            count(record, size)
        return address

    def calloc(record: int, items: int, itemsize: int) -> int:
        size = items * itemsize
        if size >= SMALLEST:
            address = large(record, size, True)
            if address:
                return address
        address = call(read(record + 8 * CALLOC), read(record + 8 * CONTEXT), items, itemsize)
        if address:
            count(record, size)
        return address

    def free(record: int, address: int, size: int) -> int:
        if owns(record, address):
            drop(record, address)
        else:
            if address:
                add(record + 8 * LIVE, -size)
            call(read(record + 8 * FREE), read(record + 8 * CONTEXT), address, size)
        return 0

    def realloc(record: int, address: int, size: int) -> int:
        if not owns(record, address):
            usable = read(record + 8 * USABLE)  # malloc_usable_size, if it applies
            if usable and address:
                count(record, size - call(usable, address, 0, 0))
            return call(read(record + 8 * REALLOC), read(record + 8 * CONTEXT), address, size)
        moved = 0
        if size >= SMALLEST:
            moved = large(record, size, False)
        if moved == 0:
            moved = call(read(record + 8 * MALLOC), read(record + 8 * CONTEXT), size, 0)
            if moved:
                count(record, size)
        if moved:
            old = read(address - HEADER + 8 * _WANTED)
            call(read(record + 8 * MEMCPY), moved, address, min(old, size))
            drop(record, address)
        return moved

    def give_back(record: int, unused: int) -> int:
        while not exchange(record, 0, 1):
            pass
        trim(record)
        add(record, -1)
        return 0

    return {
        "malloc": (2, malloc),
        "calloc": (3, calloc),
        "realloc": (3, realloc),
        "free": (3, free),
        "give_back": (2, give_back),
    }


def build() -> bytes:
    """Compile `functions`: the length of each one's code, then the codes in the same order."""
    from . import machine

    codes = [
        machine.build_plain(function, name, arguments)
        for name, (arguments, function) in functions().items()
    ]
    return b"".join([len(code).to_bytes(4, "little") for code in codes] + codes)
