"""Compiles every Triton kernel for GPUs that need not be there, and checks what can be read from the result.

Gates per kernel and architecture: the tensor-core instruction is in the PTX where the products are 16-bit or TF32,
no register is spilled and no local memory used, and the shared memory fits the chip. Knows neither torch nor fastdl.
`--arch 80 90` (the default, for CI) or `--all`.

    python build_tools/compile_triton.py --all --kernel grad_weight
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

if importlib.util.find_spec("triton") is None:
    sys.exit("error: triton is not installed: pip install 'fastdl[test]'")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from triton_builds.case import Case  # noqa: E402

TENSOR_CORE = {80: r"mma\.sync", 90: r"wgmma\.mma_async|mma\.sync", 100: r"tcgen05\.mma|mma\.sync"}
# Shared memory one block may use, bytes: A100; H100; B200.
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
ALL = tuple(SHARED_LIMIT)
SHORT = (80, 90)


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


def cases() -> Iterator[Case]:
    """The cases of every family: the files of triton_builds."""
    for path in sorted((HERE / "triton_builds").glob("*.py")):
        module = importlib.import_module(f"triton_builds.{path.stem}")
        if hasattr(module, "cases"):
            yield from module.cases()


def compile_case(case: Case, arch: int) -> Result:
    """One kernel for one architecture."""
    names = case.kernel.arg_names
    signature = {name: case.types.get(name, "constexpr") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
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


def _chosen(parts: list[str]) -> list[Case]:
    return [case for case in cases() if any(part in case.label for part in parts)]


_of_worker: list[Case] = []


def _start(parts: list[str]) -> None:
    _of_worker.extend(_chosen(parts))


def _compile(job: tuple[int, int]) -> Result:
    index, arch = job
    return compile_case(_of_worker[index], arch)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=SHORT, choices=ALL)
    parser.add_argument("--all", action="store_true", help=f"every architecture: {', '.join(map(str, ALL))}")
    parser.add_argument(
        "--kernel", nargs="+", default=[""], help="compile only cases whose label has one of these"
    )
    parser.add_argument("--list", action="store_true", help="print the labels and stop")
    arguments = parser.parse_args()
    chosen = _chosen(arguments.kernel)
    if arguments.list:
        sys.stdout.writelines(f"{case.label}\n" for case in chosen)
        return 0
    width = max((len(case.label) for case in chosen), default=0)
    compiled, failed = 0, 0
    archs = ALL if arguments.all else arguments.arch
    jobs = [(index, arch) for index in range(len(chosen)) for arch in archs]
    # Processes, since most of a compilation holds the interpreter's lock; each lists the cases for itself.
    with ProcessPoolExecutor(
        len(os.sched_getaffinity(0)), initializer=_start, initargs=(arguments.kernel,)
    ) as pool:
        for r in pool.map(_compile, jobs):
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
