"""The libraries' real bindings, where they are installed: names, numbers, arguments, descriptors.

No GPU is needed. cuBLASLt's descriptors are made by the real library in a process of its own, to
which a driver is shown that knows nothing but its version.
"""

import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tensorlib.backend import layout
from tensorlib.backend.cuda import attention, conv, dnn, gemm
from tensorlib.backend.cuda.dnn import Layout

from . import fake_cublaslt, fake_cudnn

ROOT = Path(__file__).parents[2]


def installed(name, what):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {what}")
    return pytest.importorskip(name)


@pytest.fixture
def lt():
    installed("nvmath", "nvmath-python")
    from nvmath.bindings import cublasLt

    return cublasLt


FUNCTIONS = [
    name for name, value in vars(fake_cublaslt).items()
    if inspect.isfunction(value) and not name.startswith("_")
]  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_cublaslt_take_the_same_arguments(lt, name):
    real = re.match(r"\w+\((.*?)\)", getattr(lt, name).__doc__).group(1)
    expected = [part.split()[-1] for part in real.split(",") if part.strip()]
    assert list(inspect.signature(getattr(fake_cublaslt, name)).parameters) == expected


@pytest.mark.parametrize(
    "name", ["MatmulDescAttribute", "MatrixLayoutAttribute", "MatmulPreferenceAttribute"]
)
def test_attributes_have_the_same_numbers(lt, name):
    for member in getattr(fake_cublaslt, name):
        assert int(getattr(lt, name)[member.name]) == member


def test_epilogues_types_and_precisions_have_the_same_numbers(lt):
    from nvmath.bindings import cublas

    names = {
        "": "DEFAULT", "bias": "BIAS", "relu": "RELU_BIAS", "gelu_tanh": "GELU_BIAS",
        "gelu_tanh_aux": "GELU_AUX_BIAS", "gelu_tanh_back": "DGELU_BGRAD", "row_sums": "BGRADB",
    }  # fmt: skip
    assert {k: int(lt.Epilogue[names[k]]) for k in gemm.EPILOGUES} == gemm.EPILOGUES
    assert int(cublas.ComputeType.COMPUTE_32F) == gemm.COMPUTE_32F
    assert int(cublas.ComputeType.COMPUTE_32F_FAST_TF32) == gemm.COMPUTE_TF32
    assert int(cublas.ComputeType.COMPUTE_64F) == gemm.COMPUTE_64F
    assert int(lt.ReductionScheme.COMPUTE_TYPE) == gemm._SUM_IN_SINGLE
    import nvmath

    types = nvmath.CudaDataType
    for name, number in (("R_32F", 0), ("R_64F", 1), ("R_16F", 2), ("C_32F", 4), ("C_64F", 5)):
        assert int(types[f"CUDA_{name}"]) == number
    assert int(types.CUDA_R_16BF) == gemm.R_16BF


def test_a_result_of_the_heuristic_has_what_is_read(lt):
    result = lt.MatmulHeuristicResult()
    assert result.ptr and isinstance(int(result.workspace_size), int)
    assert isinstance(int(result.state), int)
    fields = lt.matmul_heuristic_result_dtype.fields
    assert fields["algo"][1] == 0  # its address is the algorithm's


