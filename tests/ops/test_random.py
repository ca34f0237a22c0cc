"""Random numbers: Philox against its published vectors, streams, distributions, state."""

import math
from typing import Any

import numba
import numpy as np
import pytest
import scipy.stats

import tensorlib as tl
from tensorlib import random as rnd
from tensorlib.backend import fused, get_backend, philox, pool
from tensorlib.backend.kernels import box_muller

from . import philox as reference

# Counter, key and result of the known-answer test published with Random123 (Salmon et al. 2011).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: Any, key: Any, expected: Any, device: str) -> None:
    b = get_backend(device)
    words = philox.rounds(b.xp, tuple(b.xp.asarray([c], "uint64") for c in counter), key)
    assert b.to_host(words)[0].tolist() == list(expected)
    assert reference.block(counter, key) == expected


@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (2**64 - 1, 2**32 - 1), (12345, 2**40)])
def test_words_are_the_blocks_of_a_stream(seed: int, offset: int, device: str) -> None:
    b = get_backend(device)
    found = b.to_host(philox.words(b.xp, seed, offset, 11))
    assert found.tolist() == reference.blocks(seed, offset, 11)


def test_numbers_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tl.rand(1000, generator=tl.Generator().manual_seed(3))
    monkeypatch.setattr(philox, "_CHUNK", 7)
    with fused.plain():
        assert tl.equal(tl.rand(1000, generator=tl.Generator().manual_seed(3)), whole)
    g = tl.Generator().manual_seed(3)
    parts = [tl.rand(400, generator=g), tl.rand(600, generator=g)]
    assert tl.equal(tl.cat(parts), whole)


PLACE = {"device": tl.device("cpu")}
DRAWS: dict[str, Any] = {
    "uniform f4": lambda n: (rnd.random_uniform, {"shape": (n,), "dtype": np.dtype("f4")}),
    "uniform f8": lambda n: (rnd.random_uniform, {"shape": (n,), "dtype": np.dtype("f8")}),
    "uniform f2": lambda n: (rnd.random_uniform, {"shape": (n,), "dtype": np.dtype("f2")}),
    "normal f4": lambda n: (rnd.random_normal, {"shape": (n,), "dtype": np.dtype("f4")}),
    "normal f8": lambda n: (rnd.random_normal, {"shape": (n,), "dtype": np.dtype("f8")}),
    "normal f2": lambda n: (rnd.random_normal, {"shape": (n,), "dtype": np.dtype("f2")}),
    "integers": lambda n: (
        rnd.random_integers,
        {"shape": (n,), "dtype": np.dtype("u1"), "low": 3, "high": 200},
    ),
    "all words": lambda n: (
        rnd.random_integers,
        {"shape": (n,), "dtype": np.dtype("i8"), "low": -5, "high": 2**32 - 5},
    ),
    "permutation": lambda n: (rnd.random_permutation, {"n": n, "dtype": np.dtype("i8")}),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("seed", "offset"), [(5, 7), (2**64 - 3, 2**32 - 5), (9, 2**64 - 2)])
def test_kernels_have_the_bits_of_the_plain_expressions(name: str, seed: int, offset: int) -> None:
    for n in (0, 1, 3, 4, 5, 255, 256, 257, 1000):
        draw, options = DRAWS[name](n)
        found = draw(**options, **PLACE, seed=seed, offset=offset)
        with fused.plain():
            expected = draw(**options, **PLACE, seed=seed, offset=offset)
        assert found.dtype is expected.dtype and tl.equal(found, expected)


def exact_normals(u: Any, v: Any) -> tuple[Any, Any]:
    """Box and Muller's transform in extended precision; quarter turns are taken off exactly."""
    radius = np.sqrt(-2 * np.log1p(-u.astype(np.longdouble)))
    quarters = 4 * v.astype(np.longdouble)
    whole = np.floor(quarters + 0.5)
    angle = (quarters - whole) * (np.longdouble(np.pi) + 1.2246467991473532e-16) / 2
    c, s = np.cos(angle), np.sin(angle)
    place = whole.astype(int) % 4
    return (
        radius * np.choose(place, [c, -s, -c, s]),
        radius * np.choose(place, [s, c, -s, -c]),
    )


