"""linear's own matrix product: every way the matrices can lie, any number of threads, and where it is taken."""

import pytest
import torch
from torch.testing import assert_close

import fastdl
from fastdl import _extension
from fastdl.ops import products

pytestmark = pytest.mark.skipif(
    not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}"
)
# around the kernels' steps: 6 rows and 16 or 64 columns in registers, 144 rows, 128 or 256 deep, 1024 columns; 16 rows
# and columns, 32 and 512 deep of tiles
SIZES = [
    (1, 1, 1),
    (6, 16, 16),
    (5, 127, 65),
    (97, 129, 63),
    (13, 257, 1025),
    (100, 300, 33),
    (193, 513, 130),
    (1005, 1060, 1050),
]


def lie(t, how):
    if how == "rows":
        return t.contiguous()
    if how == "columns":
        return t.t().contiguous().t()
    if how == "part":
        wide = t.new_zeros(t.shape[0] + 2, t.shape[1] + 3)
        wide[1:-1, 2:-1] = t
        return wide[1:-1, 2:-1]
    return t.new_zeros(t.shape[0], 2 * t.shape[1])[:, ::2].copy_(t)


def multiply(left, right, bias=None):
    return torch.ops.fastdl.linear_product(left, right, bias)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("left_lies", ["rows", "columns", "part", "sparse"])
@pytest.mark.parametrize("right_lies", ["rows", "columns", "part", "sparse"])
def test_small_integers_are_exact(size, left_lies, right_lies):
    M, K, N = size
    left, right, bias = (torch.randint(-4, 5, s).float() for s in ((M, K), (K, N), (N,)))
    found = multiply(lie(left, left_lies), lie(right, right_lies), bias)
    assert_close(found, left @ right + bias, rtol=0, atol=0)
    assert_close(multiply(lie(left, left_lies), lie(right, right_lies)), left @ right, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(200, 1000, 300), (64, 4096, 100), (512, 64, 700)], ids=str)
def test_the_error_is_at_most_twice_torchs(size):
    M, K, N = size
    left, right = torch.randn(M, K), torch.randn(N, K).t()
    exact = left.double() @ right.double()
    ours, torchs = ((p.double() - exact).norm() for p in (multiply(left, right), left @ right))
    assert ours <= 2 * torchs


def test_threads_change_no_bit():
    left, right, bias = torch.randn(1090, 600), torch.randn(600, 973), torch.randn(973)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 4, 7):
            torch.set_num_threads(count)
            found.append(multiply(left, right, bias))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize(("M", "K", "N"), [(20, 30, 40), (270, 70, 3900)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3.4e38, 1e36])
def test_nan_infinity_and_the_largest_stay_where_they_are(M, K, N, value):
    left, right = torch.ones(M, K), torch.ones(K, N)
    left[3, 5] = value
    assert_close(multiply(left, right), left @ right, equal_nan=True)
    left[3, 5], right[7, 9] = 1, value
    assert_close(multiply(left, right), left @ right, equal_nan=True)


@pytest.mark.parametrize("scale", [2.0**-126, 1e-30, 1e-12, 1e15, 1e30])
def test_the_error_does_not_depend_on_the_scale(scale):
    left, right = torch.randn(1030, 90) * scale, torch.randn(90, 1040)
    for a, b in ((left, right), (right.t(), left.t())):
        exact = a.double() @ b.double()
        ours, torchs = ((p.double() - exact).norm() for p in (multiply(a, b), a @ b))
        assert ours <= 2 * torchs


@pytest.mark.skipif(_extension.cpu_isa() != "amx", reason="other instruction sets multiply in float32")
def test_tiles_multiply_three_parts_of_every_number():
    """With less error than float32 allows; a row of denormals, which tiles take for 0, shows who multiplied."""
    left, right = torch.randn(1030, 700), torch.randn(700, 1090)
    exact = left.double() @ right.double()
    assert (multiply(left, right).double() - exact).norm() <= 2.5e-7 * exact.norm()
    left[7] = 2.0**-130
    right.fill_(2.0**40)
    assert multiply(left, right)[7].count_nonzero() == 0
    assert (left @ right)[7].count_nonzero() == 1090


