"""Loading: nothing compiled, objects of other schemas, broken files, unknown instruction sets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastdl
from fastdl import _extension, _schemas
from tests.kernel_tests import KERNEL_TESTS

PACKAGE = Path(fastdl.__file__).parent
TESTS = Path(__file__).parent

needs_cpu_kernels = pytest.mark.skipif(
    not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}"
)


@pytest.fixture
def package(tmp_path):
    """A copy of the package without its shared objects; `run` executes code that imports it."""

    class Copy:
        path = tmp_path / "fastdl"

        @staticmethod
        def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
            clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTDL_", "PYTEST_"))}
            clean |= {"PYTHONPATH": str(tmp_path)} | environment
            return subprocess.run(
                [sys.executable, *arguments],
                env=clean,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=600,
            )

        def error(self) -> str:
            """Why its CPU kernels are not loaded."""
            code = f"from fastdl import _extension as e; assert e.__file__.startswith({str(tmp_path)!r}); "
            result = self.run("-c", code + "print(e.cpu.error)")
            assert result.returncode == 0, result.stderr
            return result.stdout.strip()

    shutil.copytree(PACKAGE, Copy.path, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return Copy()


def patched(source: Path, target: Path, old: bytes, new: bytes) -> None:
    content = source.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    target.write_bytes(content.replace(old, new))


@pytest.mark.long
def test_without_compiled_kernels_every_function_works(package):
    """The same tests as everywhere, in a copy of the package in which nothing was built."""
    assert package.error() == "not built"
    # pytest puts the folder that holds a test package first on the path
    tests = package.path.parent / "tests"
    shutil.copytree(TESTS, tests, ignore=shutil.ignore_patterns("__pycache__"))
    result = package.run(
        *KERNEL_TESTS,
        *("-k", "not accuracy or integers", str(tests / "ops")),
        # import the emulation, which lies outside the package
        *("--ignore-glob", str(tests / "ops" / "test_*_cuda.py")),
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", result.stdout).group(1)) > 200
    assert "NO COMPILED KERNELS: not built" in result.stdout


@pytest.mark.long
def test_without_compiled_kernels_the_fallback_is_explained(package):
    code = """
import torch, fastdl
explanation = fastdl.explain("conv_relu_maxpool", torch.ones(1, 8, 8, 8), torch.ones(8, 8, 3, 3))
assert explanation.backend == "reference"
assert ("cpu", "winograd", "CPU kernels are not loaded: not built") in explanation.refused, explanation
fastdl.ops.conv_relu_maxpool(torch.ones(1, 8, 8, 8), torch.ones(8, 8, 3, 3))
"""
    result = package.run("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("falling back to plain PyTorch (said once)") == 1


@needs_cpu_kernels
@pytest.mark.long
def test_an_object_built_for_other_schemas_is_refused(package):
    """The ABI checks only the number of arguments: a wrong object would compute garbage."""
    own, other = _schemas.SCHEMA_HASH.encode(), b"0123456789abcdef"
    patched(_extension.cpu.path, package.path / _extension.cpu.path.name, own, other)
    error = package.error()
    assert error == f"built for other schemas (0123456789abcdef instead of {own.decode()}): rebuild"
    # nothing of it is registered: the raw operators are still the reference
    code = """
