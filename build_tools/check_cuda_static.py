"""Compiles every .cu without a GPU and holds the result to the kernels' budgets.

`--arch sm_80 sm_90a` (the default, for CI) or `--all`; for sm_80 the host's part of each source too. Warnings of nvcc
and ptxas are errors, spills and local memory too; a kernel with a register budget must keep it. `--write` renews
benchmarks/results/kernels.csv (registers and shared memory of every kernel and architecture) and otherwise a table that
differs is an error: a change is reviewed.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import toolchain

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "results" / "kernels.csv"
SHORT = ("sm_80", "sm_90a")
HOST_TOO = "sm_80"
ALL = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a")
# What ptxas says of wgmma that waits for itself, and of registers that a warpgroup does not get.
SLOW = r"C7508|C7510|wgmma.* serialized|setmaxnreg.* ignored"
COLUMNS = ("kernel", "arch", "registers", "shared_bytes")

# Kernel name (demangled, a regular expression) -> registers a thread may use, and what the number buys.
BUDGETS = {
    r"implicit_gemm_kernel<.*LoadChannelsLast<[^f].*MultiplyTensorCore.*, 2>": 128,  # 4 blocks of 128 threads an SM
    r"implicit_gemm_kernel<.*MultiplyTensorCore": 168,  # 3 blocks of 128 threads an SM
    r"persistent_(forward|backward)_kernel<": 255,  # a block of 256 threads an SM
    r"diffusion_step_sample_kernel<": 128,  # a block of 512 threads an SM
    r"(diffusion_step(_backward)?|normal_noise)_kernel<": 80,  # 3 blocks of 256 threads an SM
    r"attention_hopper_kernel<": 168,  # a block of 384 threads an SM
    r"attention_combine_kernel<": 128,  # 4 blocks of 128 threads an SM
    r"attention_(forward|decode|short|grad_(q|kv|bias|short))_kernel<": 255,  # 2 blocks of 128 threads an SM
    r"attention_": 64,  # 4 blocks of 256 threads an SM
    r"step_kernel<.*(double|float)": 168,  # 3 blocks of 128 threads an SM
    r"step_kernel<": 128,  # 4 blocks of 128 threads an SM
    r"norm_(forward|backward)_kernel<": 128,  # 2 blocks of 256 threads an SM
    r"(bias_relu|conv2d_epilogue|expand|grad_bias)_.*kernel<": 64,  # 4 blocks of 256 threads an SM
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=SHORT, choices=ALL)
    parser.add_argument("--all", action="store_true", help=f"every architecture: {', '.join(ALL)}")
    parser.add_argument("--write", action="store_true", help=f"renew {TABLE.relative_to(ROOT)} (with --all)")
    arguments = parser.parse_args()
    cuda_home = toolchain.find_cuda_home()
    if cuda_home is None:
        sys.exit(f"error: {toolchain.NO_CUDA_HOME}")
    archs = ALL if arguments.all else tuple(arguments.arch)
    rows, complaints = [], []
    jobs = [(source, arch) for source in sorted(ROOT.glob("csrc/ops/*/*_cuda.cu")) for arch in archs]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # each waits for a compiler
        results = pool.map(lambda job: compile_kernels(cuda_home, *job), jobs)
        for (source, arch), (found, said) in zip(jobs, results, strict=True):
            rows += found
            complaints += said
            print(f"{source.name} {arch}: {len(found)} kernels", flush=True)
    complaints += over_budget(rows)
    if arguments.write:
        write_table(rows)
    else:
        complaints += changes(rows, archs)
    for complaint in complaints:
        print(f"error: {complaint}", file=sys.stderr)
    if complaints:
        sys.exit(1)


def compile_kernels(cuda_home: str, source: Path, arch: str) -> tuple[list[dict[str, str]], list[str]]:
    """(a row per kernel, complaints) of one source for one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            f"{cuda_home}/bin/nvcc",
            "-x",
            "cu",
            "-c" if arch == HOST_TOO else "-cubin",
            f"-arch={arch}",
            "-std=c++17",
            f"-I{ROOT}/csrc",
        ]
        command += ["-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills,-warn-lmem-usage"]
        command += [str(source), "-o", f"{folder}/kernels"]
        result = subprocess.run(command, capture_output=True, text=True)
    said = result.stdout + result.stderr
    if result.returncode != 0:
        lines = [line for line in said.splitlines() if "error" in line] or said.splitlines()[-5:]
        return [], [f"{source.name} {arch}: {demangle(line)}" for line in lines]
    lost = [line for line in said.splitlines() if re.search(SLOW, line)]
    if lost:
        return [], [f"{source.name} {arch}: {demangle(line)}" for line in lost]
    entries = re.split(r"Compiling entry function '", said)[1:]
    rows = []
    for entry in entries:
        name = short_name(demangle(entry.split("'")[0]))
        registers = re.search(r"Used (\d+) registers", entry).group(1)
        shared = re.search(r"(\d+) bytes smem", entry)
        values = (name, arch, registers, shared.group(1) if shared else "0")
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return sorted(rows, key=lambda row: row["kernel"]), []


def demangle(text: str) -> str:
    return subprocess.run(
        ["c++filt", "-p"], input=text, capture_output=True, text=True, check=True
    ).stdout.strip()


def short_name(name: str) -> str:
    """Without namespaces and argument list."""
    name = name.replace("(anonymous namespace)::", "").replace("fastdl::cuda::", "").replace("(int)", "")
    return name.removeprefix("void ").strip()


def over_budget(rows: list[dict[str, str]]) -> list[str]:
    complaints = []
    for row in rows:
        for pattern, limit in BUDGETS.items():
            if re.search(pattern, row["kernel"]):
                if int(row["registers"]) > limit:
                    complaints.append(
                        f"{row['kernel']} {row['arch']}: {row['registers']} registers, budget {limit}"
                    )
                break
    return complaints


def changes(rows: list[dict[str, str]], archs: tuple[str, ...]) -> list[str]:
    """What differs from the table in the repository."""
    with open(TABLE, newline="") as file:
        kept = {(row["kernel"], row["arch"]): row for row in csv.DictReader(file) if row["arch"] in archs}
    now = {(row["kernel"], row["arch"]): row for row in rows}
    told = "; renew the table with check_cuda_static.py --all --write"
    return [
        f"{kernel} {arch}: {kept.get((kernel, arch))} in the table, {now.get((kernel, arch))} now{told}"
        for kernel, arch in sorted(kept.keys() | now.keys())
        if kept.get((kernel, arch)) != now.get((kernel, arch))
    ]


def write_table(rows: list[dict[str, str]]) -> None:
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with open(TABLE, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["kernel"], ALL.index(row["arch"]))))


if __name__ == "__main__":
    main()
