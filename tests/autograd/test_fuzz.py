"""Random programs of views, in-place writes and ordinary operations.

A program is a list of plain choices. Run on tensorlib its values are compared with torch's, and its
gradients with torch's and with central differences of its own forward, which needs no reference. A
step that torch refuses must be refused here, and the other way round; only where torch refuses the
backward (a saved value was overwritten) may we know better, and then differences are the judge.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import tensorlib as tl

SHAPE = (3, 4)
VIEWS = (
    "select", "slice", "strided", "transpose", "permute", "flat", "unsqueeze", "squeeze",
    "diagonal", "split", "unbind", "expand", "narrow", "unfold", "newaxis", "detach",
    "chunk", "view_as",
)  # fmt: skip
WRITES = (
    "mul_number", "add_number", "mul_self", "mul_other", "sub_other", "div_other", "copy",
    "copy_row", "fill", "zero", "masked_fill", "exp", "tanh", "set_slice", "set_number",
    "set_index", "set_mask", "unsqueeze_", "squeeze_", "t_", "addcmul", "clamp",
    "index_add", "no_grad_mul", "pow",
)  # fmt: skip
PLAIN = (
    "mul", "sin", "add", "clone", "sum", "square", "where", "matmul", "cat", "index",
    "detach_add",
)  # fmt: skip


Program = list[tuple[str, str, list[float]]]


def make_program(seed: int, multi_output_writes: bool) -> Program:
    """A list of (kind, operation, random numbers in [0, 1) that its choices come from)."""
    rng = random.Random(seed)
    program = []
    for _ in range(rng.randint(4, 14)):
        kind = rng.choice(("view", "view", "write", "write", "write", "plain"))
        name = rng.choice({"view": VIEWS, "write": WRITES, "plain": PLAIN}[kind])
        if not multi_output_writes and name in ("split", "unbind", "chunk"):
            name = "narrow"
        program.append((kind, name, [rng.random() for _ in range(6)]))
    return program


def view(lib: Any, x: Any, name: str, r: list[float]) -> Any:  # noqa: C901
    d = int(r[1] * x.ndim) if x.ndim else 0
    n = x.shape[d] if x.ndim else 1
    match name:
        case "select":
            return x.select(d, int(r[2] * n))
        case "slice":
            start = int(r[2] * n)
            return x.narrow(d, start, 1 + int(r[3] * (n - start)))
        case "narrow":
            return x[int(r[2] * x.shape[0]) :]
        case "strided":
            return x[:: 1 + int(r[2] * 2)]
        case "transpose":
            return x.transpose(d, int(r[2] * x.ndim))
        case "permute":
            return x.permute(*range(x.ndim - 1, -1, -1))
        case "flat":
            return x.view(-1)
        case "view_as":
            return x.view(x.shape[::-1])
        case "unsqueeze":
            return x.unsqueeze(d)
        case "squeeze":
            return x.squeeze()
        case "diagonal":
            return x.diagonal(int(r[2] * 3) - 1)
        case "split":
            return x.split(1 + int(r[2] * 2), dim=d)[-1]
        case "unbind":
            return x.unbind(d)[int(r[2] * n)]
        case "chunk":
            return x.chunk(2, dim=d)[0]
        case "expand":
            return x.unsqueeze(0).expand(2, *x.shape)
        case "unfold":
            return x.unfold(d, min(2, n), 2)  # windows apart: no cell is in two of them
        case "newaxis":
            return x[None, ..., 0]
        case "detach":
            return x.detach()
    raise AssertionError(name)


def write(lib: Any, x: Any, y: Any, name: str, r: list[float]) -> None:  # noqa: C901
    n = x.shape[0] if x.ndim else 1
    i = int(r[2] * n)
    match name:
        case "mul_number":
            x.mul_(0.5 + r[1])
        case "add_number":
            x += r[1]
        case "mul_self":
            x.mul_(x)
        case "mul_other":
            x *= y.clone() if r[3] < 0.5 else y
        case "sub_other":
            x.sub_(y, alpha=0.5)
        case "div_other":
            x.div_(y * y + 1)
        case "copy":
            x.copy_(y.clone())
        case "copy_row":
            x.copy_(y.clone()[0])
        case "fill":
            x.fill_(y.sum() * 0.1 if r[1] < 0.5 else r[2])
        case "zero":
            x.zero_()
        case "masked_fill":
            x.masked_fill_(x.detach() > 0.2, r[1])
        case "exp":
            x.mul_(0.1).exp_()
        case "tanh":
            x.tanh_()
        case "set_slice":
            x[i:] = y.clone()[i:]
        case "set_number":
            x[i] = r[1]
        case "set_index":
            x[lib.tensor([i])] = y.clone().sum() * r[1]
        case "set_mask":
            x[x.detach() > 0.3] = y.sum() * r[1]
        case "unsqueeze_":
            x.unsqueeze_(0)
        case "squeeze_":
            x.squeeze_(0)
        case "t_":
            x.t_()
        case "addcmul":
            x.addcmul_(y, y, value=0.3)
        case "clamp":
            x.clamp_(-0.7, 0.9)
        case "index_add":
            x.index_add_(0, lib.tensor([i, i]), (x.clone()[:1] * y.sum()).expand(2, *x.shape[1:]))
        case "no_grad_mul":
            with lib.no_grad():
                x.mul_(1.5)
        case "pow":
            x.mul_(0.5).pow_(2)
        case _:
            raise AssertionError(name)


def plain(lib: Any, x: Any, y: Any, name: str, r: list[float]) -> Any:
    return {
        "mul": lambda: x * y,
        "sin": lambda: x.sin(),
        "add": lambda: x + y,
        "clone": lambda: x.clone(),
        "sum": lambda: x.sum(0),
        "square": lambda: x * x,
        "where": lambda: lib.where(x > 0, x, y),
        "matmul": lambda: x @ y.transpose(0, 1),
        "cat": lambda: lib.cat([x, y]),
        "index": lambda: x[lib.tensor([0, 0])],
        "detach_add": lambda: x.detach() + y,
    }[name]()


def run(
    lib: Any, program: Program, leaves: list[Any], follow: list[str] | None = None
) -> tuple[Any, list[Any], list[str]]:
    """Run a program on two leaves.

    Args:
        lib: torch or tensorlib.
        program: What `make_program` made.
        leaves: Two tensors.
        follow: Which steps an earlier run refused; those are skipped.

    Returns:
        The loss, all tensors alive, and per step "" or the error that refused it.
    """
    a, b = leaves
    pool = [a, b, a * 1.0, lib.zeros(*SHAPE, dtype=lib.float64) + 0.3, b * 0.7]
    log: list[str] = []
    for number, (kind, name, r) in enumerate(program):
        x = pool[int(r[0] * len(pool))]
        y = pool[int(r[5] * len(pool))]
        if follow is not None and follow[number]:
            log.append(follow[number])
            continue
        try:
            if kind == "view":
                pool.append(view(lib, x, name, r))
            elif kind == "write":
                write(lib, x, y, name, r)
            else:
                pool.append(plain(lib, x, y, name, r))
            log.append("")
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            log.append(f"{name}: {type(error).__name__}: {error}")
    loss: Any = 0
    for k, t in enumerate(pool):
        weight = lib.tensor(np.cos(np.arange(t.numel()) + k).reshape(tuple(t.shape)))
        loss = loss + (t * weight).sum()
    return loss, pool, log


def starting_values(seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.uniform(-1, 1, SHAPE) for _ in range(2)]


def differences(program: Program, values: list[np.ndarray], log: list[str]) -> list[np.ndarray]:
    """Central differences of the loss over the steps that the recorded run took."""
    step = 1e-6

    def value() -> float:
        return run(tl, program, [tl.tensor(v) for v in values], log)[0].item()

    result = []
    for v in values:
        g = np.zeros_like(v)
        for i in np.ndindex(v.shape):
            before = v[i]
            v[i] = before + step
            up = value()
            v[i] = before - step
            down = value()
            v[i] = before
            g[i] = (up - down) / (2 * step)
        result.append(g)
    return result


def gradients(lib: Any, program: Program, values: list[np.ndarray]) -> tuple[Any, list[str], Any]:
    """All tensors alive, the log, and the gradients (None if backward was refused)."""
    leaves = [lib.tensor(v, requires_grad=True) for v in values]
    loss, pool, log = run(lib, program, leaves)
    try:
        return pool, log, [np.asarray(g) for g in lib.autograd.grad(loss, leaves)]
    except RuntimeError as error:
        assert "modified by an in" in str(error)
        return pool, log, None


def cuts_gradients(program: Program) -> bool:
    """Whether differences see what gradients, by request, do not."""
    return any(name in ("detach", "no_grad_mul", "detach_add") for _, name, _ in program)


@pytest.mark.parametrize("chunk", range(4))
def test_gradients_of_random_programs_equal_differences(chunk: int) -> None:
    checked = 0
    for seed in range(1000 + 60 * chunk, 1000 + 60 * (chunk + 1)):
        program = make_program(seed, multi_output_writes=True)
        if cuts_gradients(program):
            continue
        values = starting_values(seed)
        _, log, found = gradients(tl, program, values)
        if found is None:
            continue
        expected = differences(program, values, log)
        np.testing.assert_allclose(
            found, expected, rtol=1e-4, atol=1e-5, err_msg=f"program {seed}: {program}"
        )
        checked += 1
    assert checked >= 20


def known_difference(theirs: str, ours: str) -> bool:
    """Steps where torch and we differ for good reasons; the rest of the program cannot be compared.

    Expanded tensors: we refuse every write, torch lets some pass. Stale views: torch may take a
    view whose base has been rewritten for a leaf.
    """
    return "single memory" in theirs + ours or ("a leaf Variable" in theirs and not ours)


@pytest.mark.filterwarnings("ignore:Use of .* on expanded tensors is deprecated")
@pytest.mark.parametrize("chunk", range(4))
def test_random_programs_do_what_torch_does(torch: Any, chunk: int) -> None:
    compared = refused = 0
    for seed in range(150 * chunk, 150 * (chunk + 1)):
        program = make_program(seed, multi_output_writes=False)
        values = starting_values(seed)
        their_pool, their_log, theirs = gradients(torch, program, values)
        our_pool, our_log, ours = gradients(tl, program, values)
        where = f"program {seed}: {[(k, n) for k, n, _ in program]}"
        different = [(a, b) for a, b in zip(their_log, our_log, strict=True) if bool(a) != bool(b)]
        if different:
            assert known_difference(*different[0]), f"{where}: {different[0]}"
            continue
        for a, b in zip(their_pool, our_pool, strict=True):
            assert (tuple(b.shape), b.requires_grad, b.is_leaf) == (
                tuple(a.shape),
                a.requires_grad,
                a.is_leaf,
            ), where
            np.testing.assert_allclose(b.detach().numpy(), a.detach().numpy(), err_msg=where)
        if all(kind != "plain" for kind, _, _ in program):
            for a, b in zip(their_pool, our_pool, strict=True):
                assert layout(a) == layout(b), where
        if theirs is None:
            refused += 1
            if ours is not None and not cuts_gradients(program):
                theirs = differences(program, values, our_log)
        else:
            compared += 1
        if theirs is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=where)
    assert compared > 100
    assert refused > 10


def layout(t: Any) -> tuple[Any, ...]:
    steps = [step for n, step in zip(t.shape, t.stride(), strict=True) if n > 1]
    return steps, t.storage_offset(), t.is_contiguous()
