"""Memory formats: the strides of tensors, results, gradients and state, beside torch's."""

import copy
import io
import itertools
import pickle

import numpy as np
import pytest

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib import nn
from tensorlib.backend import layout
from tensorlib.errors import ArgumentError, ArgumentTypeError, ShapeError

SHAPES = [
    (2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (1, 3, 4, 5), (1, 1, 4, 4), (2, 3, 1, 5),
    (2, 3, 5, 1), (2, 1, 1, 1), (1, 1, 1, 1), (1, 3, 1, 4), (1, 3, 1, 1),
]  # fmt: skip
LAST = tl.channels_last


def draw(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def last(array, device="cpu"):
    return tl.tensor(array, device=device).to(memory_format=LAST)


def lies_last(t):
    return t.is_contiguous(memory_format=LAST)


# --- the user's functions ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_the_strides_that_torch_gives_it(torch, shape):
    def seen(lib):
        format = lib.channels_last
        plain = lib.zeros(shape)
        ways = [
            plain.contiguous(memory_format=format), plain.to(memory_format=format),
            plain.clone(memory_format=format), lib.empty(shape, memory_format=format),
            lib.zeros_like(plain, memory_format=format), plain.half(memory_format=format),
        ]  # fmt: skip
        made = lib.empty(shape, memory_format=format)
        ways += [lib.empty_like(made), lib.ones_like(made), made.clone(), made.detach()]
        ways += [made.to(memory_format=lib.contiguous_format), made.contiguous()]
        formats = (lib.contiguous_format, format, lib.channels_last_3d, lib.preserve_format)
        return [w.stride() for w in ways], [
            [w.is_contiguous(memory_format=f) for f in formats[:3]] for w in [plain, *ways]
        ]

    assert seen(tl) == seen(torch)


def test_a_copy_lies_as_asked(torch):
    def seen(lib):
        x, contiguous = lib.zeros(3, 4).T, lib.contiguous_format
        return [
            x.to(lib.float64, memory_format=contiguous).stride(),
            x.double(memory_format=contiguous).stride(),
            x.to("cpu", copy=True, memory_format=contiguous).stride(),
        ]

    assert seen(tl) == seen(torch)


def test_layouts_of_all_kinds_are_kept_as_torch_keeps_them(torch):
    def seen(lib):
        x = lib.zeros(2, 3, 4, 5)
        pixels = x.to(memory_format=lib.channels_last)
        given = [
            x.transpose(1, 3), x.permute(3, 1, 0, 2), x.transpose(1, 3)[:, :2], x[:, :2],
            pixels[:, :2], pixels[:, :, ::2], pixels[..., 1], x[:1].expand(2, 3, 4, 5),
            pixels.expand(2, 3, 4, 5), lib.zeros(3, 1).expand(3, 4), pixels.permute(0, 2, 3, 1),
            lib.zeros(6).unfold(0, 2, 1), lib.zeros(6).unfold(0, 4, 1),
        ]  # fmt: skip
        return [
            (t.clone().stride(), lib.empty_like(t).stride(), lib.full_like(t, 2).stride())
            for t in given
        ]

    assert seen(tl) == seen(torch)


def test_strides_ask_for_channels_last_where_torch_says_so(torch):
    """`to` leaves a tensor alone if its strides ask for the format already."""

    def seen(lib):
        formats = (lib.channels_last, lib.contiguous_format)
        made = [lib.zeros(shape) for shape in (*SHAPES, (3, 1, 1, 5), (1, 5, 1, 4))]
        made += [t.to(memory_format=lib.channels_last) for t in made]
        made += [t.transpose(1, 3) for t in made] + [t[:, :1] for t in made]
        made += [t[..., ::5] for t in made] + [t[:, :, :1] for t in made]
        return [[t.to(memory_format=f) is t for f in formats] for t in made]

    assert seen(tl) == seen(torch)


def test_conversions_keep_the_layout(device):
    x = last(draw(2, 3, 4, 5))
    moved = x.to(device)
    for t in (moved, moved.double(), moved.half(), moved.bfloat16(), moved.long(), moved.cpu()):
        assert lies_last(t) and not t.is_contiguous()
    np.testing.assert_array_equal(moved.cpu().numpy(), x.numpy())
    there = x.contiguous().to(device, memory_format=LAST)
    assert lies_last(there) and there.device.type == tl.device(device).type
    sliced = moved[:, :2].cpu()
    np.testing.assert_array_equal(sliced.numpy(), x.numpy()[:, :2])
    assert x.to(memory_format=LAST) is x and x.contiguous(memory_format=LAST) is x


def test_random_numbers_do_not_depend_on_the_layout():
    x = last(draw(2, 3, 4, 5))
    for factory in (tl.rand_like, tl.randn_like, lambda t: tl.randint_like(t, 9), F.dropout):
        tl.manual_seed(3)
        found = factory(x)
        tl.manual_seed(3)
        assert lies_last(found) and found.equal(factory(x.contiguous()))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: tl.zeros(2, 3).to(memory_format=LAST), ShapeError, "to: required rank 4"),
        (lambda: tl.zeros(2, 3).clone(memory_format=LAST), ShapeError, "clone: required rank 4"),
        (lambda: tl.zeros(2, 3).contiguous(LAST), ShapeError, "contiguous: required rank 4"),
        (lambda: tl.empty(2, 3, memory_format=LAST), ShapeError, "empty: required rank 4"),
        (lambda: tl.zeros(1, 2, 3, 4).cpu(tl.channels_last_3d), ShapeError, "required rank 5"),
        (lambda: tl.rand_like(tl.zeros(2), memory_format=LAST), ShapeError, "rand_like: required"),
        (lambda: tl.empty(2, memory_format=tl.preserve_format), ArgumentError, "preserve_format"),
        (lambda: tl.zeros(2).clone(memory_format=3), ArgumentTypeError, "memory_format is a int"),
        (lambda: nn.Conv2d(1, 1, 1).to(memory_format=tl.channels_last_3d), ShapeError, "rank 5"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_modules_convert_what_has_four_dimensions():
    def build():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))

    net = build()
    conv = net[0].weight
    assert net.to(memory_format=LAST) is net and net[0].weight is conv
    assert lies_last(conv) and net[3].weight.is_contiguous() and conv.requires_grad
    assert lies_last(net.double()[0].weight) and lies_last(copy.deepcopy(net)[0].weight)
    other = build()
    nn.utils.convert_conv2d_weight_memory_format(other, LAST)
    assert lies_last(other[0].weight)
    other.load_state_dict(net.float().state_dict())
    assert lies_last(other[0].weight) and other[0].weight.equal(net[0].weight)


