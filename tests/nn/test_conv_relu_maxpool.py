"""fastdl.nn.ConvReLU2d and ConvReLUMaxPool2d against the torch.nn layers they stand for."""

import copy
import inspect
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fastdl
from fastdl.nn import ConvReLU2d, ConvReLUMaxPool2d

POOL = dict(kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=True)
CONVS = {
    "plain": dict(kernel_size=3),
    "no bias": dict(kernel_size=3, bias=False, padding=1),
    "string padding": dict(kernel_size=(3, 4), padding="same"),
    "groups": dict(kernel_size=(5, 3), groups=2, stride=(2, 1), dilation=(1, 2), padding=(2, 1)),
    "reflect": dict(kernel_size=3, padding=(2, 1), padding_mode="reflect"),
    "circular": dict(kernel_size=3, padding=1, padding_mode="circular"),
    "same, replicate": dict(kernel_size=(3, 4), padding="same", padding_mode="replicate"),
    "float64": dict(kernel_size=3, dtype=torch.float64),
}


def conv_layer(name: str) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, **CONVS[name])


def sample_for(conv: nn.Conv2d) -> torch.Tensor:
    return torch.randn(2, 4, 13, 12, dtype=conv.weight.dtype, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _reference():
    with fastdl.backend("reference"):
        yield


@pytest.mark.parametrize("name", CONVS)
def test_from_layers_computes_what_the_layers_compute(name):
    conv, pool = conv_layer(name), nn.MaxPool2d(**POOL)
    x = sample_for(conv)
    assert torch.equal(ConvReLU2d.from_layers(conv, nn.ReLU())(x), conv(x).relu())
    assert torch.equal(ConvReLUMaxPool2d.from_layers(conv, nn.ReLU(), pool)(x), pool(conv(x).relu()))
    assert torch.equal(ConvReLUMaxPool2d.from_layers(conv, nn.ReLU(), pool)(x[0]), pool(conv(x[0]).relu()))


@pytest.mark.parametrize("name", CONVS)
def test_constructor_takes_conv2d_and_pool_arguments(name):
    conv, pool = conv_layer(name), nn.MaxPool2d(**POOL)
    torch.manual_seed(0)
    names = dict(
        kernel_size="pool_size", stride="pool_stride", padding="pool_padding", dilation="pool_dilation"
    )
    fused = ConvReLUMaxPool2d(
        4, 6, **CONVS[name], **{names.get(key, key): value for key, value in POOL.items()}
    )
    assert fused.state_dict().keys() == conv.state_dict().keys()
    fused.load_state_dict(conv.state_dict())
    assert torch.equal(fused(sample_for(conv)), pool(conv(sample_for(conv)).relu()))


def test_from_layers_takes_every_attribute_and_shares_the_parameters():
    conv = conv_layer("groups").eval()
    conv.weight.requires_grad_(False)
    conv.note = "kept"
    conv.register_buffer("scale", torch.ones(1), persistent=False)
    fused = ConvReLUMaxPool2d.from_layers(conv, nn.ReLU(), nn.MaxPool2d(2))
    own = dict(
        pool_size=2, pool_stride=2, pool_padding=0, pool_dilation=1, ceil_mode=False, return_indices=False
    )
    assert fused.__dict__ == {**conv.__dict__, **own}
    assert fused.weight is conv.weight
    assert fused.bias is conv.bias
    assert not fused.training
    assert fused._reversed_padding_repeated_twice == conv._reversed_padding_repeated_twice
    assert fused.state_dict().keys() == conv.state_dict().keys()


def test_from_layers_leaves_the_layers_alone():
    conv = conv_layer("plain")
    before = {name: copy.copy(value) for name, value in conv.__dict__.items()}
    fused = ConvReLU2d.from_layers(conv, nn.ReLU())
    fused.weight = nn.Parameter(torch.zeros_like(conv.weight))
    fused.register_forward_hook(lambda *_: None)
    fused.register_buffer("extra", torch.ones(1))
    assert conv.__dict__ == before
    assert type(conv) is nn.Conv2d


def test_from_layers_accepts_a_subclass_that_only_constructs():
    class Conv3x3(nn.Conv2d):
        def __init__(self, *channels):
            super().__init__(*channels, 3, padding=1)

    conv = Conv3x3(4, 6)
    x = sample_for(conv)
    assert torch.equal(ConvReLU2d.from_layers(conv)(x), conv(x).relu())


def test_a_lazy_conv_is_refused_until_it_has_weights():
    conv = nn.LazyConv2d(6, 3)
    with pytest.raises(ValueError, match="lazy"):
        ConvReLU2d.from_layers(conv, nn.ReLU())
    x = torch.randn(1, 4, 8, 8)
    expected = conv(x).relu()
    assert torch.equal(ConvReLU2d.from_layers(conv, nn.ReLU())(x), expected)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledInside(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return 2 * super()._conv_forward(x, weight, bias)


def hooked() -> nn.Conv2d:
    conv = nn.Conv2d(4, 6, 3)
    conv.register_forward_hook(lambda *_: None)
    return conv


@pytest.mark.parametrize(
    ("conv", "error", "says"),
    [
        (nn.Conv1d(4, 6, 3), TypeError, "nn.Conv2d, got Conv1d"),
        (nn.ConvTranspose2d(4, 6, 3), TypeError, "nn.Conv2d, got ConvTranspose2d"),
        (Doubled(4, 6, 3), TypeError, "forward"),
        (DoubledInside(4, 6, 3), TypeError, "forward"),
        (parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), TypeError, "Parameter"),
        (hooked(), ValueError, "hooks"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_from_layers_refuses(conv, error, says):
    with pytest.raises(error, match=says):
        ConvReLU2d.from_layers(conv, nn.ReLU())


def test_from_layers_checks_relu_and_pool():
    conv = conv_layer("plain")
    with pytest.raises(TypeError, match=r"nn\.ReLU, got GELU"):
        ConvReLU2d.from_layers(conv, nn.GELU())
    with pytest.raises(TypeError, match=r"nn\.MaxPool2d, got NoneType"):
        ConvReLUMaxPool2d.from_layers(conv, nn.ReLU())
    with pytest.raises(TypeError, match=r"nn\.MaxPool2d, got AvgPool2d"):
        ConvReLUMaxPool2d.from_layers(conv, nn.ReLU(), nn.AvgPool2d(2))


def test_return_indices_gives_a_pair():
    conv, pool = conv_layer("plain"), nn.MaxPool2d(2, return_indices=True)
    x = sample_for(conv).abs()  # some windows open
    fused = ConvReLUMaxPool2d.from_layers(conv, nn.ReLU(), pool)
    for ours, theirs in zip(fused(x), pool(conv(x).relu()), strict=True):
        assert torch.equal(ours, theirs)
    assert isinstance(ConvReLU2d.from_layers(conv)(x), torch.Tensor)


def test_forward_has_conv2d_s_signature_and_padding_mode_is_read_at_each_call():
    assert list(inspect.signature(ConvReLU2d.forward).parameters) == ["self", "x"]
    assert list(inspect.signature(ConvReLUMaxPool2d.forward).parameters) == ["self", "x"]
    conv = conv_layer("reflect")
    fused, x = ConvReLU2d.from_layers(conv), sample_for(conv)
    fused.padding_mode = conv.padding_mode = "zeros"
    assert torch.equal(fused(x), conv(x).relu())


def test_gradients_reach_the_shared_parameters():
    conv, pool = conv_layer("plain"), nn.MaxPool2d(2)
    x = sample_for(conv)
    pool(conv(x).relu()).sum().backward()
    expected = [conv.weight.grad.clone(), conv.bias.grad.clone()]
    conv.zero_grad()
    ConvReLUMaxPool2d.from_layers(conv, nn.ReLU(), pool)(x).sum().backward()
    assert torch.equal(conv.weight.grad, expected[0])
    assert torch.equal(conv.bias.grad, expected[1])


def test_pickle_deepcopy_and_torch_save():
    fused = ConvReLUMaxPool2d(4, 6, 3, pool_size=2, pool_padding=1).eval()
    x = torch.randn(2, 4, 9, 9)
    stream = io.BytesIO()
    torch.save(fused, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(fused), torch.load(stream, weights_only=False)):
        assert torch.equal(twin(x), fused(x))
        assert repr(twin) == repr(fused)
        assert not twin.training


def test_repr_names_what_differs_from_the_defaults():
    text = repr(ConvReLUMaxPool2d(4, 6, 3, pool_size=3, pool_stride=2, ceil_mode=True))
    assert text == (
        "ConvReLUMaxPool2d(4, 6, kernel_size=(3, 3), stride=(1, 1), pool_size=3, pool_stride=2, ceil_mode=True)"
    )


def test_isinstance_holds():
    assert isinstance(ConvReLUMaxPool2d(1, 1, 1, pool_size=2), nn.Conv2d)


@pytest.mark.parametrize("kind", [ConvReLU2d, ConvReLUMaxPool2d])
def test_compiles_without_a_graph_break(kind):
    torch._dynamo.reset()
    pool = dict(pool_size=2) if kind is ConvReLUMaxPool2d else {}
    module, x = kind(3, 4, 3, **pool), torch.randn(2, 3, 8, 8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


def test_skip_init():
    """It goes by the arguments of the constructor."""
    module = nn.utils.skip_init(
        fastdl.nn.ConvReLUMaxPool2d, 3, 4, 3, bias=False, pool_size=2, dtype=torch.float64
    )
    assert module.weight.dtype is torch.float64
    assert module.pool_size == 2
