"""SyncBatchNorm on parts of a batch is batch norm on the whole."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose

import tensorlib as tl
from tensorlib import nn
from tensorlib.distributed.communicator import Communicator
from tensorlib.errors import ArgumentError

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 2)])
def test_it_is_batch_norm_on_all_ranks_samples(shape, momentum, world: Communicator) -> None:
    ends = np.cumsum([0] + [2 + rank for rank in range(world.size)])  # uneven parts
    random = np.random.default_rng(0)
    x = random.standard_normal((ends[-1], *shape)) * 3 + 1
    g = random.standard_normal(x.shape)
    part = slice(ends[world.rank], ends[world.rank + 1])
    plain = (nn.BatchNorm1d if len(shape) < 3 else nn.BatchNorm2d)(3, momentum=momentum).double()
    with tl.no_grad():
        plain.weight.copy_(tl.tensor([0.5, 2.0, -1.0]))
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    assert type(sync) is nn.SyncBatchNorm
    whole = tl.from_numpy(x).requires_grad_()
    mine = tl.from_numpy(x[part].copy()).requires_grad_()
    for _ in range(2):
        expected, got = plain(whole), sync(mine)
    (expected * tl.from_numpy(g)).sum().backward()
    (got * tl.from_numpy(g[part].copy())).sum().backward()
    assert_allclose(got.detach().numpy(), expected.detach().numpy()[part], atol=1e-12)
    assert_allclose(mine.grad.numpy(), whole.grad.numpy()[part], atol=1e-12)
    summed = sync.weight.grad.numpy().copy()
    world.all_reduce(summed).wait()
    assert_allclose(summed, plain.weight.grad.numpy(), atol=1e-11)
    for name, buffer in plain.named_buffers():
        assert_allclose(dict(sync.named_buffers())[name].numpy(), buffer.numpy(), atol=1e-12)
    plain.eval(), sync.eval()
    assert_allclose(sync(mine).detach().numpy(), plain(mine).detach().numpy(), atol=1e-12)


def test_a_model_is_converted_in_place(world: Communicator) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(2)))
    names = list(model.state_dict())
    weight = model[1].weight
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(model[1], nn.SyncBatchNorm)
    assert isinstance(model[2][0], nn.SyncBatchNorm)
    assert model[1].weight is weight
    assert list(model.state_dict()) == names


def test_an_empty_part_and_a_single_value(world: Communicator) -> None:
    layer = nn.SyncBatchNorm(2)
    out = layer(tl.randn(0 if world.rank else 5, 2))
    assert out.shape == (0 if world.rank else 5, 2)
    with pytest.raises(ArgumentError, match="more than 1 value per channel"):
        layer(tl.randn(0 if world.rank else 1, 2))