# --- operations ----------------------------------------------------------------------------------

CHANNELS = draw(16, seed=3)


def kernels(lib, x, *shape):
    w = lib.tensor(draw(*shape, seed=4), dtype=x.dtype, device=x.device)
    return w.to(memory_format=lib.channels_last)


def channels(lib, x):
    return lib.tensor(CHANNELS, dtype=x.dtype, device=x.device)


def norm(lib, x, **options):
    c = channels(lib, x)
    return lib.nn.functional.batch_norm(x, c * 0, c * c + 1, c, c, **options)


# Functions of two images of 16 channels, of 6 × 6; results and gradients have channels last.
FOLLOW = {
    "add": lambda lib, f, x, y: x + y,
    "scale": lambda lib, f, x, y: 2 * x,
    "add per channel": lambda lib, f, x, y: x + channels(lib, x).reshape(1, 16, 1, 1),
    "multiply": lambda lib, f, x, y: x * y,
    "divide": lambda lib, f, x, y: x / (y * y + 1),
    "exp": lambda lib, f, x, y: x.exp(),
    "tanh": lambda lib, f, x, y: x.tanh(),
    "sigmoid": lambda lib, f, x, y: x.sigmoid(),
    "relu": lambda lib, f, x, y: f.relu(x),
    "gelu": lambda lib, f, x, y: f.gelu(x),
    "silu": lambda lib, f, x, y: f.silu(x),
    "hardswish": lambda lib, f, x, y: f.hardswish(x),
    "leaky_relu": lambda lib, f, x, y: f.leaky_relu(x),
    "elu": lambda lib, f, x, y: f.elu(x),
    "clamp": lambda lib, f, x, y: x.clamp(-1, 1),
    "power": lambda lib, f, x, y: x**2,
    "where": lambda lib, f, x, y: lib.where(x > 0, x, y),
    "maximum": lambda lib, f, x, y: lib.maximum(x, y),
    "addcmul": lambda lib, f, x, y: lib.addcmul(x, x, y),
    "in place": lambda lib, f, x, y: (x * 1).add_(y).relu_(),
    "dropout2d": lambda lib, f, x, y: f.dropout2d(x, 0.0),
    "cat": lambda lib, f, x, y: lib.cat([x, y], 1),
    "cat of batches": lambda lib, f, x, y: lib.cat([x, y], 0),
    "nearest": lambda lib, f, x, y: f.interpolate(x, scale_factor=2),
    "bilinear": lambda lib, f, x, y: f.interpolate(x, scale_factor=2, mode="bilinear"),
    "batch_norm": lambda lib, f, x, y: norm(lib, x, training=True),
    "batch_norm, evaluated": lambda lib, f, x, y: norm(lib, x),
    "group_norm": lambda lib, f, x, y: f.group_norm(x, 4, channels(lib, x), channels(lib, x)),
    "max_pool": lambda lib, f, x, y: f.max_pool2d(x, 2),
    "max_pool, overlapping": lambda lib, f, x, y: f.max_pool2d(x, 3, 2, 1),
    "avg_pool": lambda lib, f, x, y: f.avg_pool2d(x, 2),
    "avg_pool, overlapping": lambda lib, f, x, y: f.avg_pool2d(x, 3, 2, 1),
    "adaptive_avg_pool": lambda lib, f, x, y: f.adaptive_avg_pool2d(x, 4),
    "conv": lambda lib, f, x, y: f.conv2d(x, kernels(lib, x, 20, 16, 3, 3), padding=1),
    "conv 1 × 1": lambda lib, f, x, y: f.conv2d(x, kernels(lib, x, 20, 16, 1, 1)),
    "conv, stride 2": lambda lib, f, x, y: f.conv2d(x, kernels(lib, x, 8, 16, 3, 3), stride=2),
    "conv in groups": lambda lib, f, x, y: f.conv2d(x, kernels(lib, x, 8, 4, 3, 3), groups=4),
    "conv by channels": lambda lib, f, x, y: f.conv2d(x, kernels(lib, x, 16, 1, 3, 3), groups=16),
    "transposed conv": lambda lib, f, x, y: f.conv_transpose2d(
        x, kernels(lib, x, 16, 8, 3, 3), stride=2
    ),
}