DRIVER = "int cuDriverGetVersion(int *version) { *version = 13000; return 0; }\n"
ABSENT = """
cuCtxGetCurrent cuCtxGetLimit cuCtxPopCurrent cuCtxPushCurrent cuDeviceGet cuDeviceGetCount
cuGetErrorName cuGetErrorString cuInit cuKernelGetAttribute cuKernelGetFunction
cuKernelSetAttribute cuLaunchCooperativeKernel cuLaunchKernel cuLaunchKernelEx
cuLibraryGetKernel cuLibraryLoadData cuLibraryLoadFromFile cuLibraryUnload cuLinkAddData
cuLinkComplete cuLinkCreate cuLinkDestroy cuModuleGetFunction cuModuleLoadData
cuModuleUnload cuOccupancyMaxPotentialClusterSize cuStreamGetCtx cuTensorMapEncodeIm2col
cuTensorMapEncodeTiled
""".split()  # what the libraries want to be there when they are loaded
DESCRIBE = """
import numpy as np
from nvmath.bindings import cublasLt as lt
from tensorlib.backend.cuda import gemm
from tensorlib.backend.cuda.gemm_layout import Form, Side

gemm.Plan._choose = lambda self, spec, most: None
def read(attribute):
    cell = np.zeros(1, lt.get_matmul_desc_attribute_dtype(int(attribute)))
    written = np.zeros(1, np.uint64)
    lt.matmul_desc_get_attribute(
        plan._desc, int(attribute), cell.ctypes.data, cell.nbytes, written.ctypes.data
    )
    return int(cell[0])
def read_layout(made, attribute):
    cell = np.zeros(1, lt.get_matrix_layout_attribute_dtype(int(attribute)))
    written = np.zeros(1, np.uint64)
    lt.matrix_layout_get_attribute(
        made, int(attribute), cell.ctypes.data, cell.nbytes, written.ctypes.data
    )
    return int(cell[0])
names, layouts = lt.MatmulDescAttribute, lt.MatrixLayoutAttribute
for dtype in gemm.KINDS:
    for epilogue in gemm.EPILOGUES:
        form = Form(4, 5, 6, 3, Side(True, 8, 48), Side(False, 7, 42))
        spec = gemm.Spec(0, dtype, dtype, form, epilogue, False, (16, 16, 16))
        plan = gemm.Plan(lt, 0, spec, 1 << 20)
        assert (read(names.TRANSA), read(names.TRANSB)) == (0, 1)
        assert read(names.EPILOGUE) == gemm.EPILOGUES[epilogue]
        sides = [
            [read_layout(made, a) for a in (layouts.ROWS, layouts.COLS, layouts.LD,
             layouts.BATCH_COUNT, layouts.STRIDED_BATCH_OFFSET, layouts.ORDER)]
            for made in (plan._y, plan._x, plan._out)
        ]
        assert sides == [[5, 6, 7, 3, 42, 0], [4, 6, 8, 3, 48, 0], [5, 4, 5, 3, 20, 0]], sides
        plan.close()
print("described")
"""


