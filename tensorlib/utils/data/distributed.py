"""A sampler that gives each rank its share of the samples."""

from __future__ import annotations

import itertools
import math
import os
import sys
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
