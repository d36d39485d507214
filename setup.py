"""Builds fastdl._C (CPU kernels), fastdl._cuda (CUDA kernels) and fastdl._native (optional, pybind11).

FASTDL_CPU, FASTDL_CUDA, FASTDL_NATIVE = auto | 0 | 1: auto never fails the install, 1 fails with one line.
"""

import os
import runpy
import sys
from glob import glob
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "build_tools"))
import toolchain  # noqa: E402

os.chdir(ROOT)
torch, BuildExtension, CppExtension = toolchain.torch_build_tools()
SCHEMA_HASH = runpy.run_path(str(ROOT / "fastdl" / "_schemas.py"))["SCHEMA_HASH"]

# LibTorch Stable ABI of torch 2.11: one binary for every later torch.
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-DFASTDL_SCHEMA_HASH={SCHEMA_HASH}"]
CXX = ["-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
# psabi: wide vectors never cross a function border here; maybe-uninitialized: a false alarm of GCC 12's intrinsics.
CXX += ["-Wall", "-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-unknown-pragmas", *DEFINES]
NVCC = ["-O3", "-std=c++17", "-lineinfo", "-Werror", "all-warnings", "-DUSE_CUDA", *DEFINES]

CUDA_COMMON = ("csrc/library.cpp", "csrc/common/cpu/pages.cpp")
CUDA_SOURCES = ("_cuda.cu", "_cuda_torch.cpp", "_args_torch.cpp")


def cpu_extension():
    sources = ["csrc/library.cpp", "csrc/cpu_operators.cpp", *glob("csrc/common/cpu/*.cpp")]
    sources += [s for s in glob("csrc/ops/*/*.cpp") if not s.endswith("_torch.cpp")]
    return CppExtension(
        "fastdl._C",
        sorted(sources),
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": CXX},
        extra_link_args=["-s"],
        py_limited_api=True,
    )


def cuda_extension(cuda_home):
    # Not CUDAExtension: the CUDA runtime is linked statically, so that one binary spans CUDA's minor versions.
    extension = CppExtension(
        "fastdl._cuda",
        sorted([*CUDA_COMMON, *(s for kind in CUDA_SOURCES for s in glob(f"csrc/ops/*/*{kind}"))]),
        include_dirs=[str(ROOT / "csrc"), f"{cuda_home}/include"],
        library_dirs=[f"{cuda_home}/lib64"],
        extra_compile_args={"cxx": [*CXX, "-DUSE_CUDA"], "nvcc": NVCC},
        extra_link_args=["-s", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", "-Wl,--exclude-libs,ALL"],
        py_limited_api=True,
    )
    extension.libraries += ["cudart_static", "rt", "pthread", "dl"]
    return extension


def native_extension():
    from pybind11.setup_helpers import Pybind11Extension

    return Pybind11Extension(
        "fastdl._native",
        ["csrc/native.cpp", "csrc/common/cpu/isa.cpp"],
        include_dirs=[str(ROOT / "csrc")],
        cxx_std=17,
        optional=True,
    )


plan = toolchain.plan(torch, have_cuda_sources=bool(glob("csrc/ops/*/*_cuda.cu")))
extensions = []
if plan.cpu.build:
    extensions.append(cpu_extension())
if plan.cuda.build:
    extensions.append(cuda_extension(plan.cuda_home))
if plan.native.build:
    extensions.append(native_extension())
print(plan, flush=True)

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
    # Without pybind11's module nothing touches Python's ABI.
    options={} if plan.native.build else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
