"""The methods of `Tensor` that are functions of `tensorlib.ops`, and those that write in place.

A function becomes a method by being named in the class body; its in-place form (``add_``) is made
from it by `inplace`.
"""

from __future__ import annotations

import math
from typing import Any

from . import random
from .autograd.core import TensorBase, TensorFields, state, wrap
from .autograd.inplace import assign, check_writable, inplace, reshaped_inplace
from .backend import get_backend
from .dtypes import can_cast
from .errors import ArgumentError, AutogradError, DtypeError
from .ops import (
    activation,
    comparison,
    creation,
    elementwise,
    indexing,
    joining,
    products,
    reduction,
    shaping,
    sorting,
    transcendental,
)
from .ops import softmax as softmax_ops
from .ops.comparison import eq, ge, gt, le, lt, ne
from .ops.elementwise import mul, neg


class Methods(TensorFields):
    """Operations as methods."""

    __slots__ = ()

    abs = absolute = elementwise.abs
    add = elementwise.add
    sub = elementwise.sub
    subtract = elementwise.sub
    mul = mul
    multiply = mul
    div = divide = true_divide = elementwise.div
    floor_divide = elementwise.floor_divide
    remainder = elementwise.remainder
    fmod = elementwise.fmod
    pow = transcendental.pow
    neg = negative = neg
    reciprocal = transcendental.reciprocal
    square = transcendental.square
    sign = elementwise.sign
    sgn = elementwise.sgn
    frac = elementwise.frac
    exp = transcendental.exp
    exp2 = transcendental.exp2
    expm1 = transcendental.expm1
    log = transcendental.log
    log2 = transcendental.log2
    log10 = transcendental.log10
    log1p = transcendental.log1p
    sqrt = transcendental.sqrt
    rsqrt = transcendental.rsqrt
    logaddexp = transcendental.logaddexp
    logit = transcendental.logit
    sin = transcendental.sin
    cos = transcendental.cos
    tan = transcendental.tan
    sinh = transcendental.sinh
    cosh = transcendental.cosh
    tanh = transcendental.tanh
    asin = arcsin = transcendental.asin
    acos = arccos = transcendental.acos
    atan = arctan = transcendental.atan
    atan2 = arctan2 = transcendental.atan2
    asinh = arcsinh = transcendental.asinh
    acosh = arccosh = transcendental.acosh
    atanh = arctanh = transcendental.atanh
    sigmoid = transcendental.sigmoid
    erf = transcendental.erf
    erfc = transcendental.erfc
    erfinv = transcendental.erfinv
    lgamma = transcendental.lgamma
    digamma = transcendental.digamma

    relu = activation.relu

    floor = elementwise.floor
    ceil = elementwise.ceil
    round = elementwise.round
    trunc = fix = elementwise.trunc
    clamp = clip = elementwise.clamp
    clamp_min = elementwise.clamp_min
    clamp_max = elementwise.clamp_max
    maximum = elementwise.maximum
    minimum = elementwise.minimum
    eq = eq
    ne = not_equal = ne
    lt = less = lt
    le = less_equal = le
    gt = greater = gt
    ge = greater_equal = ge
    equal = comparison.equal
    isclose = comparison.isclose
    allclose = comparison.allclose
    isnan = comparison.isnan
    isinf = comparison.isinf
    isfinite = comparison.isfinite
    nan_to_num = comparison.nan_to_num
    logical_and = comparison.logical_and
    logical_or = comparison.logical_or
    logical_xor = comparison.logical_xor
    logical_not = comparison.logical_not
    bitwise_and = comparison.bitwise_and
    bitwise_or = comparison.bitwise_or
    bitwise_xor = comparison.bitwise_xor
    bitwise_not = comparison.bitwise_not
    bitwise_left_shift = comparison.bitwise_left_shift
    bitwise_right_shift = comparison.bitwise_right_shift
    lerp = elementwise.lerp
    addcmul = elementwise.addcmul
    addcdiv = elementwise.addcdiv
    conj = elementwise.conj
    conj_physical = elementwise.conj_physical
    angle = transcendental.angle
    clone = elementwise.clone
    detach = elementwise.detach

    contiguous = shaping.contiguous

    sum = reduction.sum
    mean = reduction.mean
    prod = reduction.prod
    nansum = reduction.nansum
    amax = reduction.amax
    amin = reduction.amin
    aminmax = reduction.aminmax
    max = reduction.max
    min = reduction.min
    argmax = reduction.argmax
    argmin = reduction.argmin
    any = reduction.any
    all = reduction.all
    count_nonzero = reduction.count_nonzero
    var = reduction.var
    std = reduction.std
    norm = reduction.norm
    cumsum = reduction.cumsum
    logsumexp = softmax_ops.logsumexp
    softmax = softmax_ops.softmax
    log_softmax = softmax_ops.log_softmax

    sort = sorting.sort
    argsort = sorting.argsort
    topk = sorting.topk

    view = shaping.view
    reshape = shaping.reshape
    view_as = shaping.view_as
    reshape_as = shaping.reshape_as
    flatten = shaping.flatten
    ravel = shaping.ravel
    unflatten = shaping.unflatten
    permute = shaping.permute
    t = shaping.t
    transpose = swapaxes = swapdims = shaping.transpose
    movedim = moveaxis = shaping.movedim
    squeeze = shaping.squeeze
    unsqueeze = shaping.unsqueeze
    expand = shaping.expand
    expand_as = shaping.expand_as
    broadcast_to = shaping.broadcast_to

    split = joining.split
    chunk = joining.chunk
    tensor_split = joining.tensor_split
    unbind = joining.unbind
    repeat = joining.repeat
    tile = joining.tile
    flip = joining.flip
    roll = joining.roll
    tril = joining.tril
    triu = joining.triu

    diagonal = shaping.diagonal
    diag = shaping.diag
    trace = shaping.trace
    narrow = shaping.narrow
    select = shaping.select
    unfold = shaping.unfold

    gather = indexing.gather
    scatter = indexing.scatter
    scatter_add = indexing.scatter_add
    index_select = indexing.index_select
    index_add = indexing.index_add
    index_copy = indexing.index_copy
    index_fill = indexing.index_fill
    index_put = indexing.index_put
    take = indexing.take
    take_along_dim = indexing.take_along_dim
    nonzero = indexing.nonzero
    argwhere = indexing.argwhere
    masked_fill = indexing.masked_fill
    masked_select = indexing.masked_select
    repeat_interleave = indexing.repeat_interleave

    unique = sorting.unique
    bincount = sorting.bincount

    matmul = products.matmul
    mm = products.mm
    bmm = products.bmm
    mv = products.mv
    dot = products.dot
    outer = products.outer
    addmm = products.addmm
    baddbmm = products.baddbmm
    addmv = products.addmv

    multinomial = random.multinomial
    bernoulli = random.bernoulli

    add_ = inplace(add)
    subtract_ = sub_ = inplace(sub)
    multiply_ = mul_ = inplace(mul)
    true_divide_ = divide_ = div_ = inplace(div)
    floor_divide_ = inplace(floor_divide)
    remainder_ = inplace(remainder)
    pow_ = inplace(pow)
    bitwise_xor_ = inplace(bitwise_xor)
    absolute_ = abs_ = inplace(abs)
    negative_ = neg_ = inplace(neg)
    exp_ = inplace(exp)
    log_ = inplace(log)
    sqrt_ = inplace(sqrt)
    rsqrt_ = inplace(rsqrt)
    square_ = inplace(square)
    reciprocal_ = inplace(reciprocal)
    sin_ = inplace(sin)
    cos_ = inplace(cos)
    tan_ = inplace(tan)
    tanh_ = inplace(tanh)
    sigmoid_ = inplace(sigmoid)
    relu_ = inplace(relu)
    erf_ = inplace(erf)
    erfinv_ = inplace(erfinv)
    expm1_ = inplace(expm1)
    log1p_ = inplace(log1p)
    log2_ = inplace(log2)
    log10_ = inplace(log10)
    exp2_ = inplace(exp2)
    lerp_ = inplace(lerp)
    fmod_ = inplace(fmod)
    floor_ = inplace(floor)
    ceil_ = inplace(ceil)
    round_ = inplace(round)
    trunc_ = inplace(trunc)
    sign_ = inplace(sign)
    clip_ = clamp_ = inplace(clamp)
    clamp_min_ = inplace(clamp_min)
    clamp_max_ = inplace(clamp_max)
    addcmul_ = inplace(addcmul)
    addcdiv_ = inplace(addcdiv)
    addmm_ = inplace(addmm)
    masked_fill_ = inplace(masked_fill)
    scatter_ = inplace(scatter)
    scatter_add_ = inplace(scatter_add)
    index_add_ = inplace(index_add)
    index_copy_ = inplace(index_copy)
    index_fill_ = inplace(index_fill)
    index_put_ = inplace(index_put)
    tril_ = inplace(tril)
    triu_ = inplace(triu)
    cumsum_ = inplace(cumsum)
    nan_to_num_ = inplace(nan_to_num)
    logical_not_ = inplace(logical_not)
    bitwise_and_ = inplace(bitwise_and)
    bitwise_or_ = inplace(bitwise_or)
    bitwise_not_ = inplace(bitwise_not)
    unsqueeze_ = reshaped_inplace(unsqueeze)
    squeeze_ = reshaped_inplace(squeeze)
    t_ = reshaped_inplace(t)
    swapdims_ = swapaxes_ = transpose_ = reshaped_inplace(transpose)

    def where(self, condition: Any, other: Any) -> Any:
        """This tensor where the condition holds, `other` elsewhere."""
        return elementwise.where(condition, self, other)


