"""What accelerate() keeps as it is, and the reason its report gives.

The convolutions are 5x5: a 3x3 one becomes an instance of fastdl.nn.Conv2d where it cannot be fused.
"""

import copy
import warnings

import numpy
import pytest
import torch
import torch.nn.functional as F
from kept import reason
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import fastdl


def block(
    conv: nn.Module | None = None, relu: nn.Module | None = None, pool: nn.Module | None = None
) -> nn.Module:
    return nn.Sequential(conv or nn.Conv2d(3, 4, 5), relu or nn.ReLU(), pool or nn.MaxPool2d(2))


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
def test_hooks(index, register):
    model = block()
    getattr(model[index], register)(lambda *_: None)
    assert "has hooks" in reason(model, "0")


def test_hooks_on_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4), nn.ReLU())
    model[1].register_forward_hook(lambda *_: None)
    assert reason(model, "0") == "BatchNorm2d has hooks"


def test_hooks_on_the_container_do_not_matter():
    model, seen = block(), []
    model.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    fastdl.accelerate(model)(torch.ones(1, 3, 8, 8))
    assert fastdl.report(model)["0"].action == "fused"
    assert seen == [(1, 4, 2, 2)]


def test_parametrizations():
    assert reason(block(parametrizations.weight_norm(nn.Conv2d(3, 4, 3))), "0") == "Conv2d is parametrized"
    assert reason(block(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))), "0") == "Conv2d is parametrized"


def test_weight_norm_by_hook():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        conv = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    assert reason(block(conv), "0") == "Conv2d has hooks"


def test_pruned_weight():
    conv = nn.Conv2d(3, 4, 3)
    prune.l1_unstructured(conv, "weight", 0.5)
    assert reason(block(conv), "0") == "Conv2d has hooks"


def test_weight_that_is_no_parameter():
    conv = nn.Conv2d(3, 4, 3)
    weight = conv.weight.detach()
    del conv.weight
    conv.weight = weight
    assert reason(block(conv), "0") == "the weight is not a Parameter of the convolution"


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode):
    assert reason(block(nn.Conv2d(3, 4, 5, padding=1, padding_mode=mode)), "0") == f"padding_mode is {mode!r}"


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class DoubledInside(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return super()._conv_forward(x, 2 * weight, bias)


class LeakyReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x)


class MeanPool(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel_size)


@pytest.mark.parametrize(
    "layers",
    [
        dict(conv=Doubled(3, 4, 3)),
        dict(conv=DoubledInside(3, 4, 3)),
        dict(relu=LeakyReLU()),
        dict(pool=MeanPool(2)),
    ],
    ids=["forward", "_conv_forward", "relu", "pool"],
)
def test_overridden_forward(layers):
    (layer,) = layers.values()
    assert reason(block(**layers), "0") == f"{type(layer).__name__} has a forward of its own"


def test_forward_set_on_the_instance():
    conv = nn.Conv2d(3, 4, 3)
    conv.forward = lambda x: x
    assert reason(block(conv), "0") == "Conv2d has a forward of its own"


def test_overridden_batch_norm():
    class Silent(nn.BatchNorm2d):
        def forward(self, x):
            return x

    model = nn.Sequential(nn.Conv2d(3, 4, 5), Silent(4), nn.ReLU())
    assert reason(model, "0") == "Silent has a forward of its own"


@pytest.mark.parametrize(
    "layers",
    [(nn.LazyConv2d(4, 3), nn.ReLU()), (nn.LazyConv2d(4, 5), nn.BatchNorm2d(4)),
     (nn.Conv2d(3, 4, 5), nn.LazyBatchNorm2d())],
    ids=["convolution", "before a norm", "norm"],
)  # fmt: skip
def test_lazy_until_initialised(layers):
    model = nn.Sequential(*layers)
    assert "Lazy" in reason(model, "0")
    assert "is not initialised yet: run the model once first" in reason(model, "0")
    model(torch.ones(2, 3, 6, 6))
    assert [row.action for row in fastdl.report(fastdl.accelerate(model))] == ["fused"]


def test_quantized_weight():
    conv = nn.Conv2d(3, 4, 3)
    conv.weight = nn.Parameter(torch.ones(4, 3, 3, 3, dtype=torch.int8), requires_grad=False)
    assert reason(block(conv), "0") == "a parameter is a Tensor of torch.int8"


