"""The Triton kernels of conv_relu_maxpool to compile ahead of time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from .case import Case
from .case import load as load_from

load = functools.partial(load_from, "conv_relu_maxpool")

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
    # Channels first, at odd sizes, no stride is a multiple of 16.
    aligned = frozenset(
        name
        for name in types
        if name.endswith("_ptr") or (name.startswith("stride") and _aligned(name, constants))
    )
    return Case(
        label, kernel, types, constants, aligned, options["num_warps"], options["num_stages"], tensor_cores
    )


def _type(name: str, dtype: str, constants: dict[str, object]) -> str:
    if not name.endswith("_ptr"):
        return "i32"
    if name == "record_ptr" or (name == "saved_ptr" and constants["POOLED"]):
        return "*u8"
    return "*fp32" if "parts" in name else f"*{dtype}"


def _aligned(stride: str, constants: dict[str, object]) -> bool:
    channels = constants.get("C_GROUP" if stride.startswith("stride_x") else "C_OUT_GROUP", 16)
    return "stride_xw" not in constants and channels % 16 == 0
