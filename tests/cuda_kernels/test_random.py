"""Random numbers and dropout: the kernels' source against the CPU's bits."""

import re

import ml_dtypes
import numpy as np
import pytest

import tensorlib.backend.kernels.random as cpu
from tensorlib.backend import layout
from tensorlib.backend.cuda import launch, nvrtc
from tensorlib.backend.cuda.kernels import random

SEEDS = [0, 3, 2**63 + 5]
SIZES = [0, 1, 7, 1000]


class Captured(int):
    """An offset of a captured graph: the kernel reads (seed, blocks drawn) from memory."""

    state: np.ndarray


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", SIZES)
def test_words_integers_and_uniforms_have_the_same_bits(emulator, seed, n):
    for offset in (0, 9, 2**33):
        np.testing.assert_array_equal(
            random.random_words(seed, offset, n), cpu.random_words(seed, offset, n)
        )
        for low, span in ((-5, 77), (0, 1), (-(2**40), 2**32)):
            np.testing.assert_array_equal(
                random.random_integers(seed, offset, n, low, span),
                cpu.random_integers(seed, offset, n, low, span),
            )
        for double in (False, True):
            found = random.random_uniform(seed, offset, n, double)
            expected = cpu.random_uniform(seed, offset, n, double)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("double", [False, True])
def test_normals_have_the_same_bits(emulator, double):
    for seed, offset, n in ((7, 5, 100_000), (2**63 + 5, 2**33, 1001), (7, 5, 3)):
        found = random.random_normal(seed, offset, n, double)
        expected = cpu.random_normal(seed, offset, n, double)
        assert found.dtype == expected.dtype and found.tobytes() == expected.tobytes()
    assert (
        random.random_normal(7, 5, 3, double).tobytes()
        == cpu.random_normal(7, 5, 3, double).tobytes()
    )


@pytest.mark.skipif(not nvrtc.is_available(), reason="needs NVRTC, which compiles the kernels")
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_nothing_but_what_is_written_is_fused(real, monkeypatch):
    """Each step of a normal number says how it is rounded: the assembler fuses only bare ones."""
    text = nvrtc._text
    assembly = {"CUBIN": "PTX"}
    monkeypatch.setattr(nvrtc, "_text", lambda program, of: text(program, assembly.get(of, of)))
    options = (*launch.OPTIONS, *launch.defines((np.dtype(real),)))
    source, headers = launch.source("random"), launch.headers()
    found = nvrtc.compile_source(source, "random.cu", headers, options, 90).decode()
    kernel = found[found.index(".entry random_normal") :].partition("\n}")[0]
    steps = re.findall(r"\s((?:add|sub|mul|fma|mad|div|sqrt)\.\S*f(?:32|64))\s", kernel)
    bits = real[-2:]
    assert steps and all(".rn." in step and step.endswith(bits) for step in steps)
    assert steps.count(f"fma.rn.f{bits}") == 8 * steps.count(f"sqrt.rn.f{bits}")


def test_the_order_of_random_words(emulator):
    np.testing.assert_array_equal(random.random_order(3, 4, 500), cpu.random_order(3, 4, 500))


@pytest.mark.parametrize("n", SIZES)
def test_dropout(emulator, n):
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
        x = np.random.standard_normal(n).astype(dtype)
        found = random.dropout(x, 0.3, 1.25, 11, 4)
        wide = np.float64 if dtype == np.float64 else np.float32
        out, kept = cpu.dropout(x.astype(wide), 0.3, 1.25, 11, 4)
        np.testing.assert_array_equal(found[1], kept)
        np.testing.assert_array_equal(found[0].astype(wide), out.astype(dtype).astype(wide))


def test_dropout_has_the_same_numbers_for_any_layout(emulator):
    x = np.random.standard_normal((2, 9, 5, 4)).astype(np.float32)
    order = layout.channels_last_order(4)
    plain = random.dropout(x, 0.3, 1.25, 11, 4)
    found = random.dropout(layout.copied(np, x, order), 0.3, 1.25, 11, 4)
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_array_equal(a, b)
        assert layout.lies_in(a, order) and layout.lies_in(b, layout.contiguous_order(4))


def test_the_state_of_a_captured_graph(emulator):
    offset = Captured(2)
    offset.state = np.array([2**63 + 1, 40], np.uint64)
    np.testing.assert_array_equal(
        random.random_words(5, offset, 50), cpu.random_words(2**63 + 1, 42, 50)
    )
    x = np.ones(50, np.float32)
    np.testing.assert_array_equal(
        random.dropout(x, 0.5, 2.0, 5, offset)[0], cpu.dropout(x, 0.5, 2.0, 2**63 + 1, 42)[0]
    )
