"""The Triton kernels of linear to compile ahead of time."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from .case import Case
from .case import load as load_from

load = functools.partial(load_from, "linear")

# (activation, its code): by the output, by the input with the longest formula, none.
ACTIVATIONS = (("relu", 1), ("gelu_tanh", 3), ("none", 0))
_TYPES = {"seed_ptr": "*i64", "bias_parts_ptr": "*fp32"} | dict.fromkeys(("scale", "kept_share"), "fp32")
_TYPES |= {"threshold": "i64"}


def cases() -> Iterator[Case]:
    """The product of a wide layer, saving for backward; the passes, with and without dropout."""
    kernels, tiles = load("triton_kernels"), load("triton_tiles")
    for dtype in ("fp32", "bf16"):
        for (name, code), dropout in zip(ACTIVATIONS, (False, True, True), strict=True):
            chosen = tiles.linear_tiles(512, 4 if dtype == "fp32" else 2, dropout)
            label = f"{name}{' dropout' if dropout else ''} {dtype}"
            absent = set() if dropout else {"seed_ptr"}
            options = {"ACTIVATION": code, "DROPOUT": dropout}
            product = {**options, "INPUT_PRECISION": "ieee"} | {
                k: v for k, v in chosen._asdict().items() if k.isupper()
            }
            pre = {"pre_ptr"} if name in ("relu", "none") else set()
            yield _case(
                f"linear {label}", kernels.linear_kernel, dtype, product, absent | pre, chosen.num_warps,
                chosen.num_stages, dtype != "fp32",
            )  # fmt: skip
            passes = {**options, "BLOCK": tiles.ELEMENTWISE_BLOCK}
            yield _case(f"activation {label}", kernels.linear_activation_kernel, dtype, passes, absent)
            backward = {
                **options, "BY_OUTPUT": name == "relu",
                "BLOCK_M": tiles.BACKWARD_BLOCK_M, "BLOCK_N": tiles.BACKWARD_BLOCK_N,
            }  # fmt: skip
            yield _case(
                f"activation backward {label}",
                kernels.linear_activation_backward_kernel,
                dtype,
                backward,
                absent,
            )


def _case(
    label: str, kernel: object, dtype: str, constants: dict[str, object], absent: set[str],
    num_warps: int = 4, num_stages: int = 3, tensor_cores: bool = False,
) -> Case:  # fmt: skip
    constants = {**constants, **{name: None for name in absent if name in kernel.arg_names}}
    types = {
        name: _TYPES.get(name, f"*{dtype}" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
        if name not in constants
    }
    aligned = frozenset(name for name in types if name.endswith("_ptr") or name in ("N", "K"))
    return Case(label, kernel, types, constants, aligned, num_warps, num_stages, tensor_cores)