@pytest.fixture
def driver(tmp_path):
    """The environment of a process that finds a driver's stand-in."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, which compiles the driver's stand-in")
    source = tmp_path / "driver.c"
    source.write_text(DRIVER + "".join(f"int {name}(void) {{ return 100; }}\n" for name in ABSENT))
    library = tmp_path / "libcuda.so.1"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source],
        check=True, timeout=60,
    )  # fmt: skip
    return {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}


def test_the_real_library_takes_the_descriptors(lt, driver, run_process):
    done = run_process([sys.executable, "-c", DESCRIBE], env=driver)
    if "NotSupportedError" in done.stderr or "not found" in done.stderr.lower():
        pytest.skip("needs cuBLAS (nvidia-cublas)")
    assert done.stdout.strip() == "described", done.stderr


# --- cuDNN ---------------------------------------------------------------------------------------


@pytest.fixture
def cudnn():
    return installed("cudnn", "nvidia-cudnn-frontend")


def test_the_frontend_has_what_is_named(cudnn):
    for group in ("data_type", "heur_mode", "build_plan_policy", "numerical_note"):
        for member in getattr(fake_cudnn, group):
            assert hasattr(getattr(cudnn, group), member.name), (group, member)
    for name in (
        "create_handle", "destroy_handle", "set_stream", "backend_version",
        "cudnnGraphNotSupportedError",
    ):  # fmt: skip
        assert hasattr(cudnn, name)
    assert set(inspect.signature(cudnn.set_stream).parameters) == {"handle", "stream"}
    for name in (
        "validate", "build_operation_graph", "create_execution_plans", "check_support",
        "build_plans", "get_workspace_size", "deselect_numeric_notes", "execute",
        "execute_plan_at_index", "get_execution_plan_count", "get_workspace_size_plan_at_index",
    ):  # fmt: skip
        assert hasattr(cudnn.pygraph, name), name
    parameters = inspect.signature(cudnn.pygraph.execute_plan_at_index).parameters
    assert list(parameters)[1:5] == ["tensor_dict", "workspace", "index", "handle"]


def graph_of(cudnn, describe, **options):
    types = cudnn.data_type
    graph = cudnn.pygraph(
        io_data_type=types.BFLOAT16, intermediate_data_type=types.FLOAT,
        compute_data_type=types.FLOAT, handle=None,
    )  # fmt: skip
    describe(cudnn, graph, **options)
    return graph


def lying(shape, dtype="bfloat16", last=False):
    order = layout.channels_last_order if last else layout.contiguous_order
    return Layout(shape, conv.strides_in(shape, order(len(shape))), dtype)


@pytest.mark.parametrize("last", [False, True])
def test_graphs_of_convolutions_are_taken(cudnn, last):
    x, w = lying((8, 64, 32, 30), last=last), lying((128, 32, 3, 3), last=last)
    y = lying((8, 128, 16, 28), last=last)
    options = conv.Options((2, 1), ((1, 1), (0, 0)), (1, 1))
    for describe, sides, more, number, out in (
        (conv.forward_graph, (x, w, y), {"bias": True}, conv.Y, y),
        (conv.data_graph, (y, w, x), {}, conv.X, x),
        (conv.weight_graph, (x, y, w), {}, conv.W, w),
    ):
        graph = graph_of(cudnn, describe, sides=sides, options=options, **more)
        (found,) = [t for t in graph.tensors.values() if t.uid == number]
        assert tuple(found.dim) == out.shape and tuple(found.stride) == out.strides
        assert not found.is_virtual
        params = graph.nodes[0].params
        assert params["pre_padding"] == params["post_padding"] == [1, 0]
        assert params["stride"] == [2, 1] and params["dilation"] == [1, 1]


def test_graphs_of_attention_are_taken(cudnn):
    q, k = lying((2, 8, 128, 64)), lying((2, 2, 256, 64))
    out, lse = lying((2, 8, 128, 64), last=False), lying((2, 8, 128, 1), "float32")
    graph = graph_of(
        cudnn, attention.forward_graph, sides=(q, k, k, out, lse), scale=0.125, causal=True
    )
    (node,) = graph.nodes
    assert set(node.inputs) == {"q", "k", "v"} and set(node.outputs) == {"O", "Stats"}
    assert node.outputs["Stats"].uid == attention.LSE
    assert node.params["attn_scale"] == 0.125 and node.params["use_causal_mask"] is True
    sides = (q, k, k, out, lse, out, q, k, k)
    graph = graph_of(
        cudnn, attention.backward_graph, sides=sides, scale=0.5, causal=False, repeatable=True
    )
    (node,) = graph.nodes
    assert set(node.inputs) == {"q", "k", "v", "o", "dO", "stats"}
    assert [t.uid for t in node.outputs.values()] == [attention.DQ, attention.DK, attention.DV]
    assert node.params["use_deterministic_algorithm"] is True
    doc = cudnn._pybind_module.backend_graph.sdpa_backward.__doc__
    assert "use_deterministic_algorithm" in doc and "generate_stats" in (
        cudnn._pybind_module.backend_graph.sdpa.__doc__
    )


# cuDNN plans for a GPU that it is only told of.
H200 = {
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536, "multiProcessorCount": 132, "smCountOrigin": 0, "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024, "oversizedSharedMemoryPerBlock": 0,
    "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1,
    "totalGlobalMem": 150754820096, "smClockRateKHz": 1980000, "memClockRateKHz": 3201000,
    "memoryBusWidth": 6144, "l2CacheSize": 62914560, "cudaDeviceId": 0, "deviceVer": 900,
    "driverVer": 13000, "deviceName": "NVIDIA H200",
}  # fmt: skip
PLAN = """
import sys
import cudnn
from tensorlib.backend import layout
from tensorlib.backend.cuda import attention, conv, dnn
from tensorlib.backend.cuda.dnn import Layout
from tensorlib.backend.cuda.settings import CUDNN

try:
    gpu = cudnn.create_device_properties(sys.argv[1])
except RuntimeError as error:
    sys.exit(f"cannot be told of a GPU: {error}")
