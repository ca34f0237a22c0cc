"""A sampler that gives each rank its share of the samples."""

from __future__ import annotations

import itertools
import math
import os
import sys
import weakref
from collections.abc import Iterator, Sized
from typing import Any

from tensorlib.errors import ArgumentError, DistributedError
from tensorlib.random import Generator, randperm
from tensorlib.utils.data.sampler import Sampler


def _world() -> tuple[int, int]:
    """The number of ranks and this rank: of the process group, else of the environment."""
    dist: Any = sys.modules.get("tensorlib.distributed")
    if dist is not None and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    try:
        return int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    except KeyError:
        raise DistributedError(
            "DistributedSampler: Default process group has not been initialized, and RANK and "
            "WORLD_SIZE are not set; call tensorlib.distributed.init_process_group, start under "
            "tlrun, or pass num_replicas and rank"
        ) from None


class DistributedSampler(Sampler[int]):
    """Gives rank r of n the samples r, r + n, r + 2n, ... of one order that all ranks share.

    Every rank gets equally many: the order is filled up with its own beginning or, with
    ``drop_last``, cut. Call ``set_epoch`` before each epoch, or every epoch has the same order.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        """Takes the dataset.

        Args:
            dataset: The dataset.
            num_replicas: The number of ranks; by default of the process group, or WORLD_SIZE.
            rank: This rank; by default likewise, or RANK.
            shuffle: Whether the order is random.
            seed: Of the order; the same on all ranks.
            drop_last: Leaves out samples, rather than repeat some, to give all ranks equally many.

        Raises:
            ArgumentError: ``rank`` is not one of ``num_replicas``.
            DistributedError: They are not given and nowhere to be found.
        """
        if num_replicas is None or rank is None:
            world_size, this_rank = _world()
            num_replicas = world_size if num_replicas is None else num_replicas
            rank = this_rank if rank is None else rank
        if not 0 <= rank < num_replicas:
            raise ArgumentError(
                f"Invalid rank {rank}, rank should be in the interval [0, {num_replicas - 1}]"
            )
        self.dataset = dataset
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0
        self.drop_last = drop_last
        share = len(dataset) / num_replicas
        self.num_samples = math.floor(share) if drop_last else math.ceil(share)
        self.total_size = self.num_samples * num_replicas
        self.shuffle = shuffle
        self.seed = seed

    def __iter__(self) -> Iterator[int]:
        n = len(self.dataset)
        if self.shuffle:
            generator = Generator().manual_seed(self.seed + self.epoch)
            order = randperm(n, generator=generator).tolist()
        else:
            order = list(range(n))
        filled = itertools.islice(itertools.cycle(order), self.total_size)
        return itertools.islice(filled, self.rank, None, self.num_replicas)

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Gives the next iteration another order, the same on all ranks."""
        self.epoch = epoch


_dividing: weakref.WeakSet[DistributedBatchSampler] = weakref.WeakSet()


def batches_are_divided() -> bool:
    """Whether a DistributedBatchSampler gives this rank parts of batches."""
    return bool(_dividing)


class DistributedBatchSampler(Sampler[list[int]]):
    """Gives each rank its part of every global batch: no sample twice, none left out.

    A batch of n samples is divided into shards, shard s of V having its samples ``s·n // V`` to
    ``(s+1)·n // V``, and rank r of W gets the shards ``r·V // W`` to ``(r+1)·V // W``, in order.
    What a shard holds does not depend on the number of ranks. Parts may differ in length by one
    sample per shard: `DistributedDataParallel` takes that into account, by itself or with
    ``logical_shards``. A rest of fewer samples than shards joins the batch before it, so that
    no part is empty. Call ``set_epoch`` before each epoch, or every epoch has the same order.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        logical_shards: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        """Takes the dataset.

        Args:
            dataset: The dataset.
            batch_size: Samples of a global batch, all ranks together.
            logical_shards: Shards of a batch, at least as many as ranks; one per rank by default.
            num_replicas: The number of ranks; by default of the process group, or WORLD_SIZE.
            rank: This rank; by default likewise, or RANK.
            shuffle: Whether the order is random.
            seed: Of the order; the same on all ranks.
            drop_last: Leaves out a last batch that is smaller.

        Raises:
            ArgumentError: Fewer shards than ranks, or fewer samples than shards.
            DistributedError: The ranks are not given and nowhere to be found.
        """
        order = DistributedSampler(dataset, num_replicas, rank, shuffle, seed)
        shards = order.num_replicas if logical_shards is None else logical_shards
        if not order.num_replicas <= shards <= batch_size or len(dataset) < shards:
            raise ArgumentError(
                f"DistributedBatchSampler: {order.num_replicas} ranks, {shards} shards, "
                f"batch_size {batch_size} and {len(dataset)} samples; every rank needs a shard, "
                "and every shard a sample"
            )
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.logical_shards = shards
        self.num_replicas, self.rank = order.num_replicas, order.rank
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        if self.num_replicas > 1:
            _dividing.add(self)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        if self.drop_last or rest == 0 or (whole and rest < self.logical_shards):
            return whole
        return whole + 1

    def __iter__(self) -> Iterator[list[int]]:
        samples = DistributedSampler(self.dataset, 1, 0, self.shuffle, self.seed)
        samples.set_epoch(self.epoch)
        order = list(samples)
        batches = len(self)
        first, last = ((self.rank + k) * self.logical_shards // self.num_replicas for k in (0, 1))
        for batch in range(batches):
            start = batch * self.batch_size
            end = start + self.batch_size
            if batch == batches - 1 and not self.drop_last:
                end = len(order)
            low, high = (shard * (end - start) // self.logical_shards for shard in (first, last))
            yield order[start + low : start + high]

    def set_epoch(self, epoch: int) -> None:
        """Gives the next iteration another order, the same on all ranks."""
        self.epoch = epoch
