"""Recognize handwritten digits, on one worker or many.

    tlrun -n 2 examples/digits.py

A small convolutional net learns scikit-learn's 1,797 scans of 8x8 pixels. Each worker trains on its
share of every global batch; gradients are averaged while backward still runs. Leaves the best
checkpoint and a picture of the learning curve and the mistakes in --out. `python
examples/digits.py` runs on one worker.
"""

import argparse
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from tqdm import tqdm

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn
from tensorlib.nn import functional as F
from tensorlib.nn.parallel import DistributedDataParallel
from tensorlib.utils.data import DataLoader, DistributedSampler, TensorDataset


class DigitNet(nn.Module):
    """Two convolutions and two linear layers: (N, 1, 8, 8) -> (N, 10)."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classify = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.25), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, x):
        """Scores for the ten digits."""
        return self.classify(self.features(x))


def load_data(seed):
    """Images scaled to [0, 1], shuffled; a fifth is held out: the same split on every worker."""
    digits = load_digits()
    order = tl.randperm(len(digits.target), generator=tl.Generator().manual_seed(seed))
    images = tl.tensor(digits.images, dtype=tl.float32)[order].unsqueeze(1) / 16
    labels = tl.tensor(digits.target)[order]
    held_out = len(labels) // 5
    return TensorDataset(images[held_out:], labels[held_out:]), (
        images[:held_out],
        labels[:held_out],
    )


@tl.no_grad()
def evaluate(model, images, labels):
    """Mean loss and accuracy over all workers; each looks at its own part, no image twice."""
    model.eval()
    rank, world = dist.get_rank(), dist.get_world_size()
    scores = model(images[rank::world])
    loss = F.cross_entropy(scores, labels[rank::world], reduction="sum")
    right = (scores.argmax(1) == labels[rank::world]).sum()
    totals = tl.stack([loss, right.float()])
    dist.all_reduce(totals)
    return (totals / len(labels)).tolist()


def train(model, loader, optimizer, epoch, quiet):
    """One epoch; returns the mean loss over all workers' samples."""
    model.train()
    loader.sampler.set_epoch(epoch)
    totals = tl.zeros(2)
    for images, labels in tqdm(loader, desc=f"epoch {epoch:2d}", disable=quiet, leave=False):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        totals += tl.tensor([loss.item() * len(labels), len(labels)])
    dist.all_reduce(totals)
    return (totals[0] / totals[1]).item()


def draw(history, model, images, labels, path):
    """The learning curve, and the held-out images that the model got wrong."""
    with tl.no_grad():
        model.eval()
        guesses = model(images).argmax(1)
    wrong = (guesses != labels).nonzero().flatten().tolist()[:12]
    figure = plt.figure(figsize=(10, 4))
    grid = figure.add_gridspec(3, 10)
    curve = figure.add_subplot(grid[:, :5])
    curve.plot(history["train loss"], label="training loss")
    curve.plot(history["test loss"], label="held-out loss")
    curve.plot([1 - a for a in history["accuracy"]], label="held-out error")
    curve.set(xlabel="epoch", yscale="log", title=f"accuracy {max(history['accuracy']):.2%}")
    curve.legend()
    for slot, i in enumerate(wrong):
        axes = figure.add_subplot(grid[slot // 4, 6 + slot % 4])
        axes.imshow(images[i, 0].numpy(), cmap="gray_r")
        axes.set_title(f"{labels[i].item()}, not {guesses[i].item()}", fontsize=8)
        axes.axis("off")
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main():
    """Train, keep the best weights, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch", type=int, default=64, help="samples per step over all workers")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    args = parser.parse_args()

    dist.init_process_group()
    rank, world = dist.get_rank(), dist.get_world_size()
    tl.manual_seed(args.seed)
    train_set, (images, labels) = load_data(args.seed)
    sampler = DistributedSampler(train_set, world, rank, seed=args.seed)
    loader = DataLoader(train_set, batch_size=args.batch // world, sampler=sampler)
    model = DigitNet()
    parallel = DistributedDataParallel(model)
    optimizer = tl.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    schedule = tl.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    tl.manual_seed(args.seed + rank)  # every worker drops other activations

    args.out.mkdir(parents=True, exist_ok=True)
    history = {"train loss": [], "test loss": [], "accuracy": []}
    started = time.perf_counter()
    for epoch in range(args.epochs):
        begin = time.perf_counter()
        train_loss = train(parallel, loader, optimizer, epoch, quiet=rank > 0)
        rate = len(train_set) / (time.perf_counter() - begin)
        schedule.step()
        test_loss, accuracy = evaluate(model, images, labels)
        for key, value in zip(history, (train_loss, test_loss, accuracy), strict=True):
            history[key].append(value)
        if rank == 0:
            if accuracy >= max(history["accuracy"]):
                tl.save(
                    {"model": model.state_dict(), "epoch": epoch, "accuracy": accuracy},
                    args.out / "best.pt",
                )
            print(f"epoch {epoch:2d}  train loss {train_loss:.4f}  test loss {test_loss:.4f}  "
                  f"accuracy {accuracy:.2%}  {rate:,.0f} images/s", flush=True)  # fmt: skip
    if rank == 0:
        best = tl.load(args.out / "best.pt")
        model.load_state_dict(best["model"])
        draw(history, model, images, labels, args.out / "digits.png")
        print(
            f"best accuracy {best['accuracy']:.2%} on {len(labels)} held-out images after "
            f"{time.perf_counter() - started:.1f} s on {world} worker(s); "
            f"see {args.out / 'digits.png'}"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
