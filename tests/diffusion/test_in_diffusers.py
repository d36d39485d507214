"""Our schedulers in diffusers' pipelines, its attributes on them, and their configurations read by it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastdl
from tests.diffusion.trajectories import NAMES

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
WITH_BETAS = [name for name in NAMES if name != "FlowMatchEulerDiscrete"]


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip


def images(pipe: object, **keywords: object) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    # a generator for each sample: then both draw by torch
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    return pipe(2, generators, num_inference_steps=10, output_type="pt", return_dict=False, **keywords)[0]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_pipeline(unet, eta):
    pipe = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(beta_schedule="scaled_linear"))
    expected = images(pipe, eta=eta)
    pipe.scheduler = fastdl.diffusion.DDIMScheduler.from_config(pipe.scheduler.config)
    found = images(pipe, eta=eta)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_pipeline(unet, variance):
    theirs = diffusers.DDPMScheduler(variance_type=variance)
    expected = images(diffusers.DDPMPipeline(unet, theirs))
    found = images(diffusers.DDPMPipeline(unet, fastdl.diffusion.DDPMScheduler.from_config(theirs.config)))
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", WITH_BETAS)
def test_betas_and_alphas_cumprod(name, zero_snr):
    config = dict(rescale_betas_zero_snr=zero_snr, prediction_type="v_prediction")
    ours = getattr(fastdl.diffusion, f"{name}Scheduler")(**config)
    theirs = getattr(diffusers, f"{name}Scheduler")(**config)
    # diffusers computes a rescaled beta as 1 - ratio in fp32
    torch.testing.assert_close(ours.betas, theirs.betas, rtol=1e-5, atol=4 * 2**-23)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_get_velocity(name):
    x, noise = torch.randn(2, 4, 3, 5)
    t = torch.tensor([0, 10, 500, 999])
    ours, theirs = (getattr(source, f"{name}Scheduler")() for source in (fastdl.diffusion, diffusers))
    torch.testing.assert_close(ours.get_velocity(x, noise, t), theirs.get_velocity(x, noise, t))
    euler = fastdl.diffusion.EulerDiscreteScheduler()
    torch.testing.assert_close(euler.get_velocity(x, noise, t.float()), theirs.get_velocity(x, noise, t))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_configuration(name, tmp_path):
    config = {} if name == "FlowMatchEulerDiscrete" else dict(beta_schedule="scaled_linear", steps_offset=1)
    saved = getattr(fastdl.diffusion, f"{name}Scheduler")(num_train_timesteps=500, **config)
    saved.save_pretrained(tmp_path / "scheduler")
    theirs = getattr(diffusers, f"{name}Scheduler").from_pretrained(tmp_path / "scheduler")
    assert {key: theirs.config[key] for key in saved.config} == dict(saved.config)


def test_a_pipeline_saves_itself_without_our_scheduler(unet, tmp_path):
    pipe = diffusers.DDPMPipeline(unet, fastdl.diffusion.DDPMScheduler())
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "unet").exists()
    assert not (tmp_path / "scheduler").exists()