def test_weight_of_another_tensor_class():
    class Quantized(Tensor):
        pass

    conv = nn.Conv2d(3, 4, 3)
    conv.weight = nn.Parameter(conv.weight.detach().as_subclass(Quantized))
    assert reason(block(conv), "0") == "a parameter is a Quantized of torch.float32"


def test_quantization_aware_convolution():
    qat = torch.ao.nn.qat.Conv2d(3, 4, 3, qconfig=torch.ao.quantization.get_default_qat_qconfig())
    assert reason(block(qat), "0") == "Conv2d has a forward of its own"


def test_complex_weights():
    assert "torch.complex64" in reason(block(nn.Conv2d(3, 4, 3, dtype=torch.complex64)), "0")


def test_large_window():
    assert reason(block(pool=nn.MaxPool2d(16)), "0") == "the pool's window has 256 elements, more than 255"
    assert fastdl.report(fastdl.accelerate(block(pool=nn.MaxPool2d((15, 17)))))["0"].action == "fused"


@pytest.mark.parametrize(
    "number", [numpy.int64, lambda v: (v,), lambda v: [v, v]], ids=["numpy", "one", "list"]
)
def test_numbers_of_a_pool(number):
    """What torch takes for ints."""
    pool = nn.MaxPool2d(number(3), stride=number(2), padding=number(1), dilation=number(1))
    model = block(pool=pool)
    x, plain = torch.randn(2, 3, 16, 16), copy.deepcopy(model)
    fastdl.accelerate(model, strict=True)
    torch.testing.assert_close(model(x), plain(x))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), plain(x))


@pytest.mark.parametrize("option", ["stride", "padding", "dilation", "groups"])
def test_numbers_of_a_convolution(option):
    """Of numpy they are kept; a sequence of one is as good as a pair."""
    for size in (3, 5):
        model = block(nn.Conv2d(3, 3, size, **{option: numpy.int64(1)}))
        assert reason(model, "0") == f"{option} is of numpy.int64, not of ints"
        model(torch.ones(1, 3, 16, 16))
    if option != "groups":
        model = nn.Sequential(nn.Conv2d(3, 3, 3, **{option: (2,)}), nn.BatchNorm2d(3), nn.ReLU()).eval()
        x, plain = torch.randn(1, 3, 16, 16), copy.deepcopy(model)
        with torch.no_grad():
            torch.testing.assert_close(fastdl.accelerate(model, strict=True)(x), plain(x))


def test_numbers_that_torch_refuses_too():
    assert reason(block(pool=nn.MaxPool2d((2, 2, 2))), "0") == (
        "pool_size must be an int or a pair of ints, got (2, 2, 2)"
    )
    conv = nn.Conv2d(3, 3, 5)
    conv.stride = (1, 1, 1)
    assert reason(block(conv), "0") == "stride must be an int or a pair of ints, got (1, 1, 1)"


def test_pool_that_returns_indices():
    assert reason(block(pool=nn.MaxPool2d(2, return_indices=True)), "0") == "the pool returns indices"


def test_batch_norm_of_another_size():
    model = nn.Sequential(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(5), nn.ReLU())
    assert reason(model, "0") == "BatchNorm2d has 5 features, the convolution 4"


def test_no_activation_the_op_knows():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 5), nn.Softplus(), nn.Conv2d(4, 4, 1), nn.ELU(), nn.Conv2d(4, 4, 3, stride=2)
    )
    fastdl.accelerate(model, strict=True)  # they are no candidates
    reason = "nothing worth fusing follows it; alone it would run torch's convolution"
    assert [(row.action, row.reason) for row in fastdl.report(model)] == [("kept", reason)] * 3


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    "read", [torch.jit.script, lambda layer: torch.jit.trace(layer, torch.ones(1, 3, 6, 6))]
)
def test_torch_script_stays(read):
    """Alone, and before a layer that is fused."""
    first, x = read(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())), torch.randn(1, 3, 6, 6)
    assert fastdl.accelerate(first) is first
    assert len(fastdl.report(first)) == 0

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = first, nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return F.relu(self.second(self.first(x)))

    model = Model()
    expected = model(x)
    fastdl.accelerate(model)
    assert [row.name for row in fastdl.report(model) if row.action == "fused"] == ["second"]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_other_layers_stay():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(), nn.ConvTranspose2d(4, 4, 3), nn.ReLU(), nn.Tanh()
    )
    layers = list(model)
    fastdl.accelerate(model)
    assert all(ours is theirs for ours, theirs in zip(model, layers, strict=True))