class Lib:
    __getattr__ = lambda self, name: getattr(cudnn, name)
    def pygraph(self, *, handle, **options):
        graph = cudnn.pygraph(device_property=gpu, sm_version=90, **options)
        graph.build_plans = lambda policy: None  # compiles
        return graph
def lying(shape, dtype="bfloat16", last=False):
    order = layout.channels_last_order if last else layout.contiguous_order
    return Layout(shape, conv.strides_in(shape, order(len(shape))), dtype)
def heads(n, h, length, width):
    shape = n, h, length, width
    return Layout(shape, (length * h * width, width, h * width, 1), "bfloat16")
cases = []
pads = ((1, 1), (1, 1))
options = conv.Options((2, 1), pads, (1, 1))
for dtype in ("float32", "float16", "bfloat16"):
    for order in ((0, 0, 0), (1, 1, 1), (1, 0, 1), (1, 0, 0)):
        shapes = (4, 16, 16, 16), (24, 16, 3, 3), (4, 24, 8, 16)
        x, w, y = (lying(s, dtype, last) for s, last in zip(shapes, order))
        for bias in (False, True):
            cases.append((dtype, conv.forward_graph, ((x, w, y), bias, options)))
        cases.append((dtype, conv.data_graph, ((y, w, x), options)))
        cases.append((dtype, conv.weight_graph, ((x, y, w), options)))
for n_in, n_out, size, kernel, stride in (  # of a ResNet, channels last
    (3, 64, 32, 7, 2), (64, 64, 16, 1, 1), (64, 256, 16, 1, 1), (256, 512, 16, 1, 2),
    (128, 128, 16, 3, 2), (512, 512, 7, 3, 1), (2048, 512, 7, 1, 1), (64, 32, 1, 1, 1),
):
    pad, out = kernel // 2, (size - 1) // stride + 1
    shapes = (4, n_in, size, size), (n_out, n_in, kernel, kernel), (4, n_out, out, out)
    x, w, y = (lying(s, last=True) for s in shapes)
    step = conv.Options((stride, stride), ((pad, pad), (pad, pad)), (1, 1))
    cases.append(("bfloat16", conv.forward_graph, ((x, w, y), False, step)))
    cases.append(("bfloat16", conv.data_graph, ((y, w, x), step)))
    cases.append(("bfloat16", conv.weight_graph, ((x, y, w), step)))
for n, h, shared, length, keys, width in (
    (2, 8, 8, 128, 128, 64), (1, 3, 3, 37, 53, 40), (2, 8, 2, 64, 256, 128), (1, 4, 4, 5, 5, 256),
):
    q, k = lying((n, h, length, width)), lying((n, shared, keys, width))
    out, lse = heads(n, h, length, width), lying((n, h, length, 1), "float32")
    dk = heads(n, shared, keys, width)
    for causal in (False, True):
        forward = (q, k, k, out, lse), 0.125, causal
        cases.append(("bfloat16", attention.forward_graph, forward))
        for repeatable in (False, True):
            backward = (q, k, k, out, lse, out, out, dk, dk), 0.125, causal, repeatable
            cases.append(("bfloat16", attention.backward_graph, backward))
for CUDNN.deterministic in (False, True):
    for dtype, describe, args in cases:
        def add(lib, graph):
            describe(lib, graph, *args)
        graph = dnn.build(Lib(), dtype, add, None, tf32=CUDNN.deterministic)
        assert graph.get_execution_plan_count() > 0
print("planned", len(cases))
"""


def test_cudnn_has_engines_for_every_graph(cudnn, driver, run_process):
    done = run_process([sys.executable, "-c", PLAN, json.dumps(H200)], env=driver)
    if "cannot be told of a GPU" in done.stderr or "libcudnn" in done.stderr:
        pytest.skip("needs a cuDNN that plans for a GPU by its description")
    assert done.stdout.strip() == "planned 96", done.stderr


def test_types_have_names_at_cudnn(cudnn):
    for name in dnn._TYPES.values():
        assert hasattr(cudnn.data_type, name)
    assert set(dnn._TYPES) >= {str(np.dtype(t)) for t in ("float32", "float64", "float16")}