def test_empty_and_wrong_matrices():
    assert multiply(torch.ones(0, 3), torch.ones(3, 4)).shape == (0, 4)
    assert multiply(torch.ones(2, 3), torch.ones(3, 0)).shape == (2, 0)
    for left, right, bias, message in (
        (torch.ones(2, 3), torch.ones(4, 5), None, r"\[M, K\] and \[K, N\]"),
        (torch.ones(2, 0), torch.ones(0, 5), None, "K must not be 0"),
        (torch.ones(2, 3), torch.ones(3, 5), torch.ones(4), r"bias must have shape \[out_features\] = \[5\]"),
        (torch.ones(2, 3).double(), torch.ones(3, 5).double(), None, "only float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            multiply(left, right, bias)


def test_layers_by_our_products_are_as_exact(monkeypatch):
    """Taken by forward and backward of linear and of a recurrent layer, wherever the machine would."""
    monkeypatch.setattr(products, "_MKL_ON_AMD", True)
    monkeypatch.setattr(products, "LEAST_PRODUCTS", 2**12)
    taken = []
    original = products._faster_than_mkl
    monkeypatch.setattr(
        products, "_faster_than_mkl", lambda *args: taken.append(original(*args)) or taken[-1]
    )
    for layer, x in (
        (fastdl.nn.LSTM(256, 64, layer_norm=True), torch.randn(12, 16, 256)),
        (fastdl.nn.GRU(256, 300), torch.randn(12, 16, 256)),
    ):
        exact = _gradients(layer.double(), x.double())
        found = _gradients(layer.float(), x)
        for ours, right in zip(found, exact, strict=True):
            assert (ours.double() - right).norm() <= 2e-5 * right.norm()
    assert any(taken)


@pytest.mark.skipif(
    not (products.mkl_on_amd() or products.by_tiles(1032, 1024, 1024)),
    reason="torch's products use all of this CPU, as far as is known",
)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_a_large_layer_trains_by_our_products(activation):
    x, weight, bias = (torch.randn(s, requires_grad=True) for s in ((1032, 1024), (1024, 1024), (1024,)))
    assert fastdl.explain("linear", x, weight, bias, activation=activation).algorithm == "gemm"
    output = fastdl.ops.linear(x, weight, bias, activation=activation)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        grads = torch.autograd.grad(output.square().sum(), (x, weight, bias))
    assert "fastdl::linear_product" in {event.name for event in profiled.events()}
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    with fastdl.backend("reference"):
        right = fastdl.ops.linear(*wide, activation=activation)
        expected = torch.autograd.grad(right.square().sum(), wide)
    for ours, exact in zip((output, *grads), (right, *expected), strict=True):
        assert (ours.double() - exact).norm() <= 2e-6 * exact.norm()


@pytest.mark.skipif(not products.uses_wide_vectors(), reason="measured where the kernels have AVX-512 alone")
def test_a_weight_gradient_that_malloc_never_keeps_is_ours():
    x, weight = torch.randn(16, 16400), torch.randn(520, 16400, requires_grad=True)
    output = fastdl.ops.linear(x, weight)
    grad_output = torch.randn(16, 520)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        (grad,) = torch.autograd.grad(output, weight, grad_output)
    assert "fastdl::linear_product" in {event.name for event in profiled.events()}
    exact = grad_output.double().t() @ x.double()
    assert (grad.double() - exact).norm() <= 1e-6 * exact.norm()
    assert not products.page_faults_count(520, 16400, 0)  # an empty sum is torch's


def _gradients(layer, x):
    x = x.detach().requires_grad_()
    output = layer(x)[0]
    return [output.detach(), *torch.autograd.grad(output.square().sum(), (x, *layer.parameters()))]
