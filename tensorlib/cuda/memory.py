"""How much memory of a GPU arrays use, and what CuPy's pool keeps for the next ones.

All CuPy arrays count, from the first use of a GPU by tensorlib on.
"""

from __future__ import annotations

import warnings
from typing import Any

from ..backend.cuda_backend import get_cuda, is_available
from ..errors import ArgumentError
from .devices import index_of


def memory_allocated(device: Any = None) -> int:
    """Bytes in use by arrays; 0 without a GPU, as all figures here."""
    return get_cuda().memory[index_of(device)].current if is_available() else 0


def max_memory_allocated(device: Any = None) -> int:
    """The most bytes that arrays used at once, since the last `reset_peak_memory_stats`."""
    return get_cuda().memory[index_of(device)].peak if is_available() else 0


def reset_peak_memory_stats(device: Any = None) -> None:
    """Let peaks start again from what is in use now."""
    get_cuda().memory[index_of(device)].reset_peak()


def memory_reserved(device: Any = None) -> int:
    """Bytes that the pool holds: those in use, and freed ones kept for the next arrays."""
    return get_cuda().memory.reserved(index_of(device)) if is_available() else 0


def max_memory_reserved(device: Any = None) -> int:
    """The most bytes that the pool held when it was looked at or emptied."""
    if not is_available():
        return 0
    memory, index = get_cuda().memory, index_of(device)
    memory.reserved(index)
    return memory[index].peak_reserved


def empty_cache() -> None:
    """Give unused memory of the pool back to the GPUs."""
    if is_available():
        get_cuda().memory.empty_cache()


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """(free, total) bytes of a GPU, as its driver says: all programs count."""
    return get_cuda().memory.info(index_of(device))


def memory_stats(device: Any = None) -> dict[str, int]:
    """The figures of this module, under torch's names; none without a GPU."""
    if not is_available():
        return {}
    memory, index = get_cuda().memory, index_of(device)
    found, reserved = memory[index], memory.reserved(index)
    result: dict[str, int] = {}
    for name in ("allocated_bytes", "active_bytes"):
        result[f"{name}.all.current"] = found.current
        result[f"{name}.all.peak"] = found.peak
        result[f"{name}.all.allocated"] = found.current + found.freed
        result[f"{name}.all.freed"] = found.freed
    for name in ("allocation", "active"):
        result[f"{name}.all.current"] = found.blocks
        result[f"{name}.all.peak"] = found.peak_blocks
        result[f"{name}.all.allocated"] = found.all_blocks
        result[f"{name}.all.freed"] = found.all_blocks - found.blocks
    result["reserved_bytes.all.current"] = reserved
    result["reserved_bytes.all.peak"] = found.peak_reserved
    result["num_ooms"] = found.failures
    return result


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    """The figures as a table, and (unless `abbreviated`) the largest tensors."""
    from ..backend.cuda.memory import largest, readable

    index = index_of(device)
    found, (free, total) = memory_stats(device), mem_get_info(device)
    rows = [
        ("allocated", "allocated_bytes.all.current", "allocated_bytes.all.peak"),
        ("reserved", "reserved_bytes.all.current", "reserved_bytes.all.peak"),
    ]
    lines = [f"cuda:{index}: {readable(free)} of {readable(total)} free"]
    lines.append(f"{'':<12}{'current':>14}{'peak':>14}")
    for name, current, peak in rows:
        lines.append(f"{name:<12}{readable(found[current]):>14}{readable(found[peak]):>14}")
    counts = found["allocation.all.current"], found["allocation.all.peak"]
    lines.append(f"{'arrays':<12}{counts[0]:>14}{counts[1]:>14}")
    if not abbreviated:
        lines += [f"{readable(size):>14}  {what}" for size, what in largest(index, 10)]
    return "\n".join(lines)


