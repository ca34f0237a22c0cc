"""The replica guard: notices when the ranks' copies of a module are no longer the same.

A cosmic ray, a faulty core, a rank that took another branch, a parameter changed by hand: replicas
that have drifted apart go on training without an error. So every few steps each rank takes a
checksum of every parameter and buffer; one number per rank is compared, and only if these differ
the checksums of all tensors.
"""

import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tensorlib.backend import get_backend
from tensorlib.distributed.call import name_ranks
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.reduction import Array, address, as_bytes, contiguous, namespace
from tensorlib.errors import ReplicaError
from tensorlib.tensor import Tensor

_PIECE = 1 << 24  # words that are looked at at once

Named = Sequence[tuple[str, Tensor]]


def check_replicas(named: Named, communicator: Communicator, restore: bool, when: str = "") -> None:
    """Compare the ranks' tensors bit by bit, through checksums; every rank calls it.

    Args:
        named: the tensors and their names, the same on every rank.
        communicator: the group.
        restore: bring the tensors of the majority to the ranks that differ, if there is one.
        when: for the message: "before step 201".

    Raises:
        ReplicaError: on every rank; it names the ranks that differ and the first tensor that does.
    """
    sums = _checksums([tensor._array for _, tensor in named])
    digest = np.array([zlib.crc32(sums.tobytes()), len(named)], np.uint32)
    digests = np.empty((communicator.size, 2), np.uint32)
    communicator.all_gather(digests, digest, "replica_guard").wait()
    found = [row.tobytes() for row in digests]
    if len(set(found)) == 1:
        return
    everyones = np.empty((communicator.size, len(sums)), np.uint32)
    communicator.all_gather(everyones, sums, "replica_guard").wait()
    camps = [row.tobytes() for row in everyones]
    camp, votes = Counter(camps).most_common(1)[0]
    has_majority = 2 * votes > communicator.size
    good = camps.index(camp)
    deviating = [rank for rank in range(communicator.size) if camps[rank] != camp]
    if not (restore and has_majority):
        told = _report(named, everyones, communicator, good, deviating, has_majority)
        raise ReplicaError(f"replica guard{', ' if when else ''}{when}: {told}")
    for i, (_, tensor) in enumerate(named):
        if (everyones[:, i] != everyones[good, i]).any():
            array = tensor._array
            value = contiguous(array)
            communicator.broadcast(value, good, "replica_guard").wait()
            if communicator.rank in deviating:
                array[...] = value
                tensor._bump()


def _checksums(arrays: list[Array]) -> np.ndarray:
    """A checksum of each array; those of a GPU come to the host together."""
    found = [_on_device(a) if not isinstance(a, np.ndarray) else _on_host(a) for a in arrays]
    sums = np.array([one if isinstance(one, int) else 0 for one in found], np.uint32)
    places = [i for i, one in enumerate(found) if not isinstance(one, int)]
    if places:
        stacked = namespace(found[places[0]]).stack([found[i] for i in places])
        sums[places] = get_backend(stacked).to_host(stacked)
    return sums


def _on_host(array: Array) -> int:
    return zlib.crc32(as_bytes(contiguous(array)).data)


def _on_device(array: Array) -> Array:
    """Σ word · its odd number, modulo 2⁶⁴: one number, still on the GPU."""
    xp, flat = namespace(array), as_bytes(contiguous(array))
    if address(flat) % 4:  # a GPU reads numbers of 4 bytes at multiples of 4
        flat = flat.copy()
    words = flat.view(np.uint32) if flat.size % 4 == 0 else flat
    total = xp.zeros((), np.uint64)
    for start in range(0, words.size, _PIECE):
        part = words[start : start + _PIECE].astype(np.uint64)
        part *= 2 * xp.arange(start, start + part.size, dtype=np.uint64) + 1
        total += part.sum()
    return ((total ^ (total >> 32)) & 0xFFFFFFFF).astype(np.uint32)


def _report(
    named: Named,
    everyones: np.ndarray,
    communicator: Communicator,
    good: int,
    deviating: list[int],
    has_majority: bool,
) -> str:
    first = int(np.flatnonzero((everyones != everyones[good]).any(axis=0))[0])
    name, tensor = named[first]
    ranks = [communicator.ranks[rank] for rank in deviating]
    values = "; ".join(
        f"rank {communicator.ranks[rank]} {everyones[rank, first]:08x}"
        for rank in sorted({good, *deviating})[:8]
    )
    many = int((everyones != everyones[good]).any(axis=0).sum())
    who = f"{name_ranks(ranks)} {'differs' if len(ranks) == 1 else 'differ'} from the majority"
    if not has_majority:
        who = "the ranks differ, and none is in the majority"
    return (
        f"{who}. First in {name} {str(tensor.dtype).removeprefix('tensorlib.')}"
        f"{list(tensor.shape)}, of {many} of {len(named)} tensors (checksums: {values}). Start "
        "again from a checkpoint, look for what only some ranks do to the module, or pass "
        'on_divergence="restore" to take over the majority\'s'
    )
