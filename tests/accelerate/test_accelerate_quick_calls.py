"""What is remembered of a call in inference: used again, and not where anything it follows from has changed."""

import copy
import gc

import pytest
import torch
from residual_blocks import relative_l2
from torch import Tensor, nn

import fastdl
from fastdl import _extension
from fastdl.accelerate import calls, quick_calls

if not _extension.cpu.loaded:
    pytest.skip("no CPU kernels here", allow_module_level=True)


class Block(nn.Module):
    """Each form of a normalised convolution; served by Winograd, the implicit GEMM and the depthwise kernel."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.conv3, self.bn3 = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12, affine=False)
        self.conv4, self.bn4 = nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.act1, self.act2 = nn.SiLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(y)))))
        return self.act2(self.bn4(self.conv4(torch.sin(y))) + x)


def twins() -> tuple[nn.Module, nn.Module]:
    """Accelerated and used, and untouched."""
    torch.manual_seed(0)
    model = Block().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    plain = copy.deepcopy(model)
    fastdl.accelerate(model, strict=True)
    with torch.no_grad():
        for _ in range(3):
            model(images())
    return model, plain


def images(seed: int = 1) -> Tensor:
    return torch.randn(2, 8, 20, 19, generator=torch.Generator().manual_seed(seed))


# The kernel of 1x1 convolutions is chosen where it was measured.
SERVED = _extension.cpu.loaded and _extension.cpu_isa() != "baseline"


@pytest.mark.skipif(not SERVED, reason="no kernel is chosen for 1x1 convolutions on the baseline")
def test_what_was_served_before_asks_nothing(monkeypatch):
    model, plain = twins()
    monkeypatch.setattr(calls, "_norm_fits", None)  # cannot be called
    with torch.no_grad():
        assert relative_l2(model(images(2)), plain(images(2))) < 1e-5
        with pytest.raises(TypeError):
            model(images(2)[..., 1:])


def doubled(module: nn.Module) -> None:
    module.weight.data = module.weight.data.double()


CHANGES = {
    "stride": lambda m: [setattr(m.conv4, "stride", (2, 2)), setattr(m.conv1, "stride", (1, 1))],
    "padding": lambda m: [setattr(m.conv2, "padding", (2, 2)), setattr(m.conv3, "padding", (0, 0))],
    "dilation": lambda m: [setattr(m.conv3, "dilation", (2, 2)), setattr(m.conv3, "padding", (2, 2))],
    "weight": lambda m: setattr(m.conv3, "weight", nn.Parameter(torch.randn(12, 12, 5, 5) / 17)),
    "weight in place": lambda m: m.conv3.weight.data.mul_(2),
    "weight to channels_last": lambda m: m.conv3.to(memory_format=torch.channels_last),
    "bias": lambda m: setattr(m.conv3, "bias", None),
    "new bias": lambda m: setattr(m.conv1, "bias", nn.Parameter(torch.randn(12))),
    "eps": lambda m: setattr(m.bn1, "eps", 0.3),
    "statistics": lambda m: m.bn2.running_var.mul_(3),
    "new statistics": lambda m: setattr(m.bn2, "running_mean", torch.randn(12)),
    "no statistics": lambda m: [setattr(m.bn2, "running_mean", None), setattr(m.bn2, "running_var", None)],
    "norm's weight": lambda m: setattr(m.bn1, "weight", nn.Parameter(torch.randn(12))),
    "no norm's weight": lambda m: setattr(m.bn1, "weight", None),
    "batch statistics": lambda m: m.bn3.train(),
    "activation": lambda m: setattr(m, "act1", nn.Tanh()),
    "groups": lambda m: [
        setattr(m.conv2, "groups", 3), setattr(m.conv2, "weight", nn.Parameter(torch.randn(12, 4, 3, 3))),
    ],
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_a_call_is_seen(change):
    model, plain = twins()
    generator = torch.random.get_rng_state()
    for m in (model, plain):
        torch.random.set_rng_state(generator)
        CHANGES[change](m)
    x = images(3)
    if change == "stride":
        model, plain = (lambda x, m=m: m.bn4(m.conv4(m.conv1(x))) for m in (model, plain))
    if change in ("padding", "dilation"):
        x = x[..., :19]
    with torch.no_grad():
        try:
            expected = plain(x)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                model(x)
            return
        for _ in range(2):
            assert relative_l2(model(x), expected) < 1e-5


INPUTS = {
    "another size": lambda x: x[..., 2:],
    "another batch": lambda x: x[:1],
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "strided": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "a Parameter": nn.Parameter,
}


@pytest.mark.parametrize("change", INPUTS)
def test_another_input_is_looked_at(change):
    model, plain = twins()
    x = INPUTS[change](images(4))
    with torch.no_grad():
        for _ in range(2):
            ours, expected = model(x), plain(x)
            assert relative_l2(ours, expected) < 1e-5
            assert ours.stride() == expected.stride()


def test_another_dtype_raises_what_torch_raises():
    model, plain = twins()
    for m in (model, plain):
        with torch.no_grad(), pytest.raises(RuntimeError):
            m(images().double())
    for m in (model, plain):
        m.double()
    with torch.no_grad():
        assert relative_l2(model(images().double()), plain(images().double())) < 1e-12


def test_one_tensor_of_another_dtype():
    for name in ("conv3", "bn1"):
        model, plain = twins()
        for m in (model, plain):
            doubled(m.get_submodule(name))
            with torch.no_grad(), pytest.raises((RuntimeError, TypeError)):
                m(images())


def test_settings_gradients_and_autocast_are_asked():
    model, plain = twins()
    x = images(5)
    assert model(x).requires_grad
    assert relative_l2(model(x), plain(x)) < 1e-5
    with torch.no_grad():
        given = (model.conv1, model.bn1, x, None, "silu")
        assert (quick_calls.quickly(*given) is not None) is SERVED
        with fastdl.backend("reference"):
            assert quick_calls.quickly(*given) is None
            assert relative_l2(model(x), plain(x)) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype == plain(x).dtype
        batched = torch.func.vmap(model)(x[None])
        assert relative_l2(batched[0], plain(x)) < 1e-5
    with torch.inference_mode():
        assert relative_l2(model(x), plain(x)) < 1e-5


def test_a_residual_that_does_not_fit():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8).eval()
    x = images()
    with torch.no_grad():
        for residual in (x, x, x[:, :, :1], x[:1], x.double(), x.to(memory_format=torch.channels_last), x):
            ours = calls.conv_batch_norm_add(conv, norm, x, residual, None)
            expected = norm(conv(x)) + residual
            assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
            assert relative_l2(ours, expected) < 1e-5


def test_nothing_outlives_its_convolution():
    gc.collect()  # what other tests left
    before = len(quick_calls._known)
    model, _ = twins()
    assert len(quick_calls._known) >= before + 4
    del model, _
    gc.collect()
    assert len(quick_calls._known) <= before
