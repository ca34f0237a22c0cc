"""Train a character-level GPT on Python's standard library (or any text file) and let it write.

    tlrun -n 2 examples/char_gpt.py
    tlrun -n 2 examples/char_gpt.py --text book.txt --minutes 5

Prints the held-out loss in nats per character as it falls, and samples from the model at the end.
Where there are GPUs each worker takes one: products in bfloat16, a step as one CUDA graph.
"""

import argparse
import os
import sysconfig
import time
from pathlib import Path

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn
from tensorlib.nn import functional as F
from tensorlib.nn.parallel import DistributedDataParallel


class Block(nn.Module):
    """Pre-norm attention and a two-layer perceptron, each with a residual connection."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        """(N, T, width) -> (N, T, width)."""
        n, t, c = x.shape
        parts = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, c // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, T, c / heads)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(y.transpose(1, 2).reshape(n, t, c))
        return x + self.mlp(self.norm2(x))


class CharGPT(nn.Module):
    """A decoder-only transformer (Radford et al. 2019): (N, T) ids -> (N, T, vocabulary)."""

    def __init__(self, vocabulary, context, width, depth, heads):
        super().__init__()
        self.context = context
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(
                    p, std=0.02 / (2 * depth) ** 0.5 if name.endswith("project.weight") else 0.02
                )

    def forward(self, ids):
        """Scores for the character after each."""
        x = self.characters(ids) + self.positions(tl.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))

    @tl.no_grad()
    def write(self, ids, count, temperature):
        """`count` characters after `ids` (1, T), drawn one by one."""
        for _ in range(count):
            scores = self(ids[:, -self.context :])[:, -1] / temperature
            ids = tl.cat([ids, tl.multinomial(F.softmax(scores, -1), 1)], 1)
        return ids


def read_text(path, limit):
    """A file, or the standard library's sources, up to `limit` characters."""
    if path:
        return Path(path).read_text(encoding="utf-8", errors="replace")[:limit]
    text, size = [], 0
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = file.read_text(encoding="utf-8", errors="replace")
        if source.isascii() and size < limit:
            text.append(source)
            size += len(source)
    return "".join(text)[:limit]


def batch(data, context, count, generator):
    """`count` random windows and the same windows one character on."""
    last, device = len(data) - context - 1, data.device
    starts = tl.randint(0, last, (count, 1), generator=generator, device=device)
    windows = data[starts + tl.arange(context + 1, device=device)]
    return windows[:, :-1], windows[:, 1:]


@tl.no_grad()
def held_out_loss(model, data, context, batches=8):
    """Mean loss in nats per character on fixed windows, shared out among the workers."""
    generator = tl.Generator(data.device).manual_seed(1)
    total = tl.zeros(1, device=data.device)
    for _ in range(batches):
        x, y = batch(data, context, 8 * dist.get_world_size(), generator)
        mine = slice(dist.get_rank(), None, dist.get_world_size())
        total += F.cross_entropy(model(x[mine]).flatten(0, 1), y[mine].flatten())
    dist.all_reduce(total)
    return (total / (batches * dist.get_world_size())).item()


def training_step(model, optimizer, device):
    """A function of a batch that trains the model by it."""

    def step(x, y):
        optimizer.zero_grad()
        with tl.autocast(device, tl.bfloat16, enabled=device == "cuda"):
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    workers = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device == "cuda" and workers <= tl.cuda.device_count():  # those who share one go by MPI
        step = tl.cuda.graph(step)  # recorded once, then replayed
    return step


def options():
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", help="a text file; by default Python's standard library")
    parser.add_argument("--minutes", type=float, default=2.5, help="time to train")
    parser.add_argument("--steps", type=int, default=2000, help="steps at most")
    parser.add_argument("--batch", type=int, default=32, help="sequences per step over all workers")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    gpu = "cuda" if tl.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=gpu)
    parser.add_argument("--sample", type=int, default=400, help="characters to write at the end")
    return parser.parse_args()


def main():
    """Train until the time is up, then write a sample."""
    args = options()
    dist.init_process_group()
    rank, world = dist.get_rank(), dist.get_world_size()
    on_gpu = args.device == "cuda"
    if on_gpu:
        tl.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % tl.cuda.device_count())
    text = read_text(args.text, 4_000_000)
    alphabet = sorted(set(text))
    codes = {c: i for i, c in enumerate(alphabet)}
    data = tl.tensor([codes[c] for c in text]).to(args.device)
    split = len(data) * 19 // 20
    training, held_out = data[:split], data[split:]

    tl.manual_seed(0)
    model = CharGPT(len(alphabet), args.context, args.width, args.depth, args.heads)
    model.to(args.device)
    parallel = DistributedDataParallel(model)
    optimizer = tl.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1, capturable=on_gpu
    )
    generator = tl.Generator(args.device).manual_seed(100 + rank)
    step = training_step(parallel, optimizer, args.device)
    if rank == 0:
        size = sum(p.numel() for p in model.parameters())
        print(
            f"{len(data):,} characters, {len(alphabet)} different; {size:,} parameters; "
            f"{world} worker(s)",
            flush=True,
        )

    started = time.perf_counter()
    for count in range(args.steps + 1):
        if count % 50 == 0:
            loss = held_out_loss(model, held_out, args.context)
            seconds = time.perf_counter() - started
            if rank == 0:
                rate = count * args.batch * args.context / seconds
                print(
                    f"step {count:4d}  {seconds:5.1f} s  held-out loss {loss:.3f} nats/char  "
                    f"{rate:,.0f} chars/s",
                    flush=True,
                )
            done = tl.tensor([float(seconds > 60 * args.minutes)])
            dist.broadcast(done, 0)  # the workers stop at the same step
            if done.item():
                break
        warmth = min(1.0, (count + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warmth
        step(*batch(training, args.context, args.batch // world, generator))

    if rank == 0 and args.sample:
        model.eval()
        start = tl.tensor([[codes[c] for c in "def " if c in codes]], device=args.device)
        print("".join(alphabet[i] for i in model.write(start, args.sample, 0.8)[0].tolist()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
