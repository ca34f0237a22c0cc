"""cuDNN's frontend on the host: graphs of convolution and attention on memory given by address."""

import enum

import numpy as np
from ml_dtypes import bfloat16

from tensorlib.backend import NUMPY
from tensorlib.backend import conv as plain

built = []  # graphs
refused = set()  # names of operations that no engine takes


class cudnnGraphNotSupportedError(RuntimeError):
    """What the frontend raises."""


data_type = enum.Enum("data_type", "FLOAT DOUBLE HALF BFLOAT16")
heur_mode = enum.Enum("heur_mode", "A B FALLBACK")
build_plan_policy = enum.Enum("build_plan_policy", "HEURISTICS_CHOICE ALL")
numerical_note = enum.Enum("numerical_note", "TENSOR_CORE DOWN_CONVERT_INPUTS NONDETERMINISTIC")
_NUMPY = {"FLOAT": np.float32, "DOUBLE": np.float64, "HALF": np.float16, "BFLOAT16": bfloat16}


class Handle:
    stream = None


def create_handle():
    return Handle()


def destroy_handle(handle):
    """Nothing to do."""


def set_stream(handle, stream):
    handle.stream = stream


def backend_version():
    return 92800


class Tensor:
    def __init__(self, dim=None, stride=None, dtype=None, uid=None):
        self.dim, self.stride, self.dtype, self.uid = dim, stride, dtype, uid
        self.output = False

    def set_output(self, value):
        self.output = value
        return self

    def set_data_type(self, dtype):
        self.dtype = dtype
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def set_uid(self, uid):
        self.uid = uid
        return self

    def at(self, addresses):
        """The tensor in memory."""
        assert addresses[self.uid] % 16 == 0 and min(self.stride) > 0
        dtype = np.dtype(_NUMPY[self.dtype.name])
        count = 1 + sum((n - 1) * s for n, s in zip(self.dim, self.stride, strict=True))
        raw = np.ctypeslib.ctypes.c_char * (count * dtype.itemsize)
        flat = np.frombuffer(raw.from_address(addresses[self.uid]), dtype)
        steps = [s * dtype.itemsize for s in self.stride]
        return np.lib.stride_tricks.as_strided(flat, self.dim, steps)


def _wide(x):
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


class pygraph:
    """Operations are kept in order; `values` hold what has been computed."""

    def __init__(self, *, io_data_type, intermediate_data_type, compute_data_type, handle):
        assert isinstance(handle, Handle)
        self.compute, self.handle = compute_data_type, handle
        self.operations, self.tensors, self.notes, self.policy = [], [], [], None
        self.executed = 0
        built.append(self)

    def tensor(self, *, dim, stride, data_type, uid):
        self.tensors.append(Tensor(dim, stride, data_type, uid))
        return self.tensors[-1]

    def _add(self, name, function, count=1):
        if name in refused:
            raise cudnnGraphNotSupportedError(name)
        outs = [Tensor() for _ in range(count)]
        self.operations.append((name, function, outs))
        return outs if count > 1 else outs[0]

    def conv_fprop(self, *, image, weight, pre_padding, post_padding, stride, dilation):
        padding = tuple(zip(pre_padding, post_padding, strict=True))

        def run(get, outs):
            x, w = get(image), get(weight)
            groups = x.shape[1] // w.shape[1]
            return [plain.convolve(NUMPY, x, w, None, tuple(stride), padding, dilation, groups)]

        return self._add("conv_fprop", run)

    def conv_dgrad(self, *, loss, filter, pre_padding, post_padding, stride, dilation):
        padding = tuple(zip(pre_padding, post_padding, strict=True))

        def run(get, outs):
            y, w = get(loss), get(filter)
            groups, sizes = outs[0].dim[1] // w.shape[1], tuple(outs[0].dim[2:])
            args = sizes, tuple(stride), padding, tuple(dilation), groups
            return [plain.convolve_data(NUMPY, y, w, *args)]

        return self._add("conv_dgrad", run)

    def conv_wgrad(self, *, image, loss, pre_padding, post_padding, stride, dilation):
        padding = tuple(zip(pre_padding, post_padding, strict=True))

        def run(get, outs):
            x, y = get(image), get(loss)
            groups, sizes = x.shape[1] // outs[0].dim[1], tuple(outs[0].dim[2:])
            args = sizes, tuple(stride), padding, tuple(dilation), groups
            return [plain.convolve_weight(NUMPY, x, y, *args)]

        return self._add("conv_wgrad", run)

    def bias(self, *, input, bias):
        return self._add("bias", lambda get, outs: [get(input) + get(bias)])

    def sdpa(self, *, q, k, v, generate_stats, attn_scale, use_causal_mask):
        assert generate_stats and type(attn_scale) is float and type(use_causal_mask) is bool

        def run(get, outs):
            p, lse = _softmax(get(q), get(k), attn_scale, use_causal_mask)
            values = _repeated(get(v), p.shape[1])
            return [p @ values, lse[..., None]]

        return self._add("sdpa", run, 2)

    def sdpa_backward(
        self, *, q, k, v, o, dO, stats, attn_scale, use_causal_mask, use_deterministic_algorithm
    ):
        assert type(attn_scale) is float and type(use_causal_mask) is bool

        def run(get, outs):
            p, lse = _softmax(get(q), get(k), attn_scale, use_causal_mask)
            np.testing.assert_allclose(get(stats)[..., 0], lse, rtol=1e-2, atol=1e-2)
            heads, g = p.shape[1], get(dO)
            keys, values = _repeated(get(k), heads), _repeated(get(v), heads)
            ds = p * (g @ values.swapaxes(2, 3) - (g * get(o)).sum(-1)[..., None]) * attn_scale
            shared = get(k).shape[1]
            join = lambda x: x.reshape(len(x), shared, -1, *x.shape[2:]).sum(2)  # noqa: E731
            return [
                ds @ keys, join(ds.swapaxes(2, 3) @ get(q)), join(p.swapaxes(2, 3) @ g),
            ]  # fmt: skip

        return self._add("sdpa_backward", run, 3)

    def validate(self):
        self.steps = ["validate"]

    def build_operation_graph(self):
        self.steps.append("build_operation_graph")

    def create_execution_plans(self, heuristics):
        self.steps.append("create_execution_plans")

    def deselect_numeric_notes(self, notes):
        assert self.steps[-1] == "create_execution_plans"
        self.notes = [n.name for n in notes]

    def check_support(self):
        self.steps.append("check_support")

    def build_plans(self, policy):
        assert self.steps[-1] == "check_support"
        self.policy = policy

    def get_workspace_size(self):
        return 256

    def execute(self, addresses, workspace, handle):
        assert type(workspace) is int and workspace
        self.executed += 1
        values = {}

        def get(tensor):
            return values[id(tensor)] if id(tensor) in values else _wide(tensor.at(addresses))

        for _, function, outs in self.operations:
            for out, value in zip(outs, function(get, outs), strict=True):
                values[id(out)] = value
                if out.output:
                    out.at(addresses)[...] = value


def _repeated(x, heads):
    return np.repeat(x, heads // x.shape[1], axis=1)


def _softmax(q, k, scale, causal):
    scores = q @ _repeated(k, q.shape[1]).swapaxes(2, 3) * scale
    if causal:
        scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    p = np.exp(scores - top)
    total = p.sum(-1, keepdims=True)
    return p / total, (top + np.log(total))[..., 0]