def units(found: Any, exact: Any) -> Any:
    """The distance in units in the last place of the exact numbers."""
    return np.abs(found - exact) / np.spacing(np.abs(exact).astype(found.dtype))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_normals_are_within_two_units_of_exact_ones(dtype: str) -> None:
    options = {"dtype": np.dtype(dtype), "seed": 3, "offset": 4, "device": tl.device("cpu")}
    u = rnd.random_uniform(shape=(1_000_000,), **options).numpy()
    found = rnd.random_normal(shape=(1_000_000,), **options).numpy()
    assert found.dtype == dtype
    for i, exact in enumerate(exact_normals(u[::2], u[1::2])):
        apart = units(found[i::2], exact)
        assert apart.max() <= 2 and apart.mean() < 0.3


def edges(dtype: str) -> tuple[Any, Any]:
    """Pairs of uniform numbers as whole numbers: next to 0, to 1 and to each eighth of a turn."""
    last = 1 << (24 if dtype == "f4" else 53)
    places = {0, *(last - (1 << i) for i in range(8)), *(last >> i for i in range(1, 60))}
    places |= {last // 8 * i + near for i in range(9) for near in (-2, -1, 0, 1, 2)}
    x = np.array(sorted(p for p in places if 0 <= p < last)).astype(dtype)
    u, v = np.meshgrid(x, x)
    return u.reshape(-1), v.reshape(-1)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_normals_of_numbers_at_the_edges(dtype: str) -> None:
    u, v = edges(dtype)
    unit = u.dtype.type(2.0 ** (-24 if dtype == "f4" else -53))
    found = philox.box_muller(np, u * unit, v * unit)
    for x, exact in zip(found, exact_normals(u * unit, v * unit), strict=True):
        assert (x[exact == 0] == 0).all()
        assert units(x[exact != 0], exact[exact != 0]).max() <= 2

    real = u.dtype.type
    squared, turned = box_muller.squared_radius(real), box_muller.turned(real)

    @numba.njit
    def compiled(u: Any, v: Any, first: Any, second: Any) -> None:
        for i in range(len(u)):
            first[i], second[i] = turned(squared(u[i]), v[i])

    by_kernel = np.empty_like(u), np.empty_like(v)
    compiled(u, v, *by_kernel)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(found, by_kernel, strict=True))


@pytest.mark.parametrize("dtype", [tl.float32, tl.float64, tl.float16])
@pytest.mark.parametrize("p", [0.0, 1e-9, 0.1, 0.5, 1.0])
def test_dropout_keeps_what_the_uniform_numbers_say(dtype: Any, p: float) -> None:
    x = tl.arange(1, 1003).to(dtype).reshape(3, 334).T
    tl.manual_seed(5)
    drawn = tl.rand(334, 3, dtype=tl.float64 if dtype is tl.float64 else tl.float32)
    after = tl.rand(2)
    tl.manual_seed(5)
    out = rnd.drop(x, p, 1.25)
    kept = (drawn >= p).to(dtype)
    assert tl.equal(out, x * (kept * 1.25))
    assert tl.equal(tl.rand(2), after)
    with fused.plain():
        tl.manual_seed(5)
        assert tl.equal(rnd.drop(x, p, 1.25), out)


@pytest.mark.parametrize("dtype", [tl.float32, tl.float64])
def test_a_number_that_equals_the_probability_is_kept(dtype: Any) -> None:
    tl.manual_seed(8)
    drawn = tl.rand(9, dtype=dtype)
    for i in range(9):
        tl.manual_seed(8)
        kept = rnd.drop(tl.ones(9, dtype=dtype), drawn[i].item(), 1.0)
        assert tl.equal(kept == 1, drawn >= drawn[i]) and kept[i] == 1


def test_dropped_infinity_and_nan_show() -> None:
    x = tl.tensor([math.nan, math.inf, -math.inf] * 100, requires_grad=True)
    out = rnd.drop(x, 0.5, 2.0)
    dropped = out.isnan() & ~x.isnan()
    assert dropped.any() and (out.isinf() | dropped | x.isnan()).all()
    out.backward(tl.ones(300))
    assert x.grad is not None and set(x.grad.tolist()) == {0.0, 2.0}
    assert tl.equal((x.grad == 0)[1::3], dropped[1::3])


def test_numbers_do_not_depend_on_threads() -> None:
    before, draws = pool.threads(), []
    try:
        for threads in (1, 3):
            pool.set_threads(threads)
            tl.manual_seed(2)
            x = tl.rand(100_003)
            more = tl.randn(70_001), tl.randint(9, (50_000,)), tl.randperm(40_000)
            draws.append([x, *more, rnd.drop(x, 0.3, 1.0)])
    finally:
        pool.set_threads(before)
    assert all(tl.equal(a, b) for a, b in zip(*draws, strict=True))


