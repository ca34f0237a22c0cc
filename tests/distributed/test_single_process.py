"""Training on ranks is training in one process, for whole models, optimizers and ways to divide.

Short enough to run on eight ranks, too.
"""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose

import tensorlib as tl
from tensorlib import nn, optim
from tensorlib.distributed.communicator import Communicator
from tensorlib.nn.parallel import DistributedDataParallel as DDP

pytestmark = pytest.mark.mpi(min_size=2)

WORDS, LENGTH = 11, 6


class Gpt(nn.Module):
    """Two blocks of causal attention; the head shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 8), nn.Embedding(LENGTH, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: tl.Tensor) -> tl.Tensor:
        hidden = self.words(tokens) + self.places(tl.arange(LENGTH))
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=tl.float64)
        return self.head(self.blocks(hidden, mask=mask, is_causal=True))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


MODELS = {"mlp": (mlp, (6,)), "conv_net": (conv_net, (1, 6, 6)), "gpt": (Gpt, None)}
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: optim.Adam(p, lr=1e-2),
}


def batch(model: str, count: int, step: int) -> tuple[tl.Tensor, tl.Tensor]:
    random = np.random.default_rng(step)
    shape = MODELS[model][1]
    if shape is None:
        tokens = tl.from_numpy(random.integers(0, WORDS, (count, LENGTH + 1)))
        return tokens[:, :-1], tokens[:, 1:]
    return tl.from_numpy(random.standard_normal((count, *shape))), tl.from_numpy(
        random.integers(0, 3, count)
    )


def loss_of(model: nn.Module, x: tl.Tensor, y: tl.Tensor) -> tl.Tensor:
    out = model(x)
    return nn.functional.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("micro", [1, 2])
def test_training(model, optimizer, uneven, micro, world: Communicator) -> None:
    tl.manual_seed(world.rank)
    network = MODELS[model][0]().double()
    if model == "conv_net":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    ddp = DDP(network, weight="samples" if uneven else None, bucket_cap_mb=3e-4)
    tl.manual_seed(0)  # rank 0's
    alone = MODELS[model][0]().double()
    optimizers = [OPTIMIZERS[optimizer](m.parameters()) for m in (ddp, alone)]
    sizes = [2 + rank % 3 if uneven else 3 for rank in range(world.size)]
    start = sum(sizes[: world.rank])
    mine = slice(start, start + sizes[world.rank])
    for step in range(3):
        for one in optimizers:
            one.zero_grad()
        for part in range(micro):
            x, y = batch(model, sum(sizes), 10 * step + part)
            if part < micro - 1:
                with ddp.no_sync():
                    loss_of(ddp, x[mine], y[mine]).backward()
            else:
                loss_of(ddp, x[mine], y[mine]).backward()
            loss_of(alone, x, y).backward()
        for one in optimizers:
            one.step()
    expected = copy.deepcopy(alone).state_dict()
    for name, value in ddp.module.state_dict().items():
        assert_allclose(value.numpy(), expected[name].numpy(), atol=1e-9, err_msg=name)