def memory_stats_as_nested_dict(device: Any = None) -> dict[str, Any]:
    """The figures of `memory_stats`, with a dict for each part of their names."""
    nested: dict[str, Any] = {}
    for name, value in memory_stats(device).items():
        *parts, last = name.split(".")
        place = nested
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def set_per_process_memory_fraction(fraction: float, device: Any = None) -> None:
    """Let arrays have at most so much of a GPU's memory: beyond it is out of memory.

    Args:
        fraction: From 0 to 1, of the whole memory.
        device: The GPU; the current one by default.

    Raises:
        ArgumentError: the fraction is out of its range.
    """
    if not 0 <= fraction <= 1:
        raise ArgumentError(
            f"set_per_process_memory_fraction: received {fraction}; pass a number from 0 to 1"
        )
    b, index = get_cuda(), index_of(device)
    total = b.memory.info(index)[1]
    with b.on(index):
        b.xp.get_default_memory_pool().set_limit(max(1, int(total * fraction)))  # 0 is no limit


def get_per_process_memory_fraction(device: Any = None) -> float:
    """How much of a GPU's memory arrays may have; 1 unless it was set."""
    b, index = get_cuda(), index_of(device)
    with b.on(index):
        limit = int(b.xp.get_default_memory_pool().get_limit())
    return limit / b.memory.info(index)[1] if limit else 1.0


_raw: dict[int, Any] = {}  # what `caching_allocator_alloc` has given out, by address


def caching_allocator_alloc(size: int, device: Any = None, stream: Any = None) -> int:
    """Memory from the pool for another library; returns its address.

    Args:
        size: In bytes.
        device: The GPU; the current one by default.
        stream: Whose memory it is, or its address: the pool gives it again to work of that stream.
    """
    from .streams import ExternalStream
    from .streams import stream as on_stream

    b = get_cuda()
    if isinstance(stream, int):
        stream = ExternalStream(stream, device)
    with b.on(index_of(device)), on_stream(stream):
        pointer = b.xp.cuda.alloc(size)
    _raw[pointer.ptr] = pointer
    return int(pointer.ptr)


def caching_allocator_delete(mem_ptr: int) -> None:
    """Give memory of `caching_allocator_alloc` back to the pool.

    Raises:
        ArgumentError: it did not come from there, or was given back.
    """
    if _raw.pop(mem_ptr, None) is None:
        raise ArgumentError(
            f"caching_allocator_delete: received {mem_ptr:#x}; pass an address that "
            "caching_allocator_alloc returned, once"
        )


# --- names of older programs ----------------------------------------------------------------------


def _old(name: str, new: str) -> None:
    warnings.warn(f"cuda.{name} is deprecated; use cuda.{new}", FutureWarning, stacklevel=3)


def memory_cached(device: Any = None) -> int:
    """Deprecated: `memory_reserved`."""
    _old("memory_cached", "memory_reserved")
    return memory_reserved(device)


def max_memory_cached(device: Any = None) -> int:
    """Deprecated: `max_memory_reserved`."""
    _old("max_memory_cached", "max_memory_reserved")
    return max_memory_reserved(device)


def reset_max_memory_allocated(device: Any = None) -> None:
    """Deprecated: `reset_peak_memory_stats`, all of them."""
    _old("reset_max_memory_allocated", "reset_peak_memory_stats")
    reset_peak_memory_stats(device)


def reset_max_memory_cached(device: Any = None) -> None:
    """Deprecated: `reset_peak_memory_stats`, all of them."""
    _old("reset_max_memory_cached", "reset_peak_memory_stats")
    reset_peak_memory_stats(device)


__all__ = [
    "caching_allocator_alloc",
    "caching_allocator_delete",
    "empty_cache",
    "get_per_process_memory_fraction",
    "max_memory_allocated",
    "max_memory_cached",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_cached",
    "memory_reserved",
    "memory_stats",
    "memory_stats_as_nested_dict",
    "memory_summary",
    "reset_max_memory_allocated",
    "reset_max_memory_cached",
    "reset_peak_memory_stats",
    "set_per_process_memory_fraction",
]