def test_one_seed_one_stream(device: str) -> None:
    draws = []
    for seed in (7, 7, 8):
        tl.manual_seed(seed)
        draws.append(
            [tl.rand(5, device=device), tl.randn(3, device=device), tl.randperm(6, device=device)]
        )
    assert all(tl.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not tl.equal(draws[0][0], draws[2][0])
    assert tl.initial_seed() == 8
    first, second = tl.rand(4), tl.rand(4)
    assert not tl.equal(first, second)


def test_the_same_numbers_on_every_device(device: str) -> None:
    draws: list[Any] = [
        lambda **k: tl.rand(100, **k),
        lambda **k: tl.randint(0, 1000, (50,), **k),
        lambda **k: tl.randn(100, **k),
        lambda **k: tl.randn(100, dtype=tl.float64, **k),
    ]
    for draw in draws:
        here = draw(device=device, generator=tl.Generator(device).manual_seed(1)).cpu()
        assert tl.equal(here, draw(generator=tl.Generator().manual_seed(1)))


def test_state_is_saved_and_restored() -> None:
    g = tl.Generator().manual_seed(5)
    tl.rand(3, generator=g)
    state = g.get_state()
    expected = tl.randn(4, generator=g)
    other = tl.Generator()
    other.set_state(state)
    assert tl.equal(tl.randn(4, generator=other), expected)
    assert other.initial_seed() == 5 and state.dtype is tl.uint8
    saved = tl.get_rng_state()
    first = tl.rand(2)
    tl.set_rng_state(saved)
    assert tl.equal(tl.rand(2), first)
    with pytest.raises(tl.errors.ArgumentTypeError, match="set_state: pass the uint8 tensor"):
        g.set_state(tl.zeros(3))


def test_seeds() -> None:
    g = tl.Generator()
    assert g.manual_seed(-1) is g and g.initial_seed() == 2**64 - 1
    assert g.seed() == g.initial_seed() != g.seed()
    with pytest.raises(tl.errors.ArgumentError, match="out of range; pass a 64-bit integer"):
        g.manual_seed(2**64)
    assert isinstance(tl.seed(), int)


def fits(sample: Any, distribution: Any) -> None:
    """A Kolmogorov-Smirnov test that a right generator fails once in ten thousand seeds."""
    assert scipy.stats.kstest(sample.double().numpy().reshape(-1), distribution).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [tl.float32, tl.float64])
def test_distributions(dtype: Any, device: str) -> None:
    tl.manual_seed(11)
    n, like = 20_000, {"dtype": dtype, "device": device}
    fits(tl.rand(n, **like).cpu(), "uniform")
    fits(tl.randn(n, **like).cpu(), "norm")
    empty = tl.empty(n, **like)
    fits(empty.uniform_(-2, 3).cpu(), scipy.stats.uniform(-2, 5).cdf)
    fits(empty.normal_(1, 2).cpu(), scipy.stats.norm(1, 2).cdf)
    fits(empty.exponential_(0.5).cpu(), scipy.stats.expon(scale=2).cdf)
    fits(tl.normal(1.0, 3.0, (n,), **like).cpu(), scipy.stats.norm(1, 3).cdf)


def test_neighbours_are_independent() -> None:
    x = tl.randn(50_000, generator=tl.Generator().manual_seed(2)).numpy()
    for lag in (1, 2, 3, 4, 8):
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 4 / np.sqrt(len(x))
    streams = [tl.rand(20_000, generator=tl.Generator().manual_seed(s)).numpy() for s in (1, 2)]
    assert abs(np.corrcoef(*streams)[0, 1]) < 4 / np.sqrt(20_000)


def test_uniform_numbers_never_reach_one() -> None:
    for dtype in (tl.float16, tl.bfloat16, tl.float32, tl.float64):
        x = tl.rand(20_000, dtype=dtype, generator=tl.Generator().manual_seed(0))
        assert x.dtype is dtype and (x >= 0).all() and (x < 1).all()


def test_integers_are_uniform() -> None:
    tl.manual_seed(4)
    counts = tl.randint(-3, 7, (20_000,)).add(3).bincount().numpy()
    assert len(counts) == 10 and scipy.stats.chisquare(counts).pvalue > 1e-4
    wide = tl.randint(-(2**62), 2**62, (1000,))
    assert wide.dtype is tl.int64 and wide.min() < -(2**60) and wide.max() > 2**60
    assert tl.randint(5, (2, 3), dtype=tl.int8).dtype is tl.int8
    assert tl.randint(high=1, size=(4,)).tolist() == [0] * 4
    assert set(tl.randint_like(tl.zeros(50), 2, 4).tolist()) == {2.0, 3.0}


