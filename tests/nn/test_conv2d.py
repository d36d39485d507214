"""fastdl.nn.Conv2d against the nn.Conv2d it stands for."""

import copy
import inspect
import io

import pytest
import torch
from torch import nn

import fastdl
from fastdl.nn import Conv2d

CONVS = {
    "plain": dict(kernel_size=3),
    "no bias": dict(kernel_size=3, bias=False, padding=1),
    "string padding": dict(kernel_size=(3, 4), padding="same"),
    "valid": dict(kernel_size=3, padding="valid"),
    "groups": dict(kernel_size=(5, 3), groups=2, stride=(2, 1), dilation=(1, 2), padding=(2, 1)),
    "1x1": dict(kernel_size=1),
    "reflect": dict(kernel_size=3, padding=(2, 1), padding_mode="reflect"),
    "circular": dict(kernel_size=3, padding=1, padding_mode="circular"),
    "same, replicate": dict(kernel_size=(3, 4), padding="same", padding_mode="replicate"),
    "float64": dict(kernel_size=3, dtype=torch.float64),
}


def twins(name: str) -> tuple[Conv2d, nn.Conv2d]:
    made = []
    for kind in (Conv2d, nn.Conv2d):
        torch.manual_seed(0)
        made.append(kind(4, 6, **CONVS[name]))
    return made[0], made[1]


def sample_for(conv: nn.Conv2d) -> torch.Tensor:
    return torch.randn(2, 4, 13, 12, dtype=conv.weight.dtype, generator=torch.Generator().manual_seed(1))


def relative_l2(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("name", CONVS)
def test_constructs_and_computes_as_torch_s(name):
    ours, theirs = twins(name)
    x = sample_for(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert repr(ours) == repr(theirs)
    with fastdl.backend("reference"):
        assert torch.equal(ours(x), theirs(x))
        assert torch.equal(ours(input=x[0]), theirs(x[0]))
    assert relative_l2(ours(x), theirs(x)) < 1e-5


@pytest.mark.parametrize("name", CONVS)
def test_gradients(name):
    ours, theirs = twins(name)
    gradients = []
    for conv in (ours, theirs):
        x = sample_for(conv).requires_grad_()
        y = conv(x)
        grad_output = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
        gradients.append(torch.autograd.grad(y, (x, *conv.parameters()), grad_output))
    for a, b in zip(*gradients, strict=True):
        assert relative_l2(a, b) < 1e-5


def test_state_dicts_are_exchanged():
    ours, theirs = twins("groups")
    nn.init.normal_(theirs.weight)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("name", CONVS)
def test_the_class_may_be_assigned(name):
    _, conv = twins(name)
    x = sample_for(conv)
    expected = conv(x)
    conv.__class__ = Conv2d
    with fastdl.backend("reference"):
        assert torch.equal(conv(x), expected)


def test_from_layers_shares_the_parameters():
    _, conv = twins("reflect")
    conv.eval().note = "kept"
    ours = Conv2d.from_layers(conv)
    assert type(ours) is Conv2d
    assert ours.__dict__ == conv.__dict__
    assert ours.weight is conv.weight
    ours.register_forward_hook(lambda *_: None)
    assert not conv._forward_hooks
    with pytest.raises(TypeError, match=r"nn\.Conv2d, got Conv1d"):
        Conv2d.from_layers(nn.Conv1d(4, 6, 3))
    conv.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hooks"):
        Conv2d.from_layers(conv)


def test_forward_has_torch_s_signature_and_is_an_instance():
    assert list(inspect.signature(Conv2d.forward).parameters) == ["self", "input"]
    assert isinstance(Conv2d(1, 1, 1), nn.Conv2d)


def test_padding_mode_is_read_at_each_call():
    ours, theirs = twins("reflect")
    x = sample_for(theirs)
    ours.padding_mode = theirs.padding_mode = "zeros"
    assert relative_l2(ours(x), theirs(x)) < 1e-5


def test_hooks_are_called():
    ours, _ = twins("plain")
    seen = []
    ours.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    ours(sample_for(ours))
    assert seen == [(2, 6, 11, 10)]


def test_pickle_deepcopy_and_torch_save():
    ours, _ = twins("circular")
    ours.eval()
    x, stream = sample_for(ours), io.BytesIO()
    torch.save(ours, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(ours), torch.load(stream, weights_only=False)):
        assert type(twin) is Conv2d
        assert torch.equal(twin(x), ours(x))
        assert not twin.training


def test_channels_last_is_kept():
    ours, theirs = twins("no bias")
    x = sample_for(theirs).to(memory_format=torch.channels_last)
    assert ours(x).is_contiguous(memory_format=torch.channels_last)
    assert relative_l2(ours(x), theirs(x)) < 1e-5


def test_autocast_gives_its_dtype():
    ours, theirs = twins("plain")
    x = sample_for(theirs)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype is theirs(x).dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["plain", "reflect"])
def test_compiles_without_a_graph_break(name):
    torch._dynamo.reset()
    ours, theirs = twins(name)
    x = sample_for(theirs)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert relative_l2(compiled(x), theirs(x)) < 1e-5
