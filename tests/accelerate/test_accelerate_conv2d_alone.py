"""Convolutions alone, and what is kept of a chain that begins with one."""

import copy
import re

import pytest
import torch
from residual_blocks import ALONE, ConvNormSiLU, relative_l2
from torch import nn

import fastdl


def _fuses_alone(model, name, kept):
    """The convolution is the op's; what is kept of its chain has a row of its own, and strict raises for it."""
    with pytest.raises(fastdl.UnsupportedError, match=re.escape(f"would keep {name}: {kept}")):
        fastdl.accelerate(model, strict=True)
    assert type(model.get_submodule(name)) is nn.Conv2d
    for _ in range(2):
        rows = [(row.name, row.action, row.reason) for row in fastdl.report(fastdl.accelerate(model))]
        assert rows == [(name, "fused", ALONE), (name, "kept", kept)]
        assert fastdl.report(model).to_dict()["kept"] == 1
    assert type(model.get_submodule(name)) is fastdl.nn.Conv2d


def test_chains_that_are_refused_leave_the_convolution_alone_to_the_op():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    model[1].register_forward_hook(lambda *_: None)
    plain, x = copy.deepcopy(model), torch.randn(2, 3, 9, 9)
    _fuses_alone(model, "0", "Conv2d → ReLU → MaxPool2d in Sequential: ReLU has hooks")
    assert relative_l2(model(x), plain(x)) < 1e-5


def test_a_forward_that_cannot_be_traced_calls_the_op():
    class Prints(ConvNormSiLU):
        def forward(self, x):
            print("called")
            return super().forward(x)

    kept = "what follows it: Prints.forward cannot be traced: forward calls print()"
    _fuses_alone(Prints(), "conv", kept)


@pytest.mark.parametrize(
    "options",
    [dict(kernel_size=1), dict(kernel_size=3, stride=2), dict(kernel_size=3, dilation=2),
     dict(kernel_size=3, groups=2), dict(kernel_size=(3, 1))],
    ids=str,
)  # fmt: skip
def test_others_run_torch_s_convolution(options):
    """Where a normalisation follows, a grouped one too: one call of both would be no faster."""
    following = nn.BatchNorm2d(4) if "groups" in options else nn.Softplus()
    model = nn.Sequential(nn.Conv2d(4, 4, **options), following)
    fastdl.accelerate(model, strict=True)
    assert type(model) is nn.Sequential
    assert type(model[0]) is nn.Conv2d
    kept = "nothing worth fusing follows it; alone it would run torch's convolution"
    assert fastdl.report(model)["0"].reason == kept


def test_channels_alone_run_the_op():
    model = nn.Sequential(nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.ELU()).eval()
    plain = copy.deepcopy(model)
    fastdl.accelerate(model, strict=True)
    assert type(model[0]) is fastdl.nn.Conv2d
    x = torch.randn(2, 8, 20, 19)
    assert relative_l2(model(x), plain(x)) < 1e-5
    x = x.clone().requires_grad_()
    for each in (model, plain):
        each.zero_grad()
        each(x).square().sum().backward()
    assert relative_l2(model[0].weight.grad, plain[0].weight.grad) < 1e-5


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes_of_a_convolution_alone(mode):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode), nn.Softplus())
    plain = copy.deepcopy(model)
    assert fastdl.report(fastdl.accelerate(model))["0"].reason == ALONE
    x = torch.randn(2, 4, 9, 9)
    assert relative_l2(model(x), plain(x)) < 1e-5


def test_a_subclass_stays():
    class Conv3x3(nn.Conv2d):
        pass

    model = nn.Sequential(Conv3x3(4, 4, 3), nn.ReLU())
    model[1].register_forward_hook(lambda *_: None)
    assert {row.reason for row in fastdl.report(fastdl.accelerate(model))} == {
        "Conv3x3 is a subclass of Conv2d", "Conv2d → ReLU in Sequential: ReLU has hooks",
    }  # fmt: skip
    assert type(model[0]) is Conv3x3