def test_permutations() -> None:
    tl.manual_seed(6)
    assert sorted(tl.randperm(100).tolist()) == list(range(100)) != tl.randperm(100).tolist()
    assert tl.randperm(0).shape == (0,) and tl.randperm(3, dtype=tl.int32).dtype is tl.int32
    first = np.bincount([tl.randperm(5)[0].item() for _ in range(1000)], minlength=5)
    assert scipy.stats.chisquare(first).pvalue > 1e-4


def test_bernoulli_and_multinomial(device: str) -> None:
    tl.manual_seed(9)
    p = tl.full((20_000,), 0.3, device=device)
    drawn = tl.bernoulli(p)
    assert drawn.dtype is tl.float32 and set(drawn.unique().tolist()) == {0.0, 1.0}
    assert abs(drawn.mean().item() - 0.3) < 0.015
    assert tl.bernoulli(tl.tensor([0.0, 1.0], device=device)).tolist() == [0, 1]
    assert p.clone().bernoulli_(1.0).sum() == 20_000
    weights = tl.tensor([1.0, 0.0, 3.0], device=device)
    counts = tl.multinomial(weights, 8000, replacement=True).bincount().cpu().numpy()
    assert counts[1] == 0 and abs(counts[2] / 8000 - 0.75) < 0.02
    rows = tl.multinomial(tl.ones(500, 4, device=device), 4)
    assert rows.sort(1)[0].unique(dim=0).tolist() == [[0, 1, 2, 3]]
    heavy = tl.multinomial(tl.tensor([[1.0, 9.0]] * 4000, device=device), 1)
    assert abs(heavy.double().mean().item() - 0.9) < 0.02


def test_normal_with_tensors() -> None:
    tl.manual_seed(1)
    mean, std = tl.tensor([0.0, 100.0]).expand(5000, 2), tl.tensor([1.0, 5.0])
    drawn = tl.normal(mean, std)
    np.testing.assert_allclose(drawn.mean(0).numpy(), [0, 100], atol=0.3)
    np.testing.assert_allclose(drawn.std(0).numpy(), [1, 5], rtol=0.05)


def test_shapes_dtypes_and_gradients() -> None:
    assert tl.rand(2, 3).shape == tl.rand((2, 3)).shape == tl.rand([2, 3]).shape == (2, 3)
    assert tl.randn(()).shape == tl.rand(()).shape == () and tl.randn(0, 2).shape == (0, 2)
    assert (
        tl.rand(2, requires_grad=True).requires_grad
        and tl.randn(2, dtype=tl.float64).dtype is tl.float64
    )
    x = tl.randn(2000, dtype=tl.complex64, generator=tl.Generator().manual_seed(1))
    assert x.dtype is tl.complex64 and abs((x.abs() ** 2).mean().item() - 1) < 0.1
    assert (
        tl.rand_like(x.real).shape == (2000,)
        and tl.randn_like(tl.zeros(2, dtype=tl.float64)).dtype is tl.float64
    )
    out = tl.empty(3)
    assert tl.rand(3, out=out) is out and (out < 1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tl.rand(-1), "negative size"),
        (lambda: tl.rand(2, dtype=tl.int64), "pass a floating-point dtype"),
        (lambda: tl.randint(3, 3, (1,)), "high must be larger"),
        (lambda: tl.randperm(-1), "must not be negative"),
        (lambda: tl.bernoulli(tl.tensor([1.5])), "between 0 and 1"),
        (lambda: tl.multinomial(tl.tensor([-1.0, 2.0]), 1), "not negative"),
        (lambda: tl.multinomial(tl.tensor([1.0, 0.0]), 2), "without replacement"),
        (lambda: tl.normal(0.0, 1.0), "pass size="),
        (lambda: tl.normal(tl.zeros(2), -1.0), "must not be negative"),
        (lambda: tl.empty(2).uniform_(1, 0), "larger than"),
        (lambda: tl.empty(2).normal_(0, -1), "must not be negative"),
        (lambda: tl.empty(2).exponential_(0), "must be positive"),
        (lambda: tl.rand("a"), "sizes must be ints"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(tl.errors.TensorlibError, match=message):
        call()
