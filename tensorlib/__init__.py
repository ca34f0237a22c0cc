"""tensorlib: tensors, autograd and distributed data-parallel training, with PyTorch's names.

>>> import tensorlib as tl
>>> x = tl.ones(2, 2, requires_grad=True)
>>> out = ((x + 3) ** 2 * 2).mean()
>>> out.backward()
>>> x.grad
tensor([[4., 4.],
        [4., 4.]])

`tensorlib.distributed` and `tensorlib.launch` are imported when first asked for.
"""

from math import e, inf, nan, pi
from typing import Any as _Any

from . import accelerator, amp, autograd, backends, cpu, cuda, dtypes, errors
from . import config as __config__
from .accelerator import get_device_module
from .amp import (
    autocast,
    get_autocast_dtype,
    is_autocast_cache_enabled,
    is_autocast_cpu_enabled,
    is_autocast_enabled,
)
from .autograd.anomaly import is_anomaly_enabled
from .autograd.grad_mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from .backend import default_device as get_default_device
from .backend import set_default_device
from .backend.cuda.settings import get_float32_matmul_precision, set_float32_matmul_precision
from .config import show_config
from .device import device
from .dtypes import (
    bfloat16,
    can_cast,
    complex64,
    complex128,
    dtype,
    finfo,
    float16,
    float32,
    float64,
    get_default_dtype,
    iinfo,
    int8,
    int16,
    int32,
    int64,
    promote_types,
    set_default_dtype,
    uint8,
    uint16,
    uint32,
    uint64,
)
from .dtypes import bool_ as bool
from .errors import OutOfMemoryError
from .execution import (
    are_deterministic_algorithms_enabled,
    compile,
    use_deterministic_algorithms,
)
from .formats import (
    channels_last,
    channels_last_3d,
    contiguous_format,
    layout,
    memory_format,
    preserve_format,
    strided,
)
from .legacy import (
    BFloat16Tensor,
    BoolTensor,
    ByteTensor,
    CharTensor,
    DoubleTensor,
    FloatTensor,
    HalfTensor,
    IntTensor,
    LongTensor,
    ShortTensor,
)
from .memory import (
    empty_cache,
    max_memory_allocated,
    memory_allocated,
    memory_reserved,
    reset_peak_memory_stats,
)
from .ops.activation import relu
from .ops.comparison import (
    allclose,
    bitwise_and,
    bitwise_left_shift,
    bitwise_not,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    eq,
    equal,
    ge,
    gt,
    isclose,
    isfinite,
    isinf,
    isnan,
    le,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    lt,
    nan_to_num,
    ne,
)
from .ops.creation import (
    arange,
    as_tensor,
    asarray,
    empty,
    empty_like,
    eye,
    from_dlpack,
    from_numpy,
    frombuffer,
    full,
    full_like,
    linspace,
    logspace,
    ones,
    ones_like,
    scalar_tensor,
    tril_indices,
    triu_indices,
    zeros,
    zeros_like,
)
from .ops.elementwise import (
    abs,
    add,
    addcdiv,
    addcmul,
    ceil,
    clamp,
    clamp_max,
    clamp_min,
    clone,
    complex,
    conj,
    conj_physical,
    detach,
    div,
    floor,
    floor_divide,
    fmod,
    frac,
    imag,
    lerp,
    maximum,
    minimum,
    mul,
    neg,
    real,
    remainder,
    round,
    rsub,
    sgn,
    sign,
    sub,
    trunc,
    where,
)
from .ops.indexing import (
    argwhere,
    gather,
    index_add,
    index_copy,
    index_fill,
    index_put,
    index_select,
    masked_fill,
    masked_select,
    nonzero,
    repeat_interleave,
    scatter,
    scatter_add,
    take,
    take_along_dim,
)
from .ops.joining import (
    cat,
    chunk,
    constant_pad_nd,
    flip,
    hstack,
    meshgrid,
    roll,
    split,
    stack,
    tensor_split,
    tile,
    tril,
    triu,
    unbind,
    vstack,
)
from .ops.products import addmm, addmv, baddbmm, bmm, dot, einsum, matmul, mm, mv, outer, tensordot
from .ops.reduction import (
    all,
    amax,
    amin,
    aminmax,
    any,
    argmax,
    argmin,
    count_nonzero,
    cumsum,
    max,
    mean,
    min,
    nansum,
    norm,
    prod,
    std,
    std_mean,
    sum,
    var,
    var_mean,
)
from .ops.shaping import (
    broadcast_shapes,
    broadcast_tensors,
    broadcast_to,
    diag,
    diagonal,
    flatten,
    movedim,
    narrow,
    permute,
    ravel,
    reshape,
    select,
    squeeze,
    t,
    trace,
    transpose,
    unflatten,
    unsqueeze,
)
from .ops.softmax import log_softmax, logsumexp, softmax
from .ops.sorting import argsort, bincount, searchsorted, sort, topk, unique
from .ops.transcendental import (
    acos,
    acosh,
    angle,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    cos,
    cosh,
    digamma,
    erf,
    erfc,
    erfinv,
    exp,
    exp2,
    expm1,
    lgamma,
    log,
    log1p,
    log2,
    log10,
    logaddexp,
    logit,
    pow,
    reciprocal,
    rsqrt,
    sigmoid,
    sin,
    sinh,
    sqrt,
    square,
    tan,
    tanh,
)
from .printing import set_printoptions
from .questions import (
    get_device,
    is_complex,
    is_floating_point,
    is_nonzero,
    is_signed,
    is_tensor,
    numel,
    result_type,
)
from .random import (
    Generator,
    bernoulli,
    default_generator,
    get_rng_state,
    initial_seed,
    manual_seed,
    multinomial,
    normal,
    rand,
    rand_like,
    randint,
    randint_like,
    randn,
    randn_like,
    randperm,
    seed,
    set_rng_state,
)
from .serialization import load, save
from .tensor import Size, Tensor
from .threads import (
    get_num_interop_threads,
    get_num_threads,
    set_num_interop_threads,
    set_num_threads,
)

