"""The CUDA kernels of diffusion on a GPU. Skips without one. Backend: cuda."""

from __future__ import annotations

import pytest
import torch

import fastdl
from fastdl import _extension
from fastdl.ops.diffusion import registration
from fastdl.ops.normal import normals
from fastdl.testing.diffusion import SAMPLES, reports
from fastdl.testing.error_rule import is_ok
from tests.diffusion.trajectories import NAMES
from tests.ops.diffusion_calls import calls, table, whole_sample_calls

if not torch.cuda.is_available() or _extension.cuda.error:
    pytest.skip("needs a GPU and the CUDA kernels", allow_module_level=True)


def on_gpu(arguments: tuple) -> tuple:
    return tuple(a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_error_rule(sample, dtype):
    for name, report in reports(sample, "cuda", dtype, "cuda").items():
        assert is_ok(report, "fused", dtype), f"{name}: {report}"


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 1500), (4, 16)], ids=str)
def test_every_part_of_a_step_is_the_definition(shape):
    for step, backward in calls(shape):
        ours = torch.ops.fastdl.diffusion_step(*on_gpu(step))
        for mine, truth in zip(ours, registration.diffusion_step(*step), strict=True):
            torch.testing.assert_close(mine.cpu(), truth, rtol=2e-5, atol=2e-5)
        ours = torch.ops.fastdl.diffusion_step_backward(*on_gpu(backward))
        for mine, truth in zip(ours, registration.diffusion_step_backward(*backward), strict=True):
            torch.testing.assert_close(mine.cpu(), truth, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 1250), (2, 4, 64, 64), (1, 3, 512, 512)], ids=str)
@pytest.mark.parametrize("op", ["diffusion_step", "diffusion_step_triton"])
def test_what_needs_a_whole_sample_is_the_definition(op, shape):
    for arguments in whole_sample_calls(shape):
        ours = getattr(torch.ops.fastdl, op)(*on_gpu(arguments))
        for mine, truth in zip(ours, registration.diffusion_step(*arguments), strict=True):
            torch.testing.assert_close(mine.cpu(), truth, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("seed", [[0, 0], [-1, -1], [2**62 + 12345, 2**33 + 1]])
@pytest.mark.parametrize("count", [3, 5003, 1_000_000])
def test_noise_is_the_definition(seed, count):
    seed = torch.tensor(seed)
    ours = torch.ops.fastdl.normal_noise(torch.empty(count, device="cuda"), seed.cuda()).cpu()
    expected = normals(count, seed)
    assert ((ours - expected).abs() <= 4 * 2**-23 * expected.abs().clamp(min=0.01)).all()


def test_more_elements_than_32_bits_count():
    count = 2**31 + 2**20 + 5
    if torch.cuda.mem_get_info()[0] < 3 * 2 * count:
        pytest.skip(f"needs {3 * 2 * count / 2**30:.0f} GiB")
    x = torch.ones(count, 1, device="cuda", dtype=torch.float16)
    t = torch.zeros(1, dtype=torch.int64, device="cuda")
    schedule = fastdl.ops.diffusion.Schedule.flow(torch.tensor([0.5]))
    with fastdl.backend("cuda"):
        found = fastdl.ops.add_noise(x, t, schedule, noise=x)
    assert bool((found == 1).all())


@pytest.mark.parametrize("name", [*NAMES, "learned"])
def test_a_schedulers_steps_wait_for_nothing(name):
    """From the first step on: the tables were made by set_timesteps."""
    config = {"variance_type": "learned_range"} if name == "learned" else {}
    scheduler = getattr(fastdl.diffusion, f"{'DDPM' if name == 'learned' else name}Scheduler")(**config)
    x = torch.randn(4, 3, 16, 16, device="cuda")
    for device in (None, "cuda"):
        scheduler.set_timesteps(5, device=device)
        each = [t.expand(4).to("cuda") for t in scheduler.timesteps]
        torch.cuda.set_sync_debug_mode("error")
        try:
            for i, t in enumerate(scheduler.timesteps[:3]):
                seen = scheduler.scale_model_input(x, t)
                scheduler.step(torch.cat((seen, seen), 1) if name == "learned" else seen, t, x)
                scheduler.add_noise(x, None, each[i])
                if hasattr(scheduler, "get_velocity"):
                    scheduler.get_velocity(x, x, each[i])
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_this_backend_ran_waits_for_nothing_and_can_be_captured():
    x = torch.randn(4, 3, 16, 16, device="cuda")
    scheduler = fastdl.diffusion.DDIMScheduler()
    scheduler.set_timesteps(10, device="cuda")
    rows = torch.tensor([0, 500, 999, 7], device="cuda")
    with fastdl.backend("cuda"):
        expected = scheduler.step(x, rows, x).prev_sample
        torch.cuda.set_sync_debug_mode("error")
        try:
            scheduler.step(x, rows, x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = scheduler.step(x, rows, x).prev_sample
        graph.replay()
    torch.testing.assert_close(captured, expected)
    kept = torch.ops.fastdl.diffusion_step(
        x, x, None, None, None, rows, 0, table().cuda(), 1, 1.0, 0.0, 1.0, 0.9
    )[0]
    assert kept[1:3].isnan().all()
