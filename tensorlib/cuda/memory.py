"""How much memory of a GPU arrays use, and what CuPy's pool keeps for the next ones.

All CuPy arrays count, from the first use of a GPU by tensorlib on.
"""

from __future__ import annotations

from typing import Any

from ..backend.cuda_backend import get_cuda, is_available
from .devices import index_of


def memory_allocated(device: Any = None) -> int:
    """Bytes in use by arrays."""
    return get_cuda().memory[index_of(device)].current


def max_memory_allocated(device: Any = None) -> int:
    """The most bytes that arrays used at once, since the last `reset_peak_memory_stats`."""
    return get_cuda().memory[index_of(device)].peak


def reset_peak_memory_stats(device: Any = None) -> None:
    """Let peaks start again from what is in use now."""
    get_cuda().memory[index_of(device)].reset_peak()


def memory_reserved(device: Any = None) -> int:
    """Bytes that the pool holds: those in use, and freed ones kept for the next arrays."""
    return get_cuda().memory.reserved(index_of(device))


def max_memory_reserved(device: Any = None) -> int:
    """The most bytes that the pool held when it was looked at or emptied."""
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
    """The figures of this module, under torch's names."""
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