def run(lib, function, to=None, device="cpu", dtype="float32", backwards=True):
    """The result, and the gradient that comes back to the first image."""
    options = {"device": device, "dtype": getattr(lib, dtype)}
    x, y = (lib.tensor(draw(2, 16, 6, 6, seed=s), **options) for s in (1, 2))
    if to is not None:
        x, y = x.to(memory_format=to), y.to(memory_format=to)
    x.requires_grad_()
    image, seen = x * 1, []
    image.register_hook(seen.append)
    out = function(lib, lib.nn.functional, image, y)
    g = lib.tensor(draw(*out.shape, seed=5), **options)
    out.backward(g if to is None else g.to(memory_format=to))
    return out.detach(), seen[0]


@pytest.mark.parametrize("name", FOLLOW)
def test_operations_follow_their_input(name, device):
    for t, plain in zip(
        run(tl, FOLLOW[name], LAST, device), run(tl, FOLLOW[name], None, device), strict=True
    ):
        assert layout.prefers_channels_last(t._array), t.stride()
        np.testing.assert_allclose(t.cpu().numpy(), plain.cpu().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FOLLOW)
def test_operations_follow_where_torch_does(name, torch):
    for ours, theirs in zip(
        run(tl, FOLLOW[name], LAST), run(torch, FOLLOW[name], torch.channels_last), strict=True
    ):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-4)
        assert ours.stride() == theirs.stride()


# --- kernels of the CPU --------------------------------------------------------------------------

