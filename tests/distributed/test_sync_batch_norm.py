"""SyncBatchNorm on parts of a batch is batch norm on the whole."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose

import tensorlib as tl
import tensorlib.distributed as dist
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


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
@pytest.mark.parametrize("trains", [True, False])
def test_options(affine: bool, tracks: bool, trains: bool, world: Communicator) -> None:
    options = {"affine": affine, "track_running_stats": tracks}
    plain = nn.BatchNorm1d(3, **options).double().train(trains)
    sync = nn.SyncBatchNorm(3, **options).double().train(trains)
    ends = np.cumsum([0] + [1 + rank for rank in range(world.size)])
    x = np.random.default_rng(1).standard_normal((ends[-1], 3)) * 2 - 1
    part = slice(ends[world.rank], ends[world.rank + 1])
    whole = tl.from_numpy(x).requires_grad_()
    mine = tl.from_numpy(x[part].copy()).requires_grad_()
    expected, got = plain(whole), sync(mine)
    (expected**3).sum().backward()
    (got**3).sum().backward()
    assert_allclose(got.detach().numpy(), expected.detach().numpy()[part], atol=1e-12)
    assert_allclose(mine.grad.numpy(), whole.grad.numpy()[part], atol=1e-11)
    assert (sync.running_mean is None) == (not tracks)
    for name, buffer in plain.named_buffers():
        assert_allclose(dict(sync.named_buffers())[name].numpy(), buffer.numpy(), atol=1e-12)


def test_a_group_has_statistics_of_its_own(world: Communicator) -> None:
    """Every rank with the one opposite: 0 with the last, and so on; a middle one is alone."""
    groups = [dist.new_group(sorted({r, world.size - 1 - r})) for r in range((world.size + 1) // 2)]
    mine = min(world.rank, world.size - 1 - world.rank)
    model = nn.Sequential(nn.BatchNorm1d(2, momentum=None).double())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model, groups[mine])
    x = np.random.default_rng(2).standard_normal((world.size, 4, 2))
    x = x + np.arange(world.size)[:, None, None]
    model(tl.from_numpy(x[world.rank]))
    both = np.concatenate([x[r] for r in sorted({world.rank, world.size - 1 - world.rank})])
    assert_allclose(model[0].running_mean.numpy(), both.mean(0), atol=1e-12)
    assert_allclose(model[0].running_var.numpy(), both.var(0, ddof=1), atol=1e-12)


def test_half_precision_is_summed_in_float32(world: Communicator) -> None:
    x = np.random.default_rng(3).standard_normal((world.size, 8, 2)).astype(np.float32) + 100
    layer = nn.SyncBatchNorm(2)
    out = layer(tl.from_numpy(x[world.rank]).to(tl.float16))
    assert out.dtype == tl.float16
    rounded = x.astype(np.float16).astype(np.float64).reshape(-1, 2)
    expected = (rounded - rounded.mean(0)) / np.sqrt(rounded.var(0) + 1e-5)
    found = out.detach().float().numpy()
    assert_allclose(found, expected.reshape(x.shape)[world.rank], atol=2e-3)