# fmt: off
__all__ = [
    "BFloat16Tensor", "BoolTensor", "ByteTensor", "CharTensor", "DoubleTensor", "FloatTensor",
    "Generator", "HalfTensor", "IntTensor", "LongTensor", "OutOfMemoryError", "ShortTensor",
    "Size", "Tensor", "__config__", "__version__", "abs", "absolute", "accelerator", "acos",
    "acosh", "add", "addcdiv", "addcmul", "addmm", "addmv", "all", "allclose", "amax", "amin",
    "aminmax", "amp", "angle", "any",
    "arange", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh",
    "are_deterministic_algorithms_enabled", "argmax", "argmin", "argsort", "argwhere",
    "as_tensor", "asarray", "asin", "asinh", "atan", "atan2", "atanh", "autocast", "autograd",
    "backends",
    "baddbmm", "bernoulli", "bfloat16", "bincount", "bitwise_and", "bitwise_left_shift",
    "bitwise_not", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "bmm", "bool",
    "broadcast_shapes", "broadcast_tensors", "broadcast_to", "can_cast", "cat", "cdouble",
    "ceil", "cfloat", "channels_last", "channels_last_3d", "chunk", "clamp", "clamp_max",
    "clamp_min", "clip", "clone", "compile", "complex", "complex64", "complex128", "concat",
    "concatenate", "conj", "conj_physical", "constant_pad_nd", "contiguous_format", "cos",
    "cosh", "count_nonzero", "cpu", "cuda", "cumsum", "default_generator", "detach", "device",
    "diag",
    "diagonal", "digamma", "div", "divide", "dot", "double", "dtype", "dtypes", "e", "einsum",
    "empty", "empty_cache", "empty_like", "enable_grad", "eq", "equal", "erf", "erfc", "erfinv",
    "errors", "exp", "exp2", "expm1", "eye", "finfo", "fix", "flatten", "flip", "float",
    "float16", "float32", "float64", "floor", "floor_divide", "fmod", "frac", "from_dlpack",
    "from_numpy", "frombuffer", "full", "full_like", "gather", "ge", "get_autocast_dtype",
    "get_default_device",
    "get_default_dtype", "get_device", "get_device_module",
    "get_float32_matmul_precision",
    "get_num_interop_threads", "get_num_threads",
    "get_rng_state", "greater", "greater_equal", "gt", "half", "hstack", "iinfo", "imag",
    "index_add", "index_copy", "index_fill", "index_put", "index_select", "inf",
    "inference_mode", "initial_seed", "int", "int8", "int16", "int32", "int64",
    "is_anomaly_enabled", "is_autocast_cache_enabled", "is_autocast_cpu_enabled",
    "is_autocast_enabled", "is_complex", "is_floating_point", "is_grad_enabled",
    "is_inference_mode_enabled", "is_nonzero", "is_signed", "is_tensor", "isclose", "isfinite",
    "isinf", "isnan", "layout", "le", "lerp", "less", "less_equal", "lgamma", "linspace",
    "load", "log", "log1p", "log2", "log10", "log_softmax", "logaddexp", "logical_and",
    "logical_not", "logical_or", "logical_xor", "logit", "logspace", "logsumexp", "long", "lt",
    "manual_seed", "masked_fill", "masked_select", "matmul", "max", "max_memory_allocated",
    "maximum", "mean", "memory_allocated", "memory_format", "memory_reserved", "meshgrid",
    "min", "minimum", "mm", "moveaxis", "movedim", "mul", "multinomial", "multiply", "mv",
    "nan", "nan_to_num", "nansum", "narrow", "ne", "neg", "negative", "nn", "no_grad",
    "nonzero", "norm", "normal", "not_equal", "numel", "ones", "ones_like", "optim", "outer",
    "permute", "pi", "pow", "preserve_format", "prod", "promote_types", "rand", "rand_like",
    "randint", "randint_like", "randn", "randn_like", "randperm", "ravel", "real", "reciprocal",
    "relu", "remainder", "repeat_interleave", "reset_peak_memory_stats", "reshape",
    "result_type", "roll", "round", "row_stack", "rsqrt", "rsub", "save", "scalar_tensor",
    "scatter", "scatter_add", "searchsorted", "seed", "select", "set_default_device",
    "set_default_dtype", "set_float32_matmul_precision", "set_grad_enabled",
    "set_num_interop_threads", "set_num_threads",
    "set_printoptions", "set_rng_state", "sgn", "short", "show_config", "sigmoid", "sign",
    "sin", "sinh", "softmax", "sort", "split", "sqrt", "square", "squeeze", "stack", "std",
    "std_mean", "strided", "sub", "subtract", "sum", "swapaxes", "swapdims", "t", "take",
    "take_along_dim", "tan", "tanh", "tensor", "tensor_split", "tensordot", "tile", "topk",
    "trace", "transpose", "tril", "tril_indices", "triu", "triu_indices", "true_divide",
    "trunc", "uint8", "uint16", "uint32", "uint64", "unbind", "unflatten", "unique",
    "unsqueeze", "use_deterministic_algorithms", "utils", "var", "var_mean", "vstack", "where",
    "zeros", "zeros_like",
]
# fmt: on

__version__ = "0.1.0"

float = float32
double = float64
half = float16
int = int32
long = int64
short = int16
cfloat = complex64
cdouble = complex128

absolute, arccos, arccosh, arcsin, arcsinh, arctan, arctan2, arctanh = (
    abs, acos, acosh, asin, asinh, atan, atan2, atanh
)  # fmt: skip
clip, concat, concatenate, divide, true_divide, fix, multiply, negative, subtract = (
    clamp, cat, cat, div, div, trunc, mul, neg, sub
)  # fmt: skip
greater, greater_equal, less, less_equal, not_equal = gt, ge, lt, le, ne
moveaxis, row_stack, swapaxes, swapdims = movedim, vstack, transpose, transpose

_LAZY = ("distributed", "launch")


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        import importlib

        return importlib.import_module(f"tensorlib.{name}")
    raise AttributeError(f"module 'tensorlib' has no attribute {name!r}")


from .backend.memory import install as _install_memory  # noqa: E402

_install_memory(compile=False)  # before the first array

from . import nn, optim, utils  # noqa: E402  (they use the names above)
from .ops.creation import tensor  # noqa: E402  (after the module of the same name)