# Channels, outputs, groups, kernel, stride, padding, dilation, size: one for each method.
CONVOLUTIONS = [
    (16, 32, 1, 3, 1, 1, 1, 12), (3, 16, 1, 7, 2, 3, 1, 17), (32, 16, 1, 1, 1, 0, 1, 14),
    (32, 48, 1, 1, 2, 0, 1, 13), (16, 16, 16, 3, 1, 1, 1, 10), (24, 36, 4, 3, 1, 1, 1, 10),
    (20, 24, 1, 3, 2, 1, 1, 11), (20, 24, 1, 5, 1, 2, 2, 17), (260, 270, 1, 3, 1, 1, 1, 4),
    (17, 19, 1, 3, 1, 1, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_in_all_combinations_of_layouts(case, dtype):
    c, o, groups, k, stride, padding, dilation, n = case
    x, w = draw(2, c, n, n, dtype=dtype), draw(o, c // groups, k, k, seed=1, dtype=dtype)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    found = []
    for of_x, of_w in itertools.product((tl.contiguous_format, LAST), repeat=2):
        image, weight = tl.tensor(x).to(memory_format=of_x), tl.tensor(w).to(memory_format=of_w)
        image.requires_grad_(), weight.requires_grad_()
        out = F.conv2d(image, weight, **options)
        g = tl.tensor(draw(*out.shape, seed=2, dtype=dtype)).to(memory_format=of_x)
        out.backward(g)
        assert lies_last(out) or LAST not in (of_x, of_w)
        assert image.grad.is_contiguous(memory_format=of_x)
        assert weight.grad.is_contiguous(memory_format=of_w)
        found.append([t.detach().numpy() for t in (out, image.grad, weight.grad)])
    tolerance = 2e-6 if dtype == "float32" else 1e-14
    for other in found[1:]:
        for a, z in zip(found[0], other, strict=True):
            np.testing.assert_allclose(z, a, rtol=0, atol=tolerance * np.abs(a).max())


@pytest.mark.parametrize("shape", [(3, 40, 70, 3), (2, 17, 33, 7), (1, 5, 3000, 1), (600, 9, 1, 9)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64])
def test_copies_between_orders(shape, dtype):
    x = (1000 * draw(*shape)).astype(dtype)
    for before, after in itertools.permutations([(0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2)], 2):
        given = np.ascontiguousarray(x.transpose(before)).transpose(np.argsort(before))
        out = layout.copied(np, given, after)
        assert layout.lies_in(out, after) and layout.dense_order(given) is not None
        np.testing.assert_array_equal(out, x)


def test_volumes():
    x, w = draw(2, 4, 5, 6, 5), draw(8, 4, 3, 3, 3, seed=1)
    for function in (
        lambda t: F.conv3d(t, tl.tensor(w), padding=1),
        lambda t: F.max_pool3d(t, 2),
        lambda t: F.avg_pool3d(t, 3, 2, 1),
        lambda t: F.batch_norm(t, None, None, training=True),
        lambda t: F.interpolate(t, scale_factor=2),
    ):
        outs = []
        for format in (tl.contiguous_format, tl.channels_last_3d):
            t = tl.tensor(x).to(memory_format=format).requires_grad_()
            out = function(t)
            assert out.is_contiguous(memory_format=format)
            (out * out).sum().backward()
            assert t.grad.stride() == t.stride()
            outs.append((out.detach().numpy(), t.grad.numpy()))
        for a, z in zip(*outs, strict=True):
            np.testing.assert_allclose(z, a, rtol=1e-3, atol=1e-4)


# --- gradients, optimizers, files ----------------------------------------------------------------


def test_gradients_of_leaves_lie_as_the_leaves():
    plain, pixels = tl.ones(2, 3, 4, 5), tl.ones(2, 3, 4, 5).to(memory_format=LAST)
    turned, gaps = tl.ones(2, 3, 5, 4).transpose(2, 3), tl.ones(2, 3, 4, 10)[..., ::2]
    for leaf, strides in (
        (plain, plain.stride()), (pixels, pixels.stride()), (turned, turned.stride()),
        (gaps, plain.stride()),
    ):  # fmt: skip
        for factor in (plain, pixels):
            leaf = leaf.detach().requires_grad_()
            (leaf * factor).sum().backward()
            assert leaf.grad.stride() == strides
            (leaf * factor).sum().backward()
            assert leaf.grad.stride() == strides and leaf.grad.eq(2).all()
            leaf.grad = None
            (leaf * factor * leaf).sum().backward(create_graph=True)
            leaf.grad.sum().backward()
            assert leaf.grad.eq(4).all()


def test_a_gradient_is_not_shared_with_what_others_hold():
    x = last(draw(2, 3, 4, 5)).requires_grad_()
    g = last(draw(2, 3, 4, 5, seed=1))
    held = []
    y = x * 1
    y.register_hook(held.append)
    y.backward(g)
    assert x.grad.data_ptr() not in (g.data_ptr(), held[0].data_ptr())
    view = layout.copied(np, draw(2, 3, 4, 5), (0, 2, 3, 1))
    base = view.base
    leaf = tl.zeros(2, 3, 4, 5).to(memory_format=LAST).requires_grad_()
    tl.autograd.engine.accumulate(leaf, view, True)
    assert leaf.grad._array is not view and base is view.base  # somebody knows the base


OPTIMIZERS = {
    "sgd": lambda p: tl.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: tl.optim.AdamW(p, lr=0.1, amsgrad=True),
    "rmsprop": lambda p: tl.optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "adagrad": lambda p: tl.optim.Adagrad(p, lr=0.1),
    "adadelta": lambda p: tl.optim.Adadelta(p, lr=0.1),
}


def values(p):
    return p.detach().cpu().float().numpy()


def train(optimizer, format, device, dtype="float32", mixed=False, clip=None):
    start = tl.tensor(draw(8, 6, 3, 3), dtype=getattr(tl, dtype), device=device)
    p, bias = nn.Parameter(start.to(memory_format=format)), nn.Parameter(start[:, 0, 0, 0].clone())
    moved = OPTIMIZERS[optimizer]([p, bias])
    for i in range(4):
        for t in (p, bias):
            g = tl.tensor(draw(*t.shape, seed=i + 9), dtype=t.dtype, device=device)
            t.grad = g if mixed or t is bias else g.to(memory_format=format)
        if clip is not None:
            nn.utils.clip_grad_norm_([p, bias], clip)
        moved.step()
        if mixed and i == 1:
            moved.load_state_dict(pickle.loads(pickle.dumps(moved.state_dict())))
    return p, moved.state[p]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_go_along_memory(name, dtype, device):
    plain, _ = train(name, tl.contiguous_format, device, dtype, clip=5.0)
    pixels, state = train(name, LAST, device, dtype, clip=5.0)
    np.testing.assert_allclose(*(values(p) for p in (pixels, plain)), rtol=1e-5, atol=1e-5)
    assert lies_last(pixels)
    assert all(lies_last(t) for n, t in state.items() if n != "step")
    other, _ = train(name, LAST, device, dtype, mixed=True)
    plain, _ = train(name, tl.contiguous_format, device, dtype)
    np.testing.assert_array_equal(values(other), values(plain))


def test_one_kernel_updates_parameters_of_all_layouts(monkeypatch):
    from tensorlib.backend.kernels import optimizers

    refused = []
    run = optimizers.optimize

    def noted(*args):
        refused.append(run(*args))
        return refused[-1]

    monkeypatch.setattr(tl.backend.fused, "_function", lambda name: noted)
    train("adam", LAST, "cpu")
    assert refused == [[]] * 4


def test_a_module_may_change_its_layout_while_it_is_trained():
    results = []
    for formats in ([tl.contiguous_format] * 4, [LAST, tl.contiguous_format, LAST, LAST]):
        tl.manual_seed(0)
        conv = nn.Conv2d(3, 8, 3, bias=False)
        net = nn.Sequential(conv, nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 2))
        optimizer = tl.optim.Adam(net.parameters(), lr=0.01)
        x = tl.tensor(draw(4, 3, 6, 6))
        for format in formats:
            net.to(memory_format=format)
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
            assert optimizer.state[conv.weight]["exp_avg"].stride() == conv.weight.stride()
        results.append(nn.utils.parameters_to_vector(net.parameters()).detach().numpy())
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)


def test_files_copies_and_other_libraries_keep_the_strides(device):
    x = last(draw(2, 3, 4, 5), device)
    file = io.BytesIO()
    tl.save({"x": x, "bf16": x.bfloat16(), "t": x[0, 0].t()}, file)
    file.seek(0)
    loaded = tl.load(file)
    assert lies_last(loaded["x"]) and lies_last(loaded["bf16"])
    assert loaded["x"].equal(x) and loaded["t"].equal(x[0, 0].t())
    for other in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), tl.from_dlpack(x)):
        assert other.stride() == x.stride() and other.equal(x)
    if device == "cpu":
        assert x.numpy().strides == tuple(4 * s for s in x.stride())
        assert nn.utils.parameters_to_vector([x]).equal(x.contiguous().reshape(-1))
    else:
        pinned = x.cpu().pin_memory()
        assert lies_last(pinned) and pinned.is_pinned() and pinned.equal(x.cpu())


def test_batches_of_images_are_contiguous(torch):
    def seen(lib):
        images = [lib.zeros(4, 5, 3).permute(2, 0, 1) for _ in range(2)]
        return lib.utils.data.default_collate(images).stride()

    assert seen(tl) == seen(torch)