class Writing(TensorFields):
    """Methods that write into a tensor's memory."""

    __slots__ = ()

    def copy_(self: Any, src: Any, non_blocking: Any = False) -> Any:
        """Write the elements of `src` (broadcast, and converted to this dtype and device)."""
        source = src if isinstance(src, TensorBase) else creation.tensor(src)
        if source._array.dtype.kind == "c" and self._array.dtype.kind != "c":
            source = elementwise.real(source)
        if type(source._array) is not type(self._array):
            source = source.to(self.device)  # type: ignore[attr-defined]
        return assign(self, source, "copy_")  # type: ignore[no-any-return]

    def fill_(self: Any, value: Any) -> Any:
        """Write one number everywhere."""
        filling = value if isinstance(value, TensorBase) else wrap(
            get_backend(self._array).asarray(value, dtype=self._array.dtype)
        )  # fmt: skip
        return assign(self, filling, "fill_")  # type: ignore[no-any-return]

    def zero_(self: Any) -> Any:
        """Write zeros."""
        return self.fill_(0)

    def fill_diagonal_(self: Any, fill_value: Any, wrap: Any = False) -> Any:
        """Write one number on the main diagonal."""
        shaping.diagonal(self).fill_(fill_value)
        return self

    def resize_(self: Any, *sizes: Any) -> Any:
        """Change the shape, with new memory if the old is too small; old elements come first."""
        shape = shaping.shape_of(sizes)
        if self._rg:
            raise AutogradError("resize_: cannot resize variables that require grad")
        b = get_backend(self._array)
        flat = b.ascontiguousarray(self._array).reshape(-1)
        count = math.prod(shape)
        if flat.size < count:
            grown = b.zeros(count, flat.dtype)
            grown[: flat.size] = flat
            flat = grown
        self._array = flat[:count].reshape(shape)
        self._bump()
        return self

    def resize_as_(self: Any, other: Any) -> Any:
        """Change the shape to another tensor's."""
        return self.resize_(tuple(other.shape))

    def share_memory_(self: Any) -> Any:
        """Accepted as in torch; the communicator shares memory where it pays."""
        return self

    def _sample_(self: Any, name: str, values: Any) -> Any:
        check_writable(self, name)
        return assign(self, values, name)  # type: ignore[no-any-return]

    def uniform_(self: Any, from_: Any = 0.0, to: Any = 1.0, *, generator: Any = None) -> Any:
        """Uniform numbers in [from, to)."""
        if from_ > to:
            raise ArgumentError(f"uniform_: from {from_} is larger than to {to}")
        return self._sample_("uniform_", random.uniforms(self, generator) * (to - from_) + from_)

    def normal_(self: Any, mean: Any = 0.0, std: Any = 1.0, *, generator: Any = None) -> Any:
        """Normal numbers with a mean and a standard deviation."""
        if std < 0:
            raise ArgumentError(f"normal_: std is {std}; it must not be negative")
        drawn = random.randn(
            tuple(self.shape), dtype=self.dtype, device=self.device, generator=generator
        )
        return self._sample_("normal_", drawn * std + mean)

    def bernoulli_(self: Any, p: Any = 0.5, *, generator: Any = None) -> Any:
        """1 with probability `p`, else 0."""
        return self._sample_("bernoulli_", random.bernoulli(self.detach(), p, generator=generator))

    def exponential_(self: Any, lambd: Any = 1.0, *, generator: Any = None) -> Any:
        """Exponentially distributed numbers with rate `lambd`."""
        if lambd <= 0:
            raise ArgumentError(f"exponential_: lambd is {lambd}; it must be positive")
        return self._sample_(
            "exponential_", -transcendental.log1p(-random.uniforms(self, generator)) / lambd
        )

    def random_(self: Any, from_: Any = 0, to: Any = None, *, generator: Any = None) -> Any:
        """Integers in [from, to); up to what the dtype holds exactly if `to` is not given."""
        if to is None and from_:
            from_, to = 0, from_
        if to is None:
            d = self.dtype
            exact = {"bool": 1, "bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
            to = 2 ** min(63, exact.get(d.name, 8 * d.itemsize - d.is_signed))
        drawn = random.randint(
            int(from_), int(to), tuple(self.shape), device=self.device, generator=generator
        )
        return self._sample_("random_", drawn.to(self.dtype))

    def _receive(self: Any, result: Any) -> Any:
        """Take the result of an operation that was given this tensor as ``out=``."""
        if state.grad and (self._rg or result._rg):
            raise AutogradError(
                "out=: functions with out= don't support automatic differentiation; use no_grad"
            )
        if not can_cast(result.dtype, self.dtype):
            raise DtypeError(
                f"out=: the result is {result.dtype} and cannot be cast to the given tensor's "
                f"{self.dtype}; pass one of the result's dtype"
            )
        if self._array.shape != result._array.shape:
            self.resize_(tuple(result._array.shape))
        self._array[...] = result._array
        self._bump()
        return self
