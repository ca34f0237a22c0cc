"""Datasets, samplers and the loader that makes batches of them, as in torch.utils.data.

A dataset answers ``dataset[i]`` (or is iterated), a sampler says which i come in which order, and
a `DataLoader` fetches the samples of a batch and collates them into tensors::

    dataset --indices from a sampler--> [sample, sample, ...] --collate_fn--> batch
"""

from tensorlib.utils.data.collate import default_collate, default_convert
from tensorlib.utils.data.dataloader import DataLoader, get_worker_info
from tensorlib.utils.data.dataset import (
    ChainDataset,
    ConcatDataset,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
)
from tensorlib.utils.data.distributed import DistributedBatchSampler, DistributedSampler
from tensorlib.utils.data.sampler import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

__all__ = [
    "BatchSampler",
    "ChainDataset",
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "DistributedBatchSampler",
    "DistributedSampler",
    "IterableDataset",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "StackDataset",
    "Subset",
    "SubsetRandomSampler",
    "TensorDataset",
    "WeightedRandomSampler",
    "default_collate",
    "default_convert",
    "get_worker_info",
    "random_split",
]
