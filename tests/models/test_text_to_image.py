"""TextToImage: shapes, keys, its plain torch.nn twin's outputs and gradients; sampling with every scheduler."""

import copy
import io

import pytest
import torch
from torch import nn

import fastdl
from fastdl import diffusion
from fastdl.diffusion import DDPMScheduler
from fastdl.models import TextToImage
from fastdl.models.text_to_image import sample
from fastdl.models.text_to_image.reference import ReferenceTextToImage
from fastdl.ops.diffusion.schedules import interpolated
from fastdl.testing import judge

SMALL = dict(vocabulary_size=9, image_size=8, width=8, text_size=8, text_length=6)


def twins(seed=0, **options):
    models = []
    for kind in (TextToImage, ReferenceTextToImage):
        torch.manual_seed(seed)
        models.append(kind(**{**SMALL, **options}))
    return models


def inputs(batch=3, size=8, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, 9, (batch, 5), generator=generator)
    tokens[:, 3:] = 0
    x_t = torch.randn(batch, channels, size, size, generator=generator)
    return x_t, 999 * torch.rand(batch, generator=generator), tokens


@pytest.mark.parametrize(
    ("batch", "options"), [(0, {}), (1, {"image_size": 28, "channels": 3}), (3, {"heads": 2, "width": 16})]
)
def test_shapes(batch, options):
    size, channels = options.get("image_size", 8), options.get("channels", 1)
    x_t, t, tokens = inputs(batch, size, channels)
    assert twins(**options)[0](x_t, t, tokens).shape == x_t.shape


def test_keys_and_initialisation_are_the_twins():
    ours, theirs = (model.state_dict() for model in twins(7))
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_outputs_and_gradients_obey_the_error_rule():
    outputs, gradients = [], {}
    for seed in range(5):
        ours, theirs = twins(seed, image_size=12, width=16, text_size=16)
        exact = copy.deepcopy(theirs).double()
        x_t, t, tokens = inputs(4, 12, seed=seed)
        with fastdl.precision("strict"):
            results = [ours(x_t, t, tokens), theirs(x_t, t, tokens), exact(x_t.double(), t, tokens)]
            mine, eager, truth = (result.detach() for result in results)
            outputs.append((mine, truth, eager, truth))
            for result in results:
                (result - x_t).square().mean().backward()
        for (name, a), b, c in zip(
            ours.named_parameters(), theirs.parameters(), exact.parameters(), strict=True
        ):
            gradients.setdefault(name, []).append((a.grad, c.grad, b.grad, c.grad))
    report = judge(outputs, torch.float32)
    assert report.within_rule, report
    # of the whole model: one record for all parameters, as a near tie of the pool moves single ones
    whole = [tuple(torch.cat([t.double().flatten() for t in ts]) for ts in zip(*runs, strict=True))
             for runs in zip(*gradients.values(), strict=True)]  # fmt: skip
    report = judge(whole, torch.float32)
    assert report.within_rule, report


@pytest.mark.parametrize("swap", [False, True], ids=["to_twin", "from_twin"])
def test_checkpoint_loads_both_ways(swap):
    source, target = twins(3)[:: -1 if swap else 1]
    nn.init.normal_(source.encoder.embedding.weight)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.allclose(source(*inputs()), target(*inputs()), atol=1e-5)


def test_text_timestep_and_padding():
    model = twins(1)[0].eval()
    x_t, t, tokens = inputs()
    expected = model(x_t, t, tokens)
    assert not torch.allclose(model(x_t, t + 300, tokens), expected, atol=1e-3)
    changed = tokens.clone()
    changed[:, 1] = 2 + tokens[:, 1] % 7
    assert not torch.allclose(model(x_t, t, changed), expected, atol=1e-3)
    assert torch.allclose(model(x_t, t, tokens[:, :3]), expected, atol=1e-5)


def test_layers_are_fused_modules():
    ours, theirs = twins()
    denoiser = ours.denoiser
    assert type(denoiser.down) is fastdl.nn.ConvReLUMaxPool2d
    assert type(denoiser.up1.conv1) is fastdl.nn.ConvReLU2d
    assert type(denoiser.time1) is fastdl.nn.LinearSiLU
    plain = [module for module in ours.modules() if type(module) in (nn.Linear, nn.Conv2d)]
    assert plain == []
    assert not any(type(module).__module__.startswith("fastdl.nn") for module in theirs.modules())


