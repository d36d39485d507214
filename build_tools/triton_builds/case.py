"""One kernel to compile ahead of time, and how a family's modules are reached without torch."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

OPS = Path(__file__).parents[2] / "fastdl" / "ops"


class Case(NamedTuple):
    """One compilation: `types` of the arguments that are not constants, which of them the launcher would find to be
    multiples of 16, `tensor_cores` whether PTX must use them."""

    label: str
    kernel: object
    types: dict[str, str]
    constants: dict[str, object]
    aligned: frozenset[str]
    num_warps: int
    num_stages: int
    tensor_cores: bool


def load(family: str, name: str) -> ModuleType:
    """A module of the family, without running any package's own `__init__` (which needs torch)."""
    folders = [OPS, *(folder for folder in OPS.iterdir() if folder.is_dir())]
    for folder in folders:
        package = ModuleType(".".join(folder.relative_to(OPS.parent).parts))
        package.__path__ = [str(folder)]
        sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"{OPS.name}.{family}.{name}")
