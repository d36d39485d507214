"""fastdl.nn.Linear and its kin against the torch.nn layers they stand for."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fastdl
from fastdl.nn import Linear, LinearGELU, LinearReLU, LinearSigmoid, LinearSiLU, LinearTanh

KINDS = [
    (Linear, None),
    (LinearReLU, nn.ReLU()),
    (LinearGELU, nn.GELU()),
    (LinearGELU, nn.GELU(approximate="tanh")),
    (LinearSiLU, nn.SiLU()),
    (LinearTanh, nn.Tanh()),
    (LinearSigmoid, nn.Sigmoid()),
]
kinds = pytest.mark.parametrize(("kind", "activation"), KINDS, ids=lambda v: str(v) if v is None else None)


@pytest.fixture(autouse=True)
def _reference():
    with fastdl.backend("reference"):
        yield


@kinds
@pytest.mark.parametrize("bias", [True, False])
def test_from_layers_computes_what_the_layers_compute(kind, activation, bias):
    layer, x = nn.Linear(5, 7, bias=bias), torch.randn(3, 2, 5)
    expected = layer(x) if activation is None else activation(layer(x))
    fused = kind.from_layers(layer, activation, nn.Dropout(0.5)).eval()
    assert torch.equal(fused(x), expected)
    assert isinstance(fused, nn.Linear)
    assert fused.weight is layer.weight
    assert type(layer) is nn.Linear


@kinds
def test_a_linear_becomes_one_by_class_assignment_and_back(kind, activation):
    layer, x = nn.Linear(5, 7), torch.randn(4, 5)
    expected = layer(x)
    before = dict(layer.__dict__)
    layer.__class__ = kind
    if activation is not None and type(activation) is not nn.GELU:
        assert torch.equal(layer(x), activation(expected))
    layer.__class__ = nn.Linear
    assert layer.__dict__ == before
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("dropout_p", [2.0, -0.1, True, "half"], ids=repr)
@pytest.mark.parametrize("kind", [Linear, LinearReLU, LinearGELU])
def test_the_constructor_refuses_what_is_no_probability(kind, dropout_p):
    with pytest.raises(ValueError, match=f"dropout_p must be a number from 0 to 1, got {dropout_p!r}"):
        kind(4, 3, dropout_p=dropout_p)


def test_the_constructor_takes_linear_s_arguments():
    torch.manual_seed(0)
    plain = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    torch.manual_seed(0)
    fused = LinearGELU(4, 3, bias=False, dtype=torch.float64, approximate="tanh", dropout_p=0.1)
    assert torch.equal(fused.weight, plain.weight)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ValueError, match="approximate"):
        LinearGELU(4, 3, approximate="sigmoid")


def test_dropout_acts_in_training_alone():
    fused, x = LinearReLU.from_layers(nn.Linear(20, 50), nn.ReLU(), nn.Dropout(0.5)), torch.randn(30, 20)
    torch.manual_seed(1)
    first = fused(x)
    torch.manual_seed(1)
    assert torch.equal(first, fused(x))
    assert not torch.equal(first, fused(x))
    kept = first != 0
    assert torch.allclose(first[kept], 2 * fused.eval()(x)[kept])


def test_from_layers_takes_every_attribute_and_leaves_the_layer_alone():
    layer = nn.Linear(4, 6).eval()
    layer.note = "kept"
    before = {name: copy.copy(value) for name, value in layer.__dict__.items()}
    fused = LinearReLU.from_layers(layer, nn.ReLU())
    assert fused.__dict__ == layer.__dict__
    fused.register_buffer("extra", torch.ones(1))
    fused.register_forward_hook(lambda *_: None)
    assert layer.__dict__ == before


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked() -> nn.Linear:
    layer = nn.Linear(4, 6)
    layer.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize(
    ("layer", "error", "says"),
    [
        (nn.Bilinear(4, 4, 6), TypeError, "nn.Linear, got Bilinear"),
        (Doubled(4, 6), TypeError, "forward"),
        (parametrizations.weight_norm(nn.Linear(4, 6)), TypeError, "Parameter"),
        (nn.LazyLinear(6), ValueError, "lazy"),
        (hooked(), ValueError, "hooks"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_from_layers_refuses(layer, error, says):
    with pytest.raises(error, match=says):
        LinearReLU.from_layers(layer, nn.ReLU())


def test_from_layers_checks_activation_and_dropout():
    layer = nn.Linear(4, 6)
    with pytest.raises(TypeError, match=r"nn\.ReLU, got GELU"):
        LinearReLU.from_layers(layer, nn.GELU())
    with pytest.raises(TypeError, match="None, got ReLU"):
        Linear.from_layers(layer, nn.ReLU())
    with pytest.raises(TypeError, match=r"nn\.Dropout, got Dropout1d"):
        LinearReLU.from_layers(layer, nn.ReLU(), nn.Dropout1d(0.5))


def test_pickle_deepcopy_and_torch_save():
    fused = LinearGELU(4, 6, approximate="tanh", dropout_p=0.3).eval()
    x = torch.randn(2, 4)
    stream = io.BytesIO()
    torch.save(fused, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(fused), torch.load(stream, weights_only=False)):
        assert torch.equal(twin(x), fused(x))
        assert repr(twin) == repr(fused)
    assert repr(fused) == (
        "LinearGELU(in_features=4, out_features=6, bias=True, dropout_p=0.3, approximate='tanh')"
    )


def test_called_as_torch_s_with_a_nested_tensor_too():
    layer, ours = nn.Linear(3, 4), fastdl.nn.Linear(3, 4)
    ours.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3)
    torch.testing.assert_close(ours(input=x), layer(input=x))
    nested = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)])
    for y, expected in zip(ours(nested).unbind(), layer(nested).unbind(), strict=True):
        torch.testing.assert_close(y, expected)
    with fastdl.strict(), pytest.raises(fastdl.UnsupportedError, match="nested"):
        ours(nested)


@pytest.mark.parametrize("kind", [fastdl.nn.Linear, fastdl.nn.LinearReLU, fastdl.nn.LinearGELU])
def test_skip_init(kind):
    """It goes by the arguments of the constructor."""
    assert nn.utils.skip_init(kind, 4, 3, bias=False, dtype=torch.float64).weight.dtype is torch.float64
