"""The stand-in for CuPy refuses what CuPy refuses, and knows what CuPy has."""

import json
import sys

import ml_dtypes
import numpy as np
import pytest

from .. import strict_cupy
from ..strict_cupy import make_table

cupy = strict_cupy.cupy


@pytest.fixture(autouse=True)
def installed():
    with strict_cupy.installed(devices=2):
        yield


def ones(*shape, dtype=np.float32):
    return cupy.ones(shape, dtype)


def test_the_table_is_that_of_the_installed_cupy(run_process):
    code = f"import json, runpy; m = runpy.run_path({make_table.__file__!r}); "
    code += "print(json.dumps(m['collect'](), sort_keys=True))"
    found = run_process([sys.executable, "-c", code], timeout_s=60)
    if "No module named 'cupy'" in found.stderr:
        pytest.skip("CuPy is not installed")
    installed = json.loads(found.stdout)
    table = json.loads(make_table.FILE.read_text())
    if installed["version"] != table["version"]:
        pytest.skip(f"the table is of CuPy {table['version']}, installed is {installed['version']}")
    assert installed == table


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, host: x + host,
        lambda x, host: host + x,
        lambda x, host: cupy.add(x, host),
        lambda x, host: np.add(x, host),
        lambda x, host: x * np.asarray(2.0),
        lambda x, host: cupy.concatenate([x, host]),
        lambda x, host: cupy.where(x > 0, x, host),
        lambda x, host: cupy.matmul(x, host),
        lambda x, host: x[np.array([0, 1])],
    ],
)
def test_host_arrays_are_refused(mix):
    with pytest.raises((TypeError, AttributeError)):
        mix(ones(2, 2), np.ones((2, 2), np.float32))


def test_writing_a_host_array_is_refused():
    with pytest.raises(ValueError, match="non-scalar"):
        ones(2)[:] = np.ones(2)


@pytest.mark.parametrize("look", [float, int, bool, complex, lambda x: 1 if x else 0])
def test_hidden_syncs_raise_unless_they_are_allowed(look):
    with pytest.raises(strict_cupy.HiddenSync):
        look(ones())
    with strict_cupy.allow_syncs():
        assert look(ones()) == 1


def test_open_syncs_are_recorded():
    strict_cupy.syncs.clear()
    x = ones(3)
    x.get(), x[0].item(), x[x > 0], cupy.nonzero(x), cupy.unique(x)
    assert strict_cupy.syncs == ["get", "item", "a boolean index", "nonzero", "unique"]
    assert not isinstance(x, np.ndarray)
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(x)
    with pytest.raises(TypeError):
        range(ones(dtype=np.int64))


def test_functions_dispatch_and_stay_arrays():
    x = ones(2, 3)
    for found in (np.sin(x), np.sum(x), x.sum(), x[0, 0], np.float32(2) * x, cupy.max(x)):
        assert isinstance(found, cupy.ndarray)
    assert x.sum().shape == () and x[0, 0].base is not None
    with pytest.raises(TypeError):
        np.spacing(x)  # which CuPy lacks


@pytest.mark.parametrize(
    "call",
    [
        lambda x: cupy.add(x, x, where=x > 0),
        lambda x: x.sum(initial=0),
        lambda x: x.astype("f8", casting="unsafe"),
        lambda x: cupy.vecdot(x, x),
        lambda x: cupy.empty(2, np.longdouble),
        lambda x: cupy.sort(x, kind="quicksort"),
        lambda x: x.flags.writeable,
        lambda x: cupy.add.at(ones(2, dtype=np.complex64), cupy.asarray([0]), 1),
        lambda x: cupy.subtract(x > 0, x > 0),
        lambda x: cupy.argsort(x.astype(ml_dtypes.bfloat16)),
        lambda x: cupy.repeat(x, cupy.asarray([1, 2])),
        lambda x: cupy.repeat(x, np.asarray([1, 2])),
        lambda x: cupy.logical_not(x.astype("c8")),
        lambda x: hash(x),
    ],
)
def test_what_cupy_lacks_is_refused(call):
    with pytest.raises((TypeError, ValueError, AttributeError)):
        call(ones(2))


def test_loops_decide_on_dtypes():
    half = ones(2, dtype=ml_dtypes.bfloat16)
    assert (half + half).dtype == (half * 2).dtype == ml_dtypes.bfloat16
    assert (half * 2.0).dtype == np.float32  # float64 and bfloat16 have no common loop before it
    assert (cupy.zeros(2, np.int8) * 2.5).dtype == np.float64  # a number of a higher kind
    assert cupy.where(half > 0, half, 0).dtype == np.float32  # there is no loop of bfloat16
    assert cupy.sqrt(ones(2, dtype=np.int64)).dtype == np.float64
    with pytest.raises(AssertionError, match="crashes"):
        cupy.matmul(half.reshape(1, 1, 2), half.reshape(1, 2, 1))


def test_indices_beyond_the_end_wrap_around():
    x = cupy.arange(3)
    assert x[cupy.asarray([4, -4])].tolist() == [1, 2]
    assert cupy.take(x, cupy.asarray([3])).tolist() == [0]


def test_views_share_memory_and_results_take_new():
    x = ones(4, 4)
    used = cupy.get_default_memory_pool().used_bytes()
    y = x.T[1:].reshape(3, 4)
    y += 1
    assert x[0, 1].item() == 2
    assert cupy.get_default_memory_pool().used_bytes() == used
    z = x + 1
    assert cupy.get_default_memory_pool().used_bytes() == used + 512
    del z
    assert cupy.get_default_memory_pool().used_bytes() == used


def test_arrays_of_another_device_are_refused():
    x = ones(2)
    with cupy.cuda.Device(1):
        y = ones(2)
        assert (y + y).device.id == 1
    with pytest.raises(ValueError, match="different from the current device"):
        x + y
