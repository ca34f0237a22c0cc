"""Trains a model of 120 MB, whole or divided, in a control group: train_big_model.py HOW GROUP...

With Adam the whole takes four times as much: parameters, gradients and two moments.
"""

import os
import sys
from pathlib import Path

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn, optim
from tensorlib.distributed.fsdp import fully_shard
from tensorlib.nn.parallel import DistributedDataParallel

WIDTH, DEPTH = 1024, 30  # 4 MB a block

how, *groups = sys.argv[1:]
dist.init_process_group()
Path(groups[dist.get_rank()], "cgroup.procs").write_text(str(os.getpid()))
tl.manual_seed(0)
blocks = []
for _ in range(DEPTH):
    block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    blocks.append(fully_shard(block) if how == "divided" else block)
net = nn.Sequential(*blocks)
model = fully_shard(net) if how == "divided" else DistributedDataParallel(net)
optimizer = optim.Adam(model.parameters(), lr=1e-3)
x = tl.randn(8, WIDTH)
print("ready to train", flush=True)
losses = []
for _ in range(3):
    optimizer.zero_grad()
    loss = (model(x) - 1).pow(2).mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[2] < losses[0]
print("trained", losses, flush=True)
dist.destroy_process_group()
