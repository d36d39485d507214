"""Compiles every Triton kernel for GPUs that need not be there, and checks what can be read from the result.

Gates per kernel and architecture: the tensor-core instruction is in the PTX where the products are 16-bit or TF32,
no register is spilled and no local memory used, and the shared memory fits the chip. Knows neither torch nor fastdl.

    python build_tools/compile_triton.py --arch 80 90 --kernel grad_weight
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

FAMILY = Path(__file__).parents[1] / "fastdl" / "ops" / "conv_relu_maxpool"
TENSOR_CORE = {80: r"mma\.sync", 90: r"wgmma\.mma_async|mma\.sync", 100: r"tcgen05\.mma|mma\.sync"}
# Shared memory one block may use, bytes: A100; H100; B200.
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


class Case(NamedTuple):
    """One compilation: `types` of the arguments that are not constants, `tensor_cores` whether PTX must use them."""

    label: str
    kernel: object
    types: dict[str, str]
    constants: dict[str, object]
    num_warps: int
    num_stages: int
    tensor_cores: bool


class Result(NamedTuple):
    case: str
    arch: int
    registers: int
    spilled: int
    shared: int
    tensor_core: int
    async_copies: int
    seconds: float
    failure: str | None


def load(name: str) -> ModuleType:
    """A module of the family, without running the package's own `__init__` (which needs torch)."""
    package = ModuleType("conv_relu_maxpool")
    package.__path__ = [str(FAMILY)]
    sys.modules.setdefault("conv_relu_maxpool", package)
    return importlib.import_module(f"conv_relu_maxpool.{name}")


# Input precision and element type: (C, C_out, kernel size) each is compiled for. fp16 and bf16 differ in one name.
SHAPES = {
    ("bf16", "ieee"): ((3, 32, 3), (64, 128, 3), (3, 64, 7), (32, 64, 5)),
    ("fp16", "ieee"): ((64, 128, 3),),
    ("fp32", "tf32"): ((3, 32, 3), (64, 128, 3), (3, 64, 7), (32, 64, 5)),
    ("fp32", "ieee"): ((3, 32, 3), (64, 128, 3)),
}


def cases() -> Iterator[Case]:
    """The kernels at the block sizes the launchers use: few channels and many, pooled and not, both memory formats."""
    for (dtype, precision), shapes in SHAPES.items():
        for C, C_out, kernel in shapes:
            for window in (2, 1):
                for layout in ("nhwc", "nchw") if (C, window) == (64, 2) else ("nhwc",):
                    yield from _convolution_cases(dtype, precision, C, C_out, kernel, window, layout)
    tiles, backward, pool = map(load, ("triton_tiles", "triton_backward", "triton_pool"))
    for dtype in ("fp16", "bf16", "fp32"):
        window = {
            key: value for key, value in _geometry(1, 1, 1, 3, "ieee").items() if key.startswith("POOL")
        }
        window.update(CHANNELS_LAST=True, INDEX_64=False, BLOCK=tiles.ELEMENTWISE_BLOCK)
        yield _case(f"pool {dtype}", pool.bias_relu_maxpool_kernel, dtype, "nhwc", window)
        yield _case(
            f"pool_grad {dtype}",
            pool.bias_relu_maxpool_grad_kernel,
            dtype,
            "nhwc",
            {**window, "POOLED": True},
        )
        yield _case(
            f"sum_parts {dtype}", backward.sum_parts_kernel, dtype, "nhwc", {"BLOCK": tiles.ELEMENTWISE_BLOCK}
        )


def _convolution_cases(
    dtype: str, precision: str, C: int, C_out: int, kernel: int, window: int, layout: str
) -> Iterator[Case]:
    tiles, forward, backward = map(load, ("triton_tiles", "triton_forward", "triton_backward"))
    taps, positions, itemsize = kernel * kernel, window * window, 4 if dtype == "fp32" else 2
    scattered = C < 16 or layout == "nchw"
    geometry = _geometry(C, C_out, kernel, window, precision)
    label = f"{dtype} {precision} C={C} C_out={C_out} {kernel}x{kernel} pool {window} {layout}"
    yield _case(
        f"forward {label}", forward.conv_relu_maxpool_forward_kernel, dtype, layout,
        {**geometry, "POSITIONS": positions}, tiles.forward_tiles(C_out, positions, scattered, precision, itemsize),
    )  # fmt: skip
    geometry["POOLED"] = window > 1
    yield _case(
        f"grad_input {label}", backward.conv_relu_maxpool_grad_input_kernel, dtype, layout,
        geometry, tiles.grad_input_tiles(C, layout == "nchw", precision, itemsize),
    )  # fmt: skip
    yield _case(
        f"grad_weight {label}", backward.conv_relu_maxpool_grad_weight_kernel, dtype, layout,
        {**geometry, "POSITIONS": positions}, tiles.grad_weight_tiles(C, C_out, taps, scattered, precision, itemsize),
    )  # fmt: skip


