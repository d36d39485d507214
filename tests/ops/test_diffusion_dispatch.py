"""The diffusion ops explain themselves, and meet tensors of several dtypes under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl import _extension
from fastdl.ops.diffusion import Schedule, schedules, steps

needs_cpu = pytest.mark.skipif(not _extension.cpu.loaded, reason="CPU kernels are not loaded")
SCHEDULE = Schedule.from_betas(schedules.betas("linear", 20))
STEP = steps.ddpm(SCHEDULE, torch.arange(-1, 19), "epsilon")
T = torch.tensor([3, 19])
X, M, N = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0))
CALLS = {
    "diffusion_step": ((X, M, T, STEP), dict(noise=N)),
    "add_noise": ((X, T, SCHEDULE), dict(noise=N)),
    "velocity": ((X, N, T, SCHEDULE), {}),
    "predict_x0": ((X, M, T, SCHEDULE), dict(prediction_type="v_prediction")),
    "training_target": ((X, T, SCHEDULE), dict(noise=N, weighting="min_snr")),
}


class Subclass(Tensor):
    pass


def outputs(op: str, arguments: tuple, keywords: dict) -> tuple[Tensor, ...]:
    found = getattr(fastdl.ops, op)(*arguments, **keywords)
    return tuple(t for t in ((found,) if isinstance(found, Tensor) else found) if t is not None)


def to(dtype: torch.dtype | None, value: object) -> object:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


@needs_cpu
@pytest.mark.parametrize("op", CALLS)
def test_explain(op):
    arguments, keywords = CALLS[op]
    assert fastdl.explain(op, *arguments, **keywords).backend == "cpu"
    with fastdl.backend("reference"):
        assert fastdl.explain(op, *arguments, **keywords).backend == "reference"
    of_subclass = fastdl.explain(op, X.as_subclass(Subclass), *arguments[1:], **keywords)
    assert of_subclass.backend == "reference"
    assert {reason for _, _, reason in of_subclass.refused} == {"no kernel for the tensor subclass Subclass"}


@needs_cpu
def test_a_refusal_names_the_op_that_was_called():
    x = X.clone().requires_grad_()
    keywords = dict(threshold=(0.9, 2.0))
    explained = fastdl.explain("predict_x0", x, M, T, SCHEDULE, **keywords)
    assert (
        "cpu",
        "fused",
        "a gradient through guidance rescale or dynamic thresholding",
    ) in explained.refused
    with fastdl.strict(), pytest.raises(fastdl.UnsupportedError, match=r"^predict_x0: .*a gradient through"):
        fastdl.ops.predict_x0(x, M, T, SCHEDULE, **keywords)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("op", CALLS)
def test_dtypes_meet_in_the_wider_one_under_autocast(op, dtype, backend):
    """Every tensor but the first in another dtype: the values of that call with all in the wider dtype."""
    (x, *rest), keywords = CALLS[op]
    rest = [to(dtype, value) for value in rest]
    keywords = {name: to(dtype, value) for name, value in keywords.items()}
    wider = torch.promote_types(torch.float32, dtype)
    with fastdl.backend(backend or fastdl.explain(op, x, *CALLS[op][0][1:], **CALLS[op][1]).backend):
        with torch.autocast("cpu", torch.bfloat16):
            found = outputs(op, (x, *rest), keywords)
            assert fastdl.explain(op, x, *rest, **keywords).op == op
        expected = outputs(
            op, (x.to(wider), *(to(wider, v) for v in rest)), {k: to(wider, v) for k, v in keywords.items()}
        )
    for mine, truth in zip(found, expected, strict=True):
        assert mine.dtype is truth.dtype
        assert torch.equal(mine, truth)


def test_gradients_come_back_in_their_own_dtype_under_autocast():
    x, m = X.clone().requires_grad_(), M.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        fastdl.ops.diffusion_step(x, m, T, STEP, noise=N).prev_sample.sum().backward()
    assert (x.grad.dtype, m.grad.dtype) == (torch.float32, torch.bfloat16)


def test_without_autocast_dtypes_must_be_the_same():
    with pytest.raises(TypeError, match="must have the dtype"):
        fastdl.ops.velocity(X, N.bfloat16(), T, SCHEDULE)
