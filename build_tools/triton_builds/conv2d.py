"""The Triton kernel of conv2d to compile ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

from .case import Case, load

# Codes of ops/conv2d/activations.py.
RELU, SILU = 1, 4
# (memory format, columns of the matrix): a plane of 28 x 28, one of 7 x 7, 256 channels.
LAYOUTS = (("nchw", 784), ("nchw", 49), ("nhwc", 256))


def cases() -> Iterator[Case]:
    """Everything that may follow a convolution, in both memory formats, and what is beyond 2^31 elements."""
    kernel, tiles = load("conv2d", "triton_kernels").conv2d_epilogue_kernel, load("conv2d", "triton_tiles")
    for dtype in ("fp16", "bf16", "fp32"):
        for layout, columns in LAYOUTS:
            others = ((True, RELU), (False, SILU)) if columns == 784 else ()
            for large, activation in ((False, RELU), *others):
                BLOCK_M, BLOCK_N = tiles.epilogue_tile(columns)
                constants = {
                    "CHANNELS_LAST": layout == "nhwc", "ACTIVATION": activation, "INDEX_64": large,
                    "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N,
                }  # fmt: skip
                types = {
                    name: f"*{dtype}" if name.endswith("_ptr") else "i32"
                    for name in kernel.arg_names
                    if name not in constants
                }
                aligned = {name for name in types if name.endswith("_ptr")}
                if columns % 16 == 0:
                    aligned.add("columns")
                label = f"conv2d epilogue {dtype} {layout} of {columns}{' large' if large else ''}"
                label += " silu" if activation == SILU else ""
                yield Case(label, kernel, types, constants, frozenset(aligned), 4, 3, False)
