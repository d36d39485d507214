"""The Triton kernels of rnn to compile ahead of time."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from .case import Case
from .case import load as load_from

load = functools.partial(load_from, "rnn")

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")  # in the order of their codes
# (cell, gates, hidden units, of which h has, precision, element type): all steps in one program, or one at a time.
SHAPES = (
    ("lstm", 4, 128, 128, "ieee", "bf16"),
    ("lstm", 4, 512, 512, "ieee", "bf16"),
    ("lstm", 4, 512, 256, "ieee", "bf16"),
    ("lstm", 4, 128, 128, "ieee", "fp32"),
    ("gru", 3, 512, 512, "tf32", "fp32"),
    ("rnn_tanh", 1, 256, 256, "ieee", "fp16"),
)
# What a call may add to the plain layer: its name, the pointers that are then there, directions.
VARIANTS = {
    "plain": ((), 1),
    "packed": (("offsets", "zoneout_h", "zoneout_c", "peephole"), 2),
    "lengths": (("lengths", "reset", "recurrent_mask"), 2),
}
_OPTIONAL = {f"{name}_ptr" for names, _ in VARIANTS.values() for name in names}
_TYPES = {"offsets_ptr": "*i32", "lengths_ptr": "*i64", "zoneout_h": "fp32", "zoneout_c": "fp32"}
_TYPES |= dict.fromkeys(("reset_ptr", "zoneout_h_ptr", "zoneout_c_ptr"), "*u8")
_TYPES |= dict.fromkeys(("c_n_ptr", "cells_ptr", "c_0_ptr", "carry_ptr", "grad_c_ptr"), "*fp32")


def cases() -> Iterator[Case]:
    """Every shape plain, the step by step ones of lstm with the variants too; saving for backward.

    The variants of all steps in one program are left out: some keep 8 to 32 bytes a thread in local memory on sm_80.
    """
    for shape in SHAPES:
        for variant in VARIANTS if shape[:3] == ("lstm", 4, 512) else ("plain",):
            yield from _cases(*shape, variant)


def _cases(cell: str, G: int, H: int, R: int, precision: str, dtype: str, variant: str) -> Iterator[Case]:
    tiles, forward, backward = map(load, ("triton_tiles", "triton_forward", "triton_backward"))
    itemsize = 4 if dtype == "fp32" else 2
    present, directions = VARIANTS[variant]
    varied, zoneout = variant != "plain", "zoneout_h" in present
    all_steps = tiles.takes_all_steps(G, H, R, itemsize)
    constants = {
        "CELL": CELLS.index(cell), "G": G, "D": directions, "H": H, "R": R,
        "BATCH_FIRST": False, "INDEX_64": False, "ZONEOUT_H": zoneout, "ZONEOUT_C": zoneout,
        "INPUT_PRECISION": precision,
    }  # fmt: skip
    label = f"{cell} {dtype} {precision} H={H} R={R} {variant}"
    absent = _OPTIONAL - {f"{name}_ptr" for name in present}
    absent |= set() if R < H else {"hidden_ptr", "weight_hr_ptr", "grad_projected_ptr"}
    absent |= set() if cell == "lstm" else {"peephole_ptr", "cells_ptr", "zoneout_c_ptr"}
    for name, module, chosen in (
        ("forward", forward, tiles.forward_tiles(G, H, all_steps, precision, itemsize)),
        ("backward", backward, tiles.backward_tiles(H, all_steps, varied, precision, itemsize)),
    ):
        stages = (None,) if all_steps else (0,) if R == H else (0, 1)
        for stage in stages if name == "forward" or all_steps else (*stages, 2):
            kernel = getattr(module, f"rnn_{name}_{'sequence' if all_steps else 'step'}_kernel")
            yield _case(
                f"{name} {'sequence' if stage is None else f'step stage {stage}'} {label}",
                kernel, dtype, {**constants, **({} if stage is None else {"STAGE": stage})}, absent, chosen,
            )  # fmt: skip


def _case(
    label: str, kernel: object, dtype: str, constants: dict[str, object], absent: set[str], tiles: object
) -> Case:
    options = tiles._asdict()
    constants = {
        **constants,
        **{name: value for name, value in options.items() if name.isupper()},
        **{name: None for name in absent if name in kernel.arg_names},
    }
    types = {
        name: _TYPES.get(name, f"*{dtype}" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
        if name not in constants
    }
    aligned = frozenset(name for name in types if name.endswith("_ptr") or name == "stride_xb")
    tensor_cores = dtype != "fp32" or constants["INPUT_PRECISION"] == "tf32"
    return Case(
        label, kernel, types, constants, aligned, options["num_warps"], options["num_stages"], tensor_cores
    )
