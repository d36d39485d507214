"""Run by check_cuda.sh inside a CUDA build of torch: what can be asserted of `_cuda` without a GPU."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
sys.path[:0] = ["", str(HERE)]  # the copy that was just built, not an installed package

import torch  # noqa: E402

from fastdl import _extension  # noqa: E402


def loaded() -> None:
    for library in (_extension.cpu, _extension.cuda):
        assert library.loaded, f"{library.name}: {library.error}"


def families() -> Iterator[ModuleType]:
    for path in sorted((HERE / "cuda_loaded").glob("[!_]*.py")):
        yield importlib.import_module(f"cuda_loaded.{path.stem}")


def registered(operators: tuple[str, ...]) -> None:
    for name in operators:
        found = torch._C._dispatch_has_kernel_for_dispatch_key(f"fastdl::{name}", "CUDA")
        assert found, f"fastdl::{name} has no CUDA kernel"


def a_cuda_tensor_without_a_gpu_ends_in_torchs_own_error() -> None:
    if torch.cuda.is_available():
        return
    said = ""
    try:
        torch.ones(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        said = str(error)
    assert "NVIDIA" in said or "CUDA" in said, f"a CUDA tensor without a GPU: {said or 'no error'}"


def main() -> None:
    for check in (loaded, a_cuda_tensor_without_a_gpu_ends_in_torchs_own_error):
        check()
        print(f"ok  {check.__name__.replace('_', ' ')}")
    for family in families():
        name = family.__name__.split(".")[1]
        registered(family.OPERATORS)
        print(f"ok  {name}: registered")
        for check in family.CHECKS:
            check()
            print(f"ok  {name}: {check.__name__.replace('_', ' ')}")


if __name__ == "__main__":
    main()
