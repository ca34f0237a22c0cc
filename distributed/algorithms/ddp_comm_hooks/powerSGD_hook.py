"""PowerSGD: the gradient of a matrix as a product of two thin ones.

With M (n, m) the gradient of one weight plus what earlier steps lost, and Q (m, r) from the step
before, one step of the power method is::

    P = mean over ranks of M Q        P made orthonormal        Q = mean over ranks of Mᵀ P

and P Qᵀ, the same on all ranks, takes the place of the mean of M. Vectors, and matrices that would
hardly shrink, are averaged as they are.

Source: Vogels, Karimireddy, Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for
Distributed Optimization, NeurIPS 2019, algorithm 1.
"""

import numpy as np

from tensorlib.autograd.core import wrap
from tensorlib.backend.layout import as_it_lies
from tensorlib.distributed.algorithms.ddp_comm_hooks.default_hooks import average
from tensorlib.distributed.buckets import GradBucket
from tensorlib.distributed.process_group import Group
from tensorlib.distributed.reduction import Array, namespace
from tensorlib.errors import ArgumentError
from tensorlib.futures import Future
from tensorlib.tensor import Tensor

__all__ = ["PowerSGDState", "powerSGD_hook"]


class PowerSGDState:
    """What the hook remembers: the errors, the Qs and how many steps there were.

    Args:
        process_group: the ranks; None: all.
        matrix_approximation_rank: r, the columns of P and Q.
        start_powerSGD_iter: average whole gradients for so many steps first.
        min_compression_rate: compress a matrix if it shrinks at least so many times.
        use_error_feedback: add what was lost to the next step's gradients.
        warm_start: start from the Q of the step before, not from random numbers.
        orthogonalization_epsilon: kept for torch's sake; a QR factorization needs none.
        random_seed: of the first Qs, the same on all ranks.

    Raises:
        ArgumentError: the rank is not positive.
    """

    def __init__(
        self,
        process_group: Group = None,
        matrix_approximation_rank: int = 1,
        start_powerSGD_iter: int = 1000,
        min_compression_rate: float = 2,
        use_error_feedback: bool = True,
        warm_start: bool = True,
        orthogonalization_epsilon: float = 0,
        random_seed: int = 0,
    ) -> None:
        if matrix_approximation_rank < 1:
            raise ArgumentError(
                f"PowerSGDState: got matrix_approximation_rank={matrix_approximation_rank}; pass a "
                "positive number of columns"
            )
        self.process_group = process_group
        self.matrix_approximation_rank = matrix_approximation_rank
        self.start_powerSGD_iter = start_powerSGD_iter
        self.min_compression_rate = min_compression_rate
        self.use_error_feedback, self.warm_start = use_error_feedback, warm_start
        self.orthogonalization_epsilon, self.random_seed = orthogonalization_epsilon, random_seed
        self.iter = 0
        self.errors: dict[int, np.ndarray] = {}
        self.factors: dict[int, list[Array]] = {}

    def compresses(self, shape: tuple[int, ...]) -> bool:
        """Whether a gradient of this shape is sent as a product."""
        if len(shape) < 2:
            return False
        n, m = shape[0], int(np.prod(shape[1:]))
        r = min(self.matrix_approximation_rank, n, m)
        return (n + m) * r * self.min_compression_rate < n * m


def powerSGD_hook(state: PowerSGDState, bucket: GradBucket) -> Future:
    """Average low-rank approximations of the bucket's matrices, and its vectors as they are."""
    step = state.iter
    if bucket.is_last():
        state.iter += 1
    if step < state.start_powerSGD_iter:
        return average(state.process_group, bucket.buffer())
    return _Step(state, bucket, step).start()


class _Step:
    """One bucket in one step, between its two averagings."""

    def __init__(self, state: PowerSGDState, bucket: GradBucket, step: int) -> None:
        self._state, self._bucket = state, bucket
        buffer, self._number = bucket.buffer()._array, bucket.index()
        error = state.errors.get(self._number)
        if state.use_error_feedback:
            if error is not None and error.size == buffer.size:
                buffer += error
            state.errors[self._number] = buffer.copy()
        self._gradients = [as_it_lies(g._array) for g in bucket.gradients()]  # as errors lie
        self._large = [g.reshape(len(g), -1) for g in self._gradients if state.compresses(g.shape)]
        self._small = [g for g in self._gradients if not state.compresses(g.shape)]
        qs = state.factors.get(self._number)
        if qs is None or not state.warm_start:
            qs = self._random_factors(0 if state.warm_start else step)
        self._xp = namespace(buffer)
        self._ps = [
            self._xp.matmul(m, self._basis(q)) for m, q in zip(self._large, qs, strict=True)
        ]

    def _random_factors(self, step: int) -> list[Array]:
        xp = namespace(self._bucket.buffer()._array)
        random = np.random.default_rng((self._state.random_seed, self._number, step))
        widths = [min(self._state.matrix_approximation_rank, *m.shape) for m in self._large]
        return [
            xp.asarray(random.standard_normal((m.shape[1], width)).astype(m.dtype))
            for m, width in zip(self._large, widths, strict=True)
        ]

    def _basis(self, matrix: Array) -> Array:
        return self._xp.linalg.qr(matrix)[0]

    def start(self) -> Future:
        """Average the vectors and P, then Q."""
        first = _joined([*self._small, *self._ps], self._bucket)
        return average(self._state.process_group, wrap(first)).then(self._second)

    def _second(self, done: Future) -> Future:
        parts = _divided(done.value()._array, [*self._small, *self._ps])
        for g, mean in zip(self._small, parts, strict=False):
            g[...] = mean
        self._bases = [self._basis(p) for p in parts[len(self._small) :]]
        self._qs = [self._xp.matmul(m.T, p) for m, p in zip(self._large, self._bases, strict=True)]
        second = _joined(self._qs, self._bucket)
        return average(self._state.process_group, wrap(second)).then(self._finish)

    def _finish(self, done: Future) -> Tensor:
        qs = [q.copy() for q in _divided(done.value()._array, self._qs)]
        for m, p, q in zip(self._large, self._bases, qs, strict=True):
            m[...] = self._xp.matmul(p, q.T)
        self._state.factors[self._number] = qs
        if self._state.use_error_feedback:
            errors = _divided(self._state.errors[self._number], self._gradients)
            for g, lost in zip(self._gradients, errors, strict=True):
                lost[...] = lost - g if self._state.compresses(g.shape) else 0
        return self._bucket.buffer()


def _joined(arrays: list[Array], bucket: GradBucket) -> Array:
    """The arrays as one vector; never an empty one, as every rank averages something."""
    buffer = bucket.buffer()._array
    xp = namespace(buffer)
    none = xp.zeros(0 if arrays else 1, buffer.dtype)
    return xp.concatenate([none, *[a.reshape(-1) for a in arrays]])


def _divided(vector: Array, like: list[Array]) -> list[Array]:
    """The vector's parts in the arrays' shapes; views of it."""
    ends = np.cumsum([a.size for a in like]).tolist()
    parts = namespace(vector).split(vector, ends)[: len(like)]
    return [part.reshape(a.shape) for part, a in zip(parts, like, strict=True)]
