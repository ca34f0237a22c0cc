"""The parts that need no second rank: buckets, headers, signatures."""

import inspect

import numpy as np
import pytest

from tensorlib.distributed.buckets import assign_buckets
from tensorlib.distributed.call import RECORD_BYTES, Call, check_agreement, name_ranks
from tensorlib.errors import CollectiveMismatchError
from tensorlib.nn.parallel import DistributedDataParallel as DDP

pytestmark = pytest.mark.mpi_skip


def test_buckets_fill_up_to_their_size() -> None:
    assert assign_buckets([8, 1, 1, 1, 1], ["f"] * 5, [1, 3]) == [[0], [1, 2, 3], [4]]
    assert assign_buckets([1, 1, 1], ["f"] * 3, [10]) == [[0, 1, 2]]
    assert assign_buckets([], [], [1]) == []


def test_buckets_hold_one_kind() -> None:
    assert assign_buckets([1] * 5, list("fdfdf"), [2]) == [[0, 2], [1, 3], [4]]


def test_buckets_hold_everything_once() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        count = int(random.integers(1, 40))
        sizes = random.integers(0, 100, count).tolist()
        kinds = random.choice(["a", "b"], count).tolist()
        buckets = assign_buckets(sizes, kinds, [20, 100])
        assert sorted(index for bucket in buckets for index in bucket) == list(range(count))
        for bucket in buckets:
            assert len({kinds[i] for i in bucket}) == 1
            assert sum(sizes[i] for i in bucket[:-1]) < 100


def test_header_round_trip() -> None:
    call = Call(7, "reduce_scatter_tensor", (3, 0, 2**40), "complex128", "PRODUCT", 5)
    assert len(call.pack()) == RECORD_BYTES
    assert Call.unpack(call.pack()) == call


def test_the_majority_is_told_last() -> None:
    shapes = [(4,), (3,), (4,), (4,)]
    records = bytearray(b"".join(Call(1, "all_reduce", s, "float32").pack() for s in shapes))
    with pytest.raises(CollectiveMismatchError) as raised:
        check_agreement(records, [10, 11, 12, 13])
    assert str(raised.value) == (
        "all_reduce: rank 11 sent float32[3], ranks 10, 12, 13 sent float32[4]; "
        "every rank must pass the same shape and dtype"
    )


def test_many_ranks_are_shortened() -> None:
    assert name_ranks(range(100)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 92 more"


def test_the_signature_of_ddp_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    theirs = inspect.signature(torch.nn.parallel.DistributedDataParallel.__init__).parameters
    ours = inspect.signature(DDP.__init__).parameters
    for (name, given), (our_name, our) in zip(theirs.items(), ours.items(), strict=False):
        assert (our_name, our.default) == (name, given.default)
    extra = list(ours.values())[len(theirs) :]
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in extra)
