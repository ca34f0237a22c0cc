"""Trains on logical shards, resumes if there is a checkpoint; rank 0 prints a digest.

python train_shards.py BACKEND CHECKPOINT STEPS cnn|gpt
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn, optim
from tensorlib.nn.parallel import DistributedDataParallel
from tensorlib.utils.data import DataLoader, Dataset, DistributedBatchSampler

SHARDS = 8
backend, checkpoint, steps, which = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
dist.init_process_group(backend)
random = np.random.default_rng(0)


class Images(Dataset):
    """Pictures that are flipped at random: by the sample and the epoch, on whichever rank."""

    images, labels = random.standard_normal((100, 2, 8, 8), np.float32), random.integers(0, 5, 100)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        flips = np.random.default_rng((index, sampler.epoch)).random() < 0.5
        image = self.images[index][..., ::-1] if flips else self.images[index]
        return tl.from_numpy(image.copy()), int(self.labels[index])


class Texts(Dataset):
    """Tokens and the ones that follow."""

    tokens = random.integers(0, 11, (100, 13))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return tuple(tl.from_numpy(self.tokens[index][part]) for part in (slice(12), slice(1, 13)))


class Gpt(nn.Module):
    """Causal attention with dropout everywhere."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(11, 32), nn.Embedding(12, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 11)

    def forward(self, tokens):
        hidden = self.words(tokens) + self.places(tl.arange(12))
        mask = nn.Transformer.generate_square_subsequent_mask(12)
        return self.head(self.blocks(hidden, mask=mask, is_causal=True)).transpose(1, 2)


tl.manual_seed(dist.get_rank())  # rank 0's counts
data = Images() if which == "cnn" else Texts()
model = Gpt() if which == "gpt" else nn.Sequential(
    nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
    nn.Linear(384, 700), nn.ReLU(), nn.Linear(700, 700), nn.ReLU(), nn.Linear(700, 16),
    nn.BatchNorm1d(16, momentum=None), nn.GELU(), nn.Linear(16, 5),
)  # fmt: skip
ddp = DistributedDataParallel(model, logical_shards=SHARDS, bucket_cap_mb=0.005)
first = [p for p in model.parameters() if p.ndim > 1]
optimizers = [
    optim.AdamW(first, lr=1e-2),
    optim.SGD([p for p in model.parameters() if p.ndim == 1], lr=1e-2, momentum=0.9),
]
done = 0
if checkpoint.exists():
    saved = tl.load(checkpoint)
    model.load_state_dict(saved["model"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    tl.set_rng_state(saved["random"])
    done = saved["done"]

# 100 = 32 + 32 + 36: the rest of 4 samples joins the last batch, whose shards are uneven.
sampler = DistributedBatchSampler(data, 32, logical_shards=SHARDS)
loader = DataLoader(data, batch_sampler=sampler)
step = 0
while step < done + steps:
    sampler.set_epoch(step // len(loader))
    for x, y in loader:
        step += 1
        if not done < step <= done + steps:
            continue
        for optimizer in optimizers:
            optimizer.zero_grad()
        for xs, ys in ddp.shards(x, y):
            noisy = xs + 0.1 * tl.randn(xs.shape) if which == "cnn" else xs
            nn.functional.cross_entropy(ddp(noisy), ys).backward()
        for optimizer in optimizers:
            optimizer.step()

digest = hashlib.sha256()
for name, value in sorted(model.state_dict().items()):
    digest.update(name.encode() + np.ascontiguousarray(value.numpy()).tobytes())
everyones = [None] * dist.get_world_size()
dist.all_gather_object(everyones, digest.hexdigest())
assert len(set(everyones)) == 1, "the ranks differ"
if dist.get_rank() == 0:
    tl.save(
        {
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "random": tl.get_rng_state(),
            "done": done + steps,
        },
        checkpoint,
    )
    loss = nn.functional.cross_entropy(model.eval()(x), y)
    print("digest", digest.hexdigest(), "loss", float(loss))