import torch, fastdl
print(torch._C._dispatch_has_kernel_for_dispatch_key("fastdl::conv_relu_maxpool", "CPU"))
"""
    assert package.run("-c", code).stdout == "False\n"


@needs_cpu_kernels
@pytest.mark.long
def test_a_changed_schema_asks_for_a_rebuild(package):
    shutil.copy(_extension.cpu.path, package.path)
    schema = package.path / "ops" / "conv_relu_maxpool" / "schema.py"
    text = schema.read_text()
    assert "int algorithm" in text
    schema.write_text(text.replace("int algorithm", "float algorithm"))
    assert package.error().endswith(": rebuild")


@pytest.mark.long
@pytest.mark.parametrize(
    "content", [b"", b"not a shared object", b"\x7fELF" + bytes(100)], ids=["empty", "text", "cut"]
)
def test_a_broken_object_is_said_and_survived(package, content):
    (package.path / "_C.abi3.so").write_bytes(content)
    assert "rebuild" in package.error()


@needs_cpu_kernels
@pytest.mark.long
def test_an_object_cut_short_is_said_and_survived(package):
    """It still carries the right hash."""
    content = _extension.cpu.path.read_bytes()
    at = content.find(b"fastdl-schemas:") + 64
    (package.path / "_C.abi3.so").write_bytes(content[: max(at, len(content) // 2)])
    error = package.error()
    assert error != "None"
    assert "_C.abi3.so" in error


@needs_cpu_kernels
def test_the_loaded_object_carries_the_hash_of_the_schemas():
    assert f"fastdl-schemas:{_schemas.SCHEMA_HASH}".encode() in _extension.cpu.path.read_bytes()


@needs_cpu_kernels
def test_every_raw_operator_of_the_cpu_has_its_kernel():
    for schemas in _schemas.family_schemas().values():
        for schema in schemas:
            name = "fastdl::" + schema.split("(")[0]
            assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"), name


def test_every_raw_operator_is_tagged_and_defined_once():
    for schemas in _schemas.family_schemas().values():
        for schema in schemas:
            operator = getattr(torch.ops.fastdl, schema.split("(")[0]).default
            assert torch.Tag.pt2_compliant_tag in operator.tags
            assert operator._schema.name == "fastdl::" + schema.split("(")[0]


def test_the_hash_depends_on_every_schema(monkeypatch):
    schemas = _schemas.family_schemas()
    before = _schemas.schema_hash()
    changed = {family: (*lines[:-1], lines[-1] + " ") for family, lines in schemas.items()}
    monkeypatch.setattr(_schemas, "family_schemas", lambda: changed)
    assert _schemas.schema_hash() != before


@needs_cpu_kernels
@pytest.mark.long
@pytest.mark.parametrize("value", ["sse2", "AVX2", "", "avx512 "], ids=repr)
def test_an_unknown_instruction_set_is_an_error_at_import(value):
    result = subprocess.run(
        [sys.executable, "-c", "import fastdl"],
        env=os.environ | {"FASTDL_CPU_ISA": value},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert f"got {value!r}" in result.stderr
    assert "'baseline', 'avx2', 'avx512', 'avx512bf16', 'amx'" in result.stderr


@needs_cpu_kernels
@pytest.mark.long
def test_an_instruction_set_this_cpu_lacks_is_an_error_at_import():
    best = torch.ops.fastdl._best_cpu_isa()
    if best == len(_extension.CPU_ISAS) - 1:
        pytest.skip("this CPU has every instruction set")
    missing = _extension.CPU_ISAS[best + 1]
    result = subprocess.run(
        [sys.executable, "-c", "import fastdl"],
        env=os.environ | {"FASTDL_CPU_ISA": missing},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert f"FASTDL_CPU_ISA={missing} is not available" in result.stderr


@needs_cpu_kernels
@pytest.mark.long
def test_loading_leaves_denormals_alone():
    """A shared object linked with -ffast-math sets flush-to-zero for the whole process."""
    code = """
import torch
import fastdl
assert fastdl._extension.cpu.loaded
assert 2.2e-308 / 4 > 0, "flush-to-zero in double"
tiny = torch.full((64,), 1e-40)
assert (tiny * 0.5).count_nonzero() == 64
fastdl.ops.conv_relu_maxpool(torch.ones(2, 16, 16, 16), torch.ones(16, 16, 3, 3), padding=1, pool_size=2)
assert (tiny * 0.5).count_nonzero() == 64, "a kernel left flush-to-zero on"
assert 2.2e-308 / 4 > 0
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.long
def test_importing_prints_nothing_and_needs_no_optional_package():
    blocked = ("triton", "numpy", "pybind11", "onnx", "matplotlib", "sklearn", "mlxtend", "tqdm", "diffusers")
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked[2:]!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import fastdl
assert "triton" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
