"""Products of 16-bit types through float32, in themselves and inside the layers that take torch's products."""

import pytest
import torch

import fastdl
from fastdl import _extension
from fastdl.ops import products

HALVES = (torch.bfloat16, torch.float16)
# torch's product and pass serve all of these in backward, and a 5x5 convolution in forward too
LAYERS = {
    "linear": lambda: (fastdl.nn.Linear(40, 24), (7, 40)),
    "conv": lambda: (fastdl.nn.ConvReLUMaxPool2d(8, 16, 5, padding=2, pool_size=2), (4, 8, 48, 48)),
    "lstm": lambda: (fastdl.nn.LSTM(12, 20, bidirectional=True), (6, 5, 12)),
    "gru": lambda: (fastdl.nn.GRU(12, 20), (6, 5, 12)),
    "layer norm": lambda: (fastdl.nn.LSTM(12, 20, layer_norm=True), (6, 5, 12)),
}


def distance(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("slow", [True, False])
def test_a_product_is_the_exact_one_rounded(dtype, slow, monkeypatch):
    monkeypatch.setattr(products, "_SLOW", HALVES if slow else ())
    x, weight, bias = (torch.randn(size).to(dtype) for size in ((9, 33), (17, 33), (17,)))
    exact = x.double() @ weight.double().t()
    for found, right in (
        (products.product(x, weight.t()), exact),
        (products.linear(x, weight), exact),
        (products.linear(x, weight, bias), exact + bias.double()),
    ):
        assert found.dtype is dtype
        assert distance(found, right) < torch.finfo(dtype).eps


def gradients(name, dtype):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]()
    layer = layer.to(HALVES[0] if dtype is torch.float64 else dtype).to(dtype)
    x = torch.randn(shape).to(HALVES[0]).to(dtype).requires_grad_()
    output = layer(x)
    output = output[0] if isinstance(output, tuple) else output
    wanted = (x, *layer.parameters())
    grads = torch.autograd.grad(
        output, wanted, torch.linspace(-1, 1, output.numel()).view_as(output).to(dtype)
    )
    return [output.detach(), *grads]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_no_less_exact_through_float32(name, monkeypatch):
    monkeypatch.setattr(_extension, "cpu_isa", lambda: "avx2")  # what has AMX multiplies 16 bits fast
    exact = gradients(name, torch.float64)
    monkeypatch.setattr(products, "_SLOW", ())
    plain = gradients(name, torch.bfloat16)
    monkeypatch.setattr(products, "_SLOW", HALVES)
    asked = []
    monkeypatch.setattr(products, "slow_in_torch", _seen(asked, products.slow_in_torch))
    wide = gradients(name, torch.bfloat16)
    for found, usual, right in zip(wide, plain, exact, strict=True):
        assert distance(found, right) <= max(
            1.5 * distance(usual, right), torch.finfo(torch.bfloat16).eps / 2
        )
    assert any(asked)


def _seen(asked, function):
    def seen(t):
        asked.append(function(t))
        return asked[-1]

    return seen


def test_other_types_are_left_to_torch():
    assert not products.slow_in_torch(torch.ones(1))
    assert not products.slow_in_torch(torch.ones(1, dtype=torch.float64))
    assert not products.slow_in_torch(torch.ones(1, dtype=torch.bfloat16, device="meta"))


@pytest.mark.parametrize(
    ("isa", "amd", "halves", "wider"),
    [
        ("avx512bf16", True, False, True),  # Zen 5
        ("avx512bf16", True, True, False),  # Zen 4
        ("amx", False, False, False),
        ("avx2", True, True, False),
    ],
)
def test_vectors_that_mkl_leaves_unused(isa, amd, halves, wider, monkeypatch):
    monkeypatch.setattr(products, "cpu_isa", lambda: isa)
    monkeypatch.setattr(products, "_MKL_ON_AMD", amd)
    monkeypatch.setattr(products, "cpu_halves_vectors", lambda: halves)
    assert products.wider_than_mkl() is wider
    assert products.large_enough(512, 64, 512) is wider  # a narrow product
    assert products.large_enough(512, 128, 512)


def test_halves_are_those_of_amd():
    assert not _extension.cpu_halves_vectors() or _extension.cpu_is_amd()
