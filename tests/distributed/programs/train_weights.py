"""Train a small net on a fixed global batch and save its weights: the same for any world size.

Usage: train_weights.py OUTPUT {plain,batchnorm}
"""

import sys

from sklearn.datasets import load_digits

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn
from tensorlib.nn import functional as F
from tensorlib.nn.parallel import DistributedDataParallel

GLOBAL_BATCH, STEPS = 32, 12


def build(kind):
    if kind == "plain":
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )
    norm = nn.BatchNorm2d(8)
    norm.running_mean.copy_(tl.linspace(-0.5, 0.5, 8))
    norm.running_var.copy_(tl.linspace(0.5, 2.0, 8))
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), norm, nn.GELU(), nn.Flatten(), nn.Linear(288, 10)
    ).eval()


def main():
    output, kind = sys.argv[1:]
    dist.init_process_group()
    rank, world = dist.get_rank(), dist.get_world_size()
    digits = load_digits()
    images = tl.tensor(digits.images, dtype=tl.float32).unsqueeze(1) / 16
    labels = tl.tensor(digits.target)
    tl.manual_seed(7 + rank)  # DistributedDataParallel must give every rank the weights of rank 0
    model = build(kind)
    parallel = DistributedDataParallel(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = tl.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        batch = slice(step * GLOBAL_BATCH + rank, (step + 1) * GLOBAL_BATCH, world)
        optimizer.zero_grad()
        F.cross_entropy(parallel(images[batch]), labels[batch]).backward()
        optimizer.step()
    if rank == 0:
        tl.save({"world": world, "start": start, "weights": model.state_dict()}, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
