"""The Triton kernels of attention to compile ahead of time."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from .case import Case
from .case import load as load_from

load = functools.partial(load_from, "attention")

PLAIN = {"CAPPED": False, "TOP_LEFT": True, "RANGED": True}
VARIED = {"CAPPED": True, "TOP_LEFT": False, "RANGED": True}
# (element type, head size, options, the pointers that are then there)
DENSE, PACKED = ("mask", "bias", "slopes", "seed"), ("slopes", "sink", "starts_q", "starts_k")
CALLS = {
    "plain": (("bf16", 64, PLAIN, ()), ("fp16", 128, PLAIN, ()), ("bf16", 256, PLAIN, ()), ("fp32", 64, PLAIN, ())),
    "varied": (("bf16", 64, VARIED, DENSE),),
    "packed": (("bf16", 64, VARIED, PACKED),),
}  # fmt: skip
_OPTIONAL = {f"{name}_ptr" for name in (*DENSE, *PACKED, "grad_lse", "partial")}
_TYPES = {"mask_ptr": "*u8", "seed_ptr": "*i64", "lse_ptr": "*fp64", "grad_lse_ptr": "*fp64"}
_TYPES |= dict.fromkeys(("slopes_ptr", "sink_ptr", "delta_ptr", "partial_ptr"), "*fp32")
_TYPES |= dict.fromkeys(("starts_q_ptr", "starts_k_ptr"), "*i64")
_TYPES |= dict.fromkeys(("scale", "softcap", "factor"), "fp32")


def cases() -> Iterator[Case]:
    """Forward and decoding of every call, backward in bf16 and fp32: grad_q differs from grad_bias in its last
    product alone."""
    tiles, forward, decode, backward, bias = map(
        load, ("triton_tiles", "triton_forward", "triton_decode", "triton_backward", "triton_bias")
    )
    for name, calls in CALLS.items():
        for dtype, D, options, present in calls:
            itemsize = 4 if dtype == "fp32" else 2
            label = f"{name} {dtype} D={D}"
            chosen = tiles.forward_tiles(D, D, itemsize)
            yield _case(
                f"attention forward {label}",
                forward.attention_forward_kernel,
                dtype,
                D,
                options,
                present,
                chosen,
            )
            chosen = tiles.decode_tiles(D, D, itemsize)
            kernel = decode.attention_decode_kernel
            # packed: keys that are not split
            split = present if name == "packed" else (*present, "partial")
            yield _case(f"attention decode {label}", kernel, dtype, D, options, split, chosen)
            if name == "plain":
                kernel, splits = decode.attention_combine_kernel, {"BLOCK_S": tiles.COMBINED_SPLITS}
                case = _case(f"attention combine {label}", kernel, dtype, D, splits, split, chosen)
                yield case._replace(tensor_cores=False)
            chosen = tiles.backward_tiles(D, D, itemsize)
            kernels = {"grad_kv": backward.attention_grad_kv_kernel}
            if name == "plain":
                kernels["grad_q"] = backward.attention_grad_q_kernel
            if "bias" in present:
                kernels["grad_bias"] = bias.attention_grad_bias_kernel
            for part, kernel in kernels.items():
                if name != "packed" and dtype != "fp16":
                    yield _case(f"attention {part} {label}", kernel, dtype, D, options, present, chosen)


def _case(
    label: str, kernel: object, dtype: str, D: int, options: dict, present: tuple[str, ...], tiles: object
) -> Case:
    absent = _OPTIONAL - {f"{name}_ptr" for name in present}
    constants = {
        "D": D, "D_V": D, **options,
        **{name: value for name, value in tiles._asdict().items() if name.isupper()},
        **dict.fromkeys(absent),
    }  # fmt: skip
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {
        name: _TYPES.get(name, f"*{dtype}" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
        if name not in constants
    }
    strides = {f"stride_{of}{along}" for of in "qkv" for along in "bhl"} | {"stride_ol", "stride_gl"}
    aligned = frozenset(name for name in types if name.endswith("_ptr") or name in strides)
    return Case(label, kernel, types, constants, aligned, tiles.num_warps, tiles.num_stages, dtype != "fp32")
