"""The wheel: exactly `tensorlib`, and nothing that overwrites another project's `distributed`."""

import configparser
import hashlib
import shutil
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from subprocess import CompletedProcess

import pytest

RunProcess = Callable[..., CompletedProcess[str]]

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = ("tensorlib", "distributed", "launch")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")

# Runs against the installed wheel: prints where each package was imported from.
IMPORT = """
import distributed, tensorlib, tensorlib.distributed, tensorlib.launch.cli
print(distributed.__file__, tensorlib.__file__, tensorlib.distributed.__file__, sep="\\n")
try:
    import launch
except ModuleNotFoundError:
    print("no launch")
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, so that no build leaves files in the working tree."""
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    for name in (*SOURCES, "tests", "examples"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, run_process: RunProcess) -> Path:
    """The wheel built from the checkout, with the setuptools that is installed here."""
    target = checkout.parent / "wheel"
    run_process(
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, checkout],
        timeout_s=300,
        check=True,
    )
    (path,) = target.glob("*.whl")
    return path


def source_modules(checkout: Path) -> set[str]:
    """Every file of the three source folders that belongs into a wheel, as it is named there."""
    names = set()
    for top in SOURCES:
        prefix = "" if top == "tensorlib" else "tensorlib/"
        for path in (checkout / top).rglob("*"):
            if path.suffix in (".py", ".cu", ".cuh"):
                names.add(prefix + path.relative_to(checkout).as_posix())
    return names


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.suffix not in ("", ".pyc"))
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file()
    }


def test_links_lead_to_the_top_level_folders() -> None:
    for name in ("distributed", "launch"):
        assert (ROOT / "tensorlib" / name).resolve() == ROOT / name


def test_wheel_holds_tensorlib_and_nothing_else(checkout: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    dist_info = f"tensorlib-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"tensorlib", dist_info}
    inside = {name for name in names if name.startswith("tensorlib/")}
    assert inside == source_modules(checkout) | {"tensorlib/py.typed"}
    assert {"tensorlib/distributed/__init__.py", "tensorlib/launch/cli.py"} <= inside
    assert f"{dist_info}/licenses/LICENSE" in names


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        dist_info = f"tensorlib-{PROJECT['version']}.dist-info"
        metadata = message_from_bytes(archive.read(f"{dist_info}/METADATA"))
        entry_points = configparser.ConfigParser()
        entry_points.read_string(archive.read(f"{dist_info}/entry_points.txt").decode())
    assert metadata["Name"] == "tensorlib"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    requires = metadata.get_all("Requires-Dist", [])
    base = {line.split(">")[0] for line in requires if "extra ==" not in line}
    kernels = {"numba", "scipy-openblas32"}
    assert base == {"numpy", "scipy", "ml_dtypes", "threadpoolctl"} | kernels
    extras = {"mpi", "cuda12", "cuda13", "cudnn12", "cudnn13", "examples", "test", "dev"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    assert not any("torch" in line for line in requires)
    assert dict(entry_points["console_scripts"]) == {"tlrun": "tensorlib.launch.cli:main"}


def test_installs_beside_dask_distributed(
    wheel: Path, tmp_path: Path, run_process: RunProcess
) -> None:
    # A stand-in with the name and the layout of Dask's package, in the same site folder.
    dask = tmp_path / "distributed"
    dask.mkdir()
    (dask / "__init__.py").write_text('OWNER = "dask"\n')
    (dask / "core.py").write_text("PORT = 8786\n")
    before = digest(dask)

    install = [*PIP, "install", "--no-deps", "--no-compile", "--target", tmp_path, wheel]
    run_process(install, timeout_s=300, check=True)
    assert digest(dask) == before
    assert not (tmp_path / "launch").exists()
    assert (tmp_path / "bin" / "tlrun").is_file()

    imported = run_process(
        [sys.executable, "-c", IMPORT], env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, check=True
    )
    assert imported.stdout.splitlines() == [
        str(tmp_path / "distributed" / "__init__.py"),
        str(tmp_path / "tensorlib" / "__init__.py"),
        str(tmp_path / "tensorlib" / "distributed" / "__init__.py"),
        "no launch",
    ]


def test_source_archive_builds_the_same_wheel(
    checkout: Path, wheel: Path, tmp_path: Path, run_process: RunProcess
) -> None:
    build_sdist = "import setuptools.build_meta as b, sys; b.build_sdist(sys.argv[1])"
    run_process([sys.executable, "-c", build_sdist, tmp_path], cwd=checkout, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
        assert not any(member.issym() for member in tar.getmembers())
    assert (
        source_modules(checkout) | {"tensorlib/py.typed", "LICENSE", "tests/conftest.py"} <= names
    )

    run_process(
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, archive],
        timeout_s=300,
        check=True,
    )
    (rebuilt,) = tmp_path.glob("*.whl")
    first, second = zipfile.ZipFile(wheel), zipfile.ZipFile(rebuilt)
    assert set(first.namelist()) == set(second.namelist())
    for name in first.namelist():
        if not name.endswith("/RECORD"):
            assert first.read(name) == second.read(name), name


@pytest.mark.soak
def test_fresh_editable_install(checkout: Path, tmp_path: Path, run_process: RunProcess) -> None:
    """Needs the network: pip fetches the build backend and the dependencies by itself."""
    venv = tmp_path / "venv"
    run_process([sys.executable, "-m", "venv", venv], timeout_s=300, check=True)
    python = venv / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-e", checkout]
    run_process(install, timeout_s=900, check=True)
    code = "import tensorlib.launch, tensorlib.distributed as d; print(d.__file__)"
    imported = run_process([python, "-c", code], cwd=tmp_path, check=True)
    assert Path(imported.stdout.strip()).resolve() == checkout / "distributed" / "__init__.py"
    assert run_process([venv / "bin" / "tlrun", "--help"], cwd=tmp_path).returncode == 0
    installed = run_process([python, "-m", "pip", "list", "--format=freeze"], check=True).stdout
    names = {line.split("==")[0].lower().replace("-", "_") for line in installed.splitlines()}
    names -= {"pip", "setuptools"}
    kernels = {"numba", "llvmlite", "scipy_openblas32"}
    assert names == {"tensorlib", "numpy", "scipy", "ml_dtypes", "threadpoolctl"} | kernels