def _geometry(C: int, C_out: int, kernel: int, window: int, precision: str) -> dict[str, object]:
    return {
        "GROUPS": 1, "C_GROUP": C, "C_OUT_GROUP": C_out, "KERNEL": (kernel, kernel), "STRIDE": (1, 1),
        "PADDING": (kernel // 2, kernel // 2), "DILATION": (1, 1), "POOL_SIZE": (window, window),
        "POOL_STRIDE": (window, window), "POOL_PADDING": (0, 0), "POOL_DILATION": (1, 1),
        "INPUT_PRECISION": precision, "INDEX_64": False,
    }  # fmt: skip


def _case(
    label: str,
    kernel: object,
    dtype: str,
    layout: str,
    constants: dict[str, object],
    tiles: NamedTuple | None = None,
) -> Case:
    options = tiles._asdict() if tiles else {"num_warps": 4, "num_stages": 3}
    # The launcher makes a constant of a stride that is 1.
    units = (
        ("stride_xc", "stride_oc", "stride_c") if layout == "nhwc" else ("stride_xw", "stride_ow", "stride_w")
    )
    constants = {
        **constants,
        **{name: value for name, value in options.items() if name.isupper()},
        **{name: 1 for name in units if name in kernel.arg_names},
    }
    types = {name: _type(name, dtype, constants) for name in kernel.arg_names if name not in constants}
    products = constants.get("INPUT_PRECISION") is not None
    tensor_cores = products and (dtype != "fp32" or constants["INPUT_PRECISION"] == "tf32")
    return Case(label, kernel, types, constants, options["num_warps"], options["num_stages"], tensor_cores)


def _type(name: str, dtype: str, constants: dict[str, object]) -> str:
    if not name.endswith("_ptr"):
        return "i32"
    if name == "record_ptr" or (name == "saved_ptr" and constants["POOLED"]):
        return "*u8"
    return "*fp32" if "parts" in name else f"*{dtype}"


def _aligned(stride: str, constants: dict[str, object]) -> bool:
    channels = constants.get("C_GROUP" if stride.startswith("stride_x") else "C_OUT_GROUP", 16)
    return "stride_xw" not in constants and channels % 16 == 0


def compile_case(case: Case, arch: int) -> Result:
    """One kernel for one architecture."""
    names = case.kernel.arg_names
    signature = {name: case.types.get(name, "constexpr") for name in names}
    # What the launcher finds for real tensors. Channels first, at odd sizes, no stride is a multiple of 16.
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name in case.types
        if name.endswith("_ptr") or (name.startswith("stride") and _aligned(name, case.constants))
    }
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=case.constants, attrs=aligned)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
    start = time.perf_counter()
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    seconds = time.perf_counter() - start
    registers, stack, local = resources(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    result = Result(
        case.label, arch, registers, stack + local, compiled.metadata.shared,
        len(re.findall(TENSOR_CORE[arch], ptx)), len(re.findall(r"cp\.async", ptx)), seconds, None,
    )  # fmt: skip
    return result._replace(failure=failure(case, result, ptx))


def failure(case: Case, result: Result, ptx: str) -> str | None:
    """The first gate that does not hold."""
    if case.tensor_cores and not result.tensor_core:
        return "no tensor-core instruction"
    if result.spilled or re.search(r"(ld|st)\.local", ptx):
        return f"{result.spilled} bytes of local memory"
    if result.shared > SHARED_LIMIT[result.arch]:
        return f"{result.shared} bytes of shared memory, the limit is {SHARED_LIMIT[result.arch]}"
    return None


def resources(cubin: bytes) -> tuple[int, int, int]:
    """(registers, stack bytes, local bytes) a thread, as ptxas counted them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", said)
    return tuple(map(int, found.groups()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--arch", type=int, nargs="+", default=sorted(SHARED_LIMIT), choices=sorted(SHARED_LIMIT)
    )
    parser.add_argument(
        "--kernel", nargs="+", default=[""], help="compile only cases whose label has one of these"
    )
    parser.add_argument("--list", action="store_true", help="print the labels and stop")
    arguments = parser.parse_args()
    chosen = [case for case in cases() if any(part in case.label for part in arguments.kernel)]
    if arguments.list:
        sys.stdout.writelines(f"{case.label}\n" for case in chosen)
        return 0
    width = max((len(case.label) for case in chosen), default=0)
    compiled, failed = 0, 0
    for case in chosen:
        for arch in arguments.arch:
            r = compile_case(case, arch)
            compiled, failed = compiled + 1, failed + (r.failure is not None)
            sys.stdout.write(
                f"{r.case:{width}} sm_{r.arch:<3} {r.registers:3} registers {r.shared:6} B shared {r.tensor_core:4} "
                f"tensor-core {r.async_copies:3} async {r.seconds:5.1f} s  {r.failure or 'ok'}\n"
            )
            sys.stdout.flush()
    sys.stdout.write(f"{compiled} compiled, {failed} failed\n")
    return 1 if failed or not compiled else 0


if __name__ == "__main__":
    sys.exit(main())
