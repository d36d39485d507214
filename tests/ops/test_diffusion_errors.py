"""Wrong kinds, shapes and timesteps of the diffusion ops say what was expected and what came."""

from __future__ import annotations

import pytest
import torch

import fastdl
from fastdl import _extension
from fastdl.ops.diffusion import Schedule, schedules, steps

SCHEDULE = Schedule.from_betas(schedules.betas("linear", 20))
DDPM = steps.ddpm(SCHEDULE, torch.arange(-1, 19), "epsilon")
X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    "t", [20, -1, torch.tensor(20), torch.tensor([0, -1]), torch.tensor([20, 0], dtype=torch.int32)]
)
def test_timesteps_outside(t, backend):
    if backend == "cpu" and not _extension.cpu.loaded:
        pytest.skip("CPU kernels are not loaded")
    with fastdl.backend(backend), pytest.raises(IndexError):
        fastdl.ops.diffusion_step(X, X, t, DDPM)
    with fastdl.backend(backend), pytest.raises(IndexError):
        fastdl.ops.add_noise(X.clone().requires_grad_(), t, SCHEDULE)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "timesteps must be int64 or int32", lambda: fastdl.ops.diffusion_step(X, X, torch.zeros(2), DDPM)),
        (TypeError, "must be an integer", lambda: fastdl.ops.diffusion_step(X, X, 0.5, DDPM)),
        (TypeError, "must be an integer", lambda: fastdl.ops.diffusion_step(X, X, float("nan"), DDPM)),
        (TypeError, "must be an integer", lambda: fastdl.ops.diffusion_step(X, X, None, DDPM)),
        (ValueError, r"leading sizes", lambda: fastdl.ops.diffusion_step(X, X, torch.arange(3), DDPM)),
        (ValueError, r"model_output must have shape \[2, 3, 4\]", lambda: fastdl.ops.diffusion_step(X, X[:1], 0, DDPM)),
        (ValueError, r"\[4, 3, 4\] \(guidance", lambda: fastdl.ops.diffusion_step(X, X, 0, DDPM, guidance_scale=2.0)),
        (ValueError, "guidance_rescale needs", lambda: fastdl.ops.diffusion_step(X, X, 0, DDPM, guidance_rescale=0.5)),
        (ValueError, "noise must broadcast", lambda: fastdl.ops.add_noise(X, 0, SCHEDULE, noise=torch.zeros(3, 3, 4))),
        (ValueError, "history must have shape", lambda: fastdl.ops.diffusion_step(X, X, 0, DDPM, history=X[:1])),
        (TypeError, "must have the dtype", lambda: fastdl.ops.diffusion_step(X, X.double(), 0, DDPM)),
        (TypeError, "floating point", lambda: fastdl.ops.add_noise(X.long(), 0, SCHEDULE)),
        (ValueError, "batch dimension", lambda: fastdl.ops.add_noise(torch.zeros(()), 0, SCHEDULE)),
        (ValueError, "clip must not be negative", lambda: fastdl.ops.diffusion_step(X, X, 0, DDPM, clip=-1.0)),
        (ValueError, r"ratio must be in \[0, 1\]", lambda: fastdl.ops.diffusion_step(X, X, 0, DDPM, threshold=(2, 1))),
        (ValueError, "prediction_type must be", lambda: fastdl.ops.predict_x0(X, X, 0, SCHEDULE, prediction_type="x")),
        (ValueError, "has no meaning", lambda: SCHEDULE.predicting_x0("flow_prediction")),
        (ValueError, "weighting must be", lambda: fastdl.ops.training_target(X, 0, SCHEDULE, weighting="x")),
        (ValueError, "on the device", lambda: fastdl.ops.velocity(X, X.to("meta"), 0, SCHEDULE)),
    ],
)  # fmt: skip
def test_says_what_is_wrong(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_noise_broadcasts_and_passes_its_gradient_back():
    noise = torch.randn(1, 3, 1).requires_grad_()
    found = fastdl.ops.add_noise(X, 5, SCHEDULE, noise=noise)
    torch.testing.assert_close(found, SCHEDULE.sigma[5].float() * noise.expand(2, 3, 4))
    found.sum().backward()
    torch.testing.assert_close(noise.grad, torch.full((1, 3, 1), 8 * SCHEDULE.sigma[5].item()))


@pytest.mark.skipif(not _extension.cpu.loaded, reason="CPU kernels are not loaded")
def test_the_raw_operators_protect_memory():
    table = DDPM.on(torch.device("cpu"))
    step = torch.ops.fastdl.diffusion_step.default
    rest = (3, 1.0, 0.0, 1.0, 0.9)
    for arguments in (
        (X, X[:1], None, None, None, None, 0, table, *rest),
        (X, X, None, None, None, None, 20, table, *rest),
        (X, X, None, None, None, None, 0, table[:, :8], *rest),
        (X, X, None, None, torch.zeros(1, dtype=torch.int64), None, 0, table, *rest),
        (X, X, None, None, None, torch.zeros(3, dtype=torch.int64), 0, table, *rest),
        (X, None, None, None, None, None, 0, table, 3 | 8, 1.0, 0.0, 1.0, 0.9),
        (X, X, None, X.double(), None, None, 0, table, *rest),
    ):
        with pytest.raises(RuntimeError):
            step(*arguments)