def test_wrong_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match="image_size must be a multiple of 4, got 10"):
        TextToImage(9, image_size=10)
    with pytest.raises(ValueError, match="heads must divide text_size and 2 width, got 3, 64 and 128"):
        TextToImage(9, heads=3)
    model, (x_t, t, tokens) = twins()[0], inputs()
    with pytest.raises(ValueError, match=r"x_t must have shape \[B, 1, 8, 8\], got \[3, 1, 8, 4\]"):
        model(x_t[..., :4], t, tokens)
    with pytest.raises(ValueError, match=r"t and tokens must have 3 rows, got \[2\] and \[3, 5\]"):
        model(x_t, t[:2], tokens)
    for bad in (tokens.float(), tokens[0], tokens.repeat(1, 2), tokens[:, :0]):
        with pytest.raises(ValueError, match=r"tokens must be integers \[B, L\], L from 1 to 6, got"):
            model.encode(bad)


class Oracle(nn.Module):
    """Knows the image each text means: word w is an image of value w / 10. Answers as a model of `kind` does."""

    def __init__(self, trained):
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(()))
        self.image_shape = (1, 4, 4)
        self.kind, schedule = trained.config.prediction_type, trained.schedule
        self.sigmas = schedule.sigma / schedule.alpha

    def encode(self, tokens):
        return (tokens[:, 0],)

    def denoiser(self, x_t, t, words):
        ratio = interpolated(self.sigmas.log(), t).exp().view(-1, 1, 1, 1)
        alpha = (1 + ratio**2).rsqrt()
        sigma = ratio * alpha
        x_0 = (words / 10).view(-1, 1, 1, 1).expand_as(x_t)
        noise = (x_t - alpha * x_0) / sigma
        found = {"sample": x_0, "epsilon": noise, "v_prediction": alpha * noise - sigma * x_0}
        return found[self.kind].float()


SCHEDULERS = [
    diffusion.DDPMScheduler,
    diffusion.DDIMScheduler,
    diffusion.DPMSolverMultistepScheduler,
    diffusion.EulerDiscreteScheduler,
    diffusion.EulerAncestralDiscreteScheduler,
    diffusion.FlowMatchEulerDiscreteScheduler,
]


@pytest.mark.parametrize("prediction", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", SCHEDULERS, ids=lambda kind: kind.__name__)
def test_every_scheduler_finds_the_image_that_the_text_means(kind, prediction):
    trained = DDPMScheduler(prediction_type=prediction)
    scheduler = kind.from_config(trained.config)
    scheduler.set_timesteps(12)
    words = torch.tensor([[3], [5], [9]])
    found = sample(
        Oracle(trained), words, scheduler, trained=trained, generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(found, (words / 10).view(-1, 1, 1, 1).expand_as(found), atol=2e-3)


@pytest.mark.parametrize("kind", SCHEDULERS, ids=lambda kind: kind.__name__)
def test_guidance_goes_beyond_the_text(kind):
    """u + g (c - u) of images 0.1 and 0.3 with g = 2 is 0.5, the same for every kind of prediction."""
    trained = DDPMScheduler(prediction_type="v_prediction")
    scheduler = kind.from_config(trained.config)
    scheduler.set_timesteps(12)
    arguments = dict(guidance_scale=2.0, nothing=torch.tensor([1]), trained=trained)
    found = sample(Oracle(trained), torch.tensor([[3], [3]]), scheduler, **arguments)
    assert torch.allclose(found, torch.full_like(found, 0.5), atol=2e-3)


def test_the_seed_decides_what_is_drawn():
    model = twins(2)[0].eval()
    drawn = []
    for seed in (0, 0, 1):
        scheduler = diffusion.DDPMScheduler()
        scheduler.set_timesteps(3)
        words = torch.full((2, 1), 3)
        drawn.append(sample(model, words, scheduler, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_sampling_says_what_it_needs():
    model, words = twins()[0], torch.full((2, 1), 3)
    scheduler = diffusion.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="set_timesteps"):
        sample(model, words, scheduler)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="flow matching needs `trained`"):
        sample(model, words, scheduler)
    with pytest.raises(ValueError, match="guidance_scale needs `nothing`"):
        sample(model, words, scheduler, guidance_scale=3.0)
