"""The Triton kernels of diffusion to compile ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

from .case import Case, load

BLOCK = 1024
# Which tensors a call has, and whether it is guided and clipped.
STEPS = {
    "ddim clipped": (("sample_ptr", "model_ptr", "prev_ptr", "x0_ptr"), False, True),
    "guided, noise made": (("sample_ptr", "model_ptr", "seed_ptr", "rows_ptr", "prev_ptr"), True, True),
    "second order": (("sample_ptr", "model_ptr", "history_ptr", "prev_ptr", "x0_ptr"), False, False),
    "training": (("sample_ptr", "noise_ptr", "rows_ptr", "prev_ptr", "x0_ptr", "value_ptr"), False, False),
}
BACKWARDS = {
    "linear": (("grad_prev_ptr", "grad_sample_ptr", "grad_model_ptr"), False, False),
    "guided, clipped": (
        ("grad_prev_ptr", "grad_x0_ptr", "sample_ptr", "model_ptr", "rows_ptr", "grad_sample_ptr", "grad_model_ptr"),
        True, True,
    ),
}  # fmt: skip
# Besides whether it is guided: rescaled, clipped, thresholded.
WHOLE_SAMPLES = {
    "rescaled, clipped, noise made": (
        ("sample_ptr", "model_ptr", "seed_ptr", "rows_ptr", "prev_ptr", "x0_ptr"), True, True, True, False
    ),
    "threshold": (("sample_ptr", "model_ptr", "prev_ptr", "x0_ptr", "value_ptr"), False, False, False, True),
    "rescaled, threshold, noise": (
        ("sample_ptr", "model_ptr", "history_ptr", "noise_ptr", "prev_ptr"), True, True, False, True
    ),
}  # fmt: skip
_TYPES = {"seed_ptr": "*i64", "rows_ptr": "*i64", "table_ptr": "*fp32", "value_ptr": "*fp32"}
_TYPES |= dict.fromkeys(("size", "half", "row", "table_rows", "low"), "i32") | dict.fromkeys(
    ("guidance", "limit", "rescale", "fraction"), "fp32"
)


def cases() -> Iterator[Case]:
    """Each kernel in each storage type, with every kind of input."""
    kernels, by_sample = load("diffusion", "triton_kernels"), load("diffusion", "triton_sample_kernel")
    for dtype in ("fp32", "bf16", "fp16"):
        for kernel, calls in (
            (kernels.diffusion_step_kernel, STEPS),
            (kernels.diffusion_step_backward_kernel, BACKWARDS),
        ):
            for name, (present, guided, clip) in calls.items():
                constants = {
                    "ROW_STRIDE": int("rows_ptr" in present),
                    "GUIDED": guided,
                    "CLIP": clip,
                    "BLOCK": BLOCK,
                }
                yield _case(f"{name} {dtype}", kernel, dtype, {*present, "table_ptr"}, constants)
        for name, (present, guided, rescaled, clip, threshold) in WHOLE_SAMPLES.items():
            constants = {
                "ROW_STRIDE": int("rows_ptr" in present),
                "GUIDED": guided,
                "RESCALED": rescaled,
                "CLIP": clip,
                "THRESHOLD": threshold,
                "BLOCK": BLOCK,
            }
            kernel = by_sample.diffusion_step_sample_kernel
            yield _case(f"{name} {dtype}", kernel, dtype, {*present, "table_ptr"}, constants)
        yield _case(
            f"noise {dtype}", kernels.normal_noise_kernel, dtype, {"seed_ptr", "output_ptr"}, {"BLOCK": BLOCK}
        )


def _case(label: str, kernel: object, dtype: str, present: set[str], constants: dict[str, object]) -> Case:
    absent = {n: None for n in kernel.arg_names if n.endswith("_ptr") and n not in present}
    constants = {**constants, **absent}
    types = {n: _TYPES.get(n, f"*{dtype}") for n in kernel.arg_names if n not in constants}
    aligned = frozenset(n for n in types if n.endswith("_ptr"))
    return Case(label, kernel, types, constants, aligned, 4, 3, False)
