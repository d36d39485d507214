"""Which algorithm conv2d gives a call on a CPU, and what it says of the others."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

import fastdl
from fastdl import _extension
from fastdl.ops import products
from fastdl.ops.conv2d import packed_weights

pytestmark = pytest.mark.skipif(
    not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}"
)
ONEDNN = "onednn" if packed_weights.AVAILABLE else "composed"
GEMM = None if _extension.cpu_isa() == "baseline" else "implicit_gemm"
ON_AVX2 = GEMM if _extension.cpu_isa() == "avx2" else None  # oneDNN has loops for AVX-512


def chosen(N: int, C: int, size: int, C_out: int, K: int = 3, **conv: int) -> fastdl.dispatch.Explanation:
    x = torch.empty(N, C, size, size)
    weight = Parameter(torch.empty(C_out, C // conv.get("groups", 1), K, K), requires_grad=False)
    return fastdl.explain("conv2d", x, weight, None, **{"padding": K // 2} | conv)


@pytest.mark.parametrize(
    ("N", "C", "size", "C_out", "K", "stride", "faster"),
    [
        (1, 64, 56, 64, 1, 1, GEMM),  # pointwise
        (8, 64, 56, 64, 1, 1, GEMM),
        (1, 512, 7, 512, 1, 1, GEMM),
        (8, 512, 14, 512, 1, 1, None),  # oneDNN's main loop has the work
        (1, 64, 56, 128, 3, 2, ON_AVX2),  # strides of one image
        (8, 64, 56, 128, 3, 2, ON_AVX2),
        (8, 64, 56, 64, 3, 2, None),
        (1, 24, 56, 48, 3, 2, GEMM),
        (1, 160, 4, 160, 5, 1, ON_AVX2),  # an image of 16 positions
        (8, 160, 40, 160, 5, 1, None),
    ],
)
def test_the_implicit_gemm_serves_what_it_is_faster_for(N, C, size, C_out, K, stride, faster):
    algorithm = chosen(N, C, size, C_out, K, stride=stride).algorithm
    assert algorithm == faster if faster else algorithm in (ONEDNN, "composed")


def test_winograd_comes_first():
    assert chosen(4, 64, 24, 64).algorithm == "winograd"


@pytest.mark.parametrize(
    "conv",
    [{}, dict(stride=2), dict(K=5), dict(K=7), dict(C_out=48), dict(N=64, C=96, size=56), dict(N=64, size=7)],
    ids=str,
)
def test_channels_alone_go_to_the_depthwise_kernel(conv):
    sizes = dict(N=2, C=24, size=14) | conv
    sizes = dict(C_out=sizes["C"], groups=sizes["C"]) | sizes
    assert chosen(**sizes).algorithm == "depthwise"
    refused = {name: why for _, name, why in chosen(**sizes | dict(groups=sizes["C"] // 2)).refused}
    assert refused["depthwise"] == "only as many groups as channels"


@pytest.mark.parametrize(
    "conv",
    [dict(N=8, size=6), dict(N=64, size=56, K=2), dict(dilation=2), dict(stride=3), dict(K=9)],
    ids=str,
)
def test_where_the_depthwise_kernel_is_no_faster(conv):
    sizes = dict(N=1, C=24, size=14, C_out=24, groups=24) | conv
    refused = {name: why for _, name, why in chosen(**sizes).refused}
    assert "faster" in refused["depthwise"] or "oneDNN" in refused["depthwise"]


@pytest.mark.parametrize("N", [1, 64])
def test_images_of_one_position_are_a_product(N):
    assert chosen(N, 96, 1, 40, K=1).algorithm == "product"
    assert chosen(N, 96, 1, 40, K=1, groups=2).algorithm == "composed"
    assert chosen(N, 96, 1, 40, K=1, padding=1).algorithm != "product"


def test_pixels_of_channels_last_are_a_product_by_tiles(monkeypatch):
    monkeypatch.setattr(products, "cpu_isa", lambda: "amx")
    x, weight = torch.randn(4, 200, 31, 27), Parameter(torch.randn(340, 200, 1, 1), requires_grad=False)
    pixels = x.to(memory_format=torch.channels_last)

    def algorithm(x: torch.Tensor, weight: torch.Tensor = weight, **conv: int) -> str:
        return fastdl.explain("conv2d", x, weight, None, **conv).algorithm

    assert algorithm(pixels) == "product"
    for other in (x, pixels[:, :, :8, :9], pixels.bfloat16(), pixels.clone().requires_grad_()):
        assert algorithm(other, weight.to(other.dtype)) != "product"
    assert algorithm(pixels, stride=2) != "product"
    assert algorithm(pixels, Parameter(torch.empty(340, 100, 1, 1)), groups=2) != "product"
    bias, residual = torch.randn(340), torch.randn(4, 340, 31, 27).to(memory_format=torch.channels_last)
    found = fastdl.ops.conv2d(pixels, weight, bias, residual=residual, activation="silu")
    exact = torch.nn.functional.silu(torch.conv2d(x.double(), weight.double(), bias.double()) + residual)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - exact).norm() <= 5e-7 * exact.norm()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, w: (x.to(memory_format=torch.channels_last), w), "channels_last"),
        (lambda x, w: (x.double(), w.double()), "float64"),
        (lambda x, w: (x, w.requires_grad_()), "no backward"),
    ],
)
def test_what_the_depthwise_kernel_leaves_to_torch(change, reason):
    x, weight = change(torch.empty(2, 24, 14, 14), torch.empty(24, 1, 3, 3))
    found = fastdl.explain("conv2d", x, weight, None, padding=1, groups=24)
    assert found.algorithm == "composed"
    assert reason in {name: why for _, name, why in found.refused}["depthwise"]
