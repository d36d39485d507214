"""Which way a call takes on the CPU: by size, said by explain() and taken in truth; quick choices and their limits."""

from __future__ import annotations

import gc
from functools import partial

import pytest
import torch
from linear_plans import eager, op
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

import fastdl
from fastdl import _extension
from fastdl.ops import linear, plans, products
from fastdl.ops.linear import quick, sizes
from fastdl.ops.linear.quick import quick_choice

pytestmark = pytest.mark.skipif(
    not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}"
)
narrow = pytest.mark.skipif(_extension.cpu_isa() not in ("baseline", "avx2"), reason="limits of AVX2")
KERNELS = {
    "dot": {"fastdl::linear"},
    "gemm": {"fastdl::linear_product", "fastdl::linear_activation_inplace"},
    "composed": {"fastdl::linear_activation_inplace"},
    "torch": set(),
}


def inputs(
    rows: int, K: int, N: int, recorded: bool = False, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    return [torch.randn(size, dtype=dtype, requires_grad=recorded) for size in ((rows, K), (N, K), (N,))]


def by_machine(algorithm: str, rows: int, N: int, K: int, recorded: bool) -> str:
    """Our own large products take the place of torch's where those leave part of the CPU unused."""
    ours = algorithm != "dot" and sizes.products_lose(rows, N, K, recorded) is None
    return "gemm" if ours else algorithm


def ran(call) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    return {event.name for event in profiled.events() if event.name.startswith("fastdl::")}


@narrow
@pytest.mark.parametrize(
    ("rows", "K", "N", "activation", "recorded", "algorithm"),
    [
        (1, 64, 10, None, False, "torch"),
        (1, 512, 512, None, False, "dot"),
        (1, 16, 16, "relu", False, "torch"),
        (1, 16, 16, "gelu", False, "dot"),
        (8, 64, 64, "tanh", False, "dot"),
        (49, 64, 64, "relu", False, "torch"),
        (300, 512, 512, "relu", False, "torch"),
        (300, 512, 512, "silu", False, "composed"),
        (8, 64, 64, "relu", True, "torch"),
        (8, 64, 64, None, True, "torch"),
        (8, 64, 64, "gelu", True, "dot"),
        (8, 64, 64, "gelu_tanh", True, "torch"),
        (300, 64, 512, "gelu_tanh", True, "composed"),
        (4, 1024, 2048, "relu", True, "dot"),
    ],
)
def test_what_is_explained_is_what_runs(rows, K, N, activation, recorded, algorithm):
    x, weight, bias = inputs(rows, K, N, recorded)
    algorithm = by_machine(algorithm, rows, N, K, recorded)
    explanation = fastdl.explain("linear", x, weight, bias, activation=activation)
    assert (explanation.backend, explanation.algorithm) == ("cpu", algorithm)
    expected = KERNELS[algorithm]
    if recorded and activation in ("gelu", "gelu_tanh", "silu") and algorithm == "composed":
        expected = {"fastdl::linear_activation"}  # what it is applied to is kept
        if products.mkl_on_amd() and products.large_enough(rows, N, K):
            expected.add("fastdl::linear_product")
    assert ran(lambda: linear(x, weight, bias, activation=activation)) == expected
    assert_close(
        linear(x, weight, bias, activation=activation), eager(x, weight, bias, activation),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_quick_choice_is_the_explained_one(dtype, activation, recorded):
    fastest = sizes.fastest if dtype is torch.float32 else sizes.fastest_bf16
    for rows in (1, 2, 48, 49, 96, 97, 700):
        for K, N in ((1, 1), (64, 10), (64, 512), (512, 512)):
            x, weight, bias = inputs(rows, K, N, recorded, dtype)
            algorithm = fastdl.explain("linear", x, weight, bias, activation=activation).algorithm
            if products.slow_in_torch(x):
                assert quick_choice(x, weight, bias, activation) is None
                continue
            assert algorithm == fastest(rows, N, K, activation, recorded)
            quickly = quick_choice(x, weight, bias, activation) is not None
            assert quickly == (algorithm == "torch" or not recorded)


@pytest.mark.skipif(_extension.cpu_isa() != "avx512bf16", reason="limits of AVX512-BF16")
@pytest.mark.parametrize(
    ("activation", "recorded", "few", "many"),
    [
        (None, False, "dot", "torch"),
        ("relu", False, "dot", "torch"),
        ("gelu", False, "dot", "torch"),
        ("silu", False, "dot", "composed"),
        ("gelu_tanh", False, "dot", "composed"),
        (None, True, "torch", "torch"),
        ("relu", True, "torch", "torch"),
        ("gelu", True, "dot", "composed"),
        ("silu", True, "torch", "composed"),
        ("gelu_tanh", True, "dot", "composed"),
    ],
)
def test_bf16_of_many_rows_is_multiplied_by_torch(activation, recorded, few, many):
    # in training a pass keeps what it is applied to
    passes = {"fastdl::linear_activation" if recorded else "fastdl::linear_activation_inplace"}
    kernels = {"dot": {"fastdl::linear"}, "composed": passes, "torch": set()}
    for rows, algorithm in ((64, few), (1024, many)):
        args = inputs(rows, 256, 512, recorded, torch.bfloat16)
        assert fastdl.explain("linear", *args, activation=activation).algorithm == algorithm
        assert ran(partial(linear, *args, activation=activation)) == kernels[algorithm]


def test_a_refusal_says_that_it_is_about_speed():
    x, weight, bias = inputs(8, 64, 64, recorded=True)
    refused = fastdl.explain("linear", x, weight, bias, activation="relu").refused
    assert [(backend, algorithm) for backend, algorithm, _ in refused] == [
        ("cpu", "dot"),
        ("cpu", "gemm"),
        ("cpu", "composed"),
    ]
    reasons = {algorithm: reason for _, algorithm, reason in refused}
    assert reasons["dot"] == reasons["composed"] == sizes.RECORDED
    assert reasons["gemm"] in (sizes.LIMIT, sizes.LITTLE)
    output = linear(x, weight, bias, activation="relu")
    assert output.grad_fn.name() == "ReluBackward0"


@pytest.mark.parametrize("setting", [fastdl.backend("cpu"), fastdl.strict()], ids=["cpu", "strict"])
@pytest.mark.parametrize("recorded", [False, True])
def test_speed_is_no_reason_where_a_kernel_is_asked_for(setting, recorded):
    with setting:
        for rows, K, N, algorithm in ((1, 16, 16, "dot"), (300, 256, 512, "composed")):
            x, weight, bias = inputs(rows, K, N, recorded)
            algorithm = by_machine(algorithm, rows, N, K, recorded)
            assert fastdl.explain("linear", x, weight, bias, activation="relu").algorithm == algorithm
            expected = set(KERNELS[algorithm])
            if algorithm == "composed" and products.weight_is_faster(rows, N, K):
                expected.add("fastdl::linear_product")
            assert ran(lambda: linear(x, weight, bias, activation="relu")) == expected  # noqa: B023


def test_dropout_stays_fused():
    x, weight, bias = inputs(8, 64, 64, recorded=True)
    assert fastdl.explain("linear", x, weight, bias, dropout_p=0.5).algorithm == "dot"
    assert ran(lambda: linear(x, weight, bias, activation="relu", dropout_p=0.5)) == {"fastdl::linear"}


def test_other_dtypes_and_strides():
    x, weight, _ = inputs(8, 64, 64)
    assert fastdl.explain("linear", x.double(), weight.double()).algorithm == "torch"
    assert fastdl.explain("linear", x.double(), weight.double(), activation="relu").algorithm == "composed"
    strided = weight.t()
    assert fastdl.explain("linear", x, strided, activation="gelu_tanh").algorithm == "composed"
    assert_close(linear(x, strided, activation="gelu_tanh"), eager(x, strided, None, "gelu_tanh"))
    assert_close(linear(x, strided, activation="gelu"), eager(x, strided, None, "gelu"))


@pytest.mark.skipif(not products.uses_wide_vectors(), reason="limits of AVX-512")
def test_the_exact_gelu_is_torchs_unless_its_result_is_fresh_memory():
    for rows, N, algorithm in ((300, 2048, "torch"), (4100, 2100, "composed")):
        x, weight = torch.empty(rows, 32), torch.empty(N, 32)
        if not products.mkl_on_amd():
            assert fastdl.explain("linear", x, weight, activation="gelu").algorithm == algorithm
        assert fastdl.explain("linear", x, weight, activation="silu").algorithm != "torch"


def test_no_quick_choice_where_more_is_to_be_asked():
    x, weight, bias = inputs(2, 3, 4)

    def refused(*args) -> bool:
        return quick_choice(*args, "relu") is None

    assert not refused(x, weight, bias)
    for kind in (torch.float64, torch.bfloat16, torch.int64):
        if kind is not torch.bfloat16:
            assert refused(x.to(kind), weight.to(kind), None)
        assert refused(x, weight.to(kind), None)
        assert refused(x, weight, bias.to(kind))
    assert refused(x, weight[0], None)
    for other in (bias[:1], torch.ones(()), bias.to("meta")):
        assert refused(x, weight, other)
    assert refused(x, weight.to("meta"), None)
    assert quick_choice(x, weight, bias, "swish") is None
    for setting in (fastdl.strict(), fastdl.backend("cpu"), torch.autocast("cpu", torch.bfloat16)):
        with setting:
            assert refused(x, weight, bias)


def test_a_remembered_weight_that_changed_is_looked_at_anew():
    layer, x = fastdl.nn.LinearGELU(64, 64), torch.randn(8, 64)
    with torch.no_grad():
        layer(x)
        with pytest.raises(ValueError, match="in_features = 64"):
            layer(x[:, :63])
        with pytest.raises(TypeError, match="dtype of x"):
            layer(x.double())
        doubled = layer.double()(x.double())
        assert doubled.dtype is torch.float64
        assert_close(doubled, eager(x.double(), layer.weight, layer.bias, "gelu"))
        with pytest.raises(TypeError, match="dtype of x"):
            layer(x)
        layer.float()
        assert_close(layer(x), eager(x, layer.weight, layer.bias, "gelu"))
        layer.weight.data, layer.bias.data = torch.randn(5, 64), torch.randn(5)
        assert_close(layer(x), eager(x, layer.weight, layer.bias, "gelu"))
        with pytest.raises(TypeError, match="device of x"):
            layer(x.to("meta"))
        assert layer.to("meta")(x.to("meta")).is_meta


def test_weights_that_died_are_forgotten():
    x, weight, bias = inputs(2, 3, 4)
    gc.collect()  # weights of other tests, in cycles
    before = len(quick._known)
    linear(x, weight, bias)
    assert len(quick._known) == before + 1
    del weight
    gc.collect()
    assert len(quick._known) == before


def test_transforms_see_torch_s_functions():
    """Small calls too, whose activation would be applied in place."""
    x, weight, bias = inputs(4, 6, 5)
    expected = eager(x, weight, bias, "relu")
    assert_close(torch.vmap(lambda row: linear(row, weight, bias, activation="relu"))(x), expected)
    ours, theirs = (
        torch.func.hessian(lambda t, call=call: call(t, weight, bias, activation="tanh").sum())(x)
        for call in (linear, eager)
    )
    assert_close(ours, theirs)
    tangent = torch.randn_like(x)
    for call in (linear, eager):
        _, forward = torch.func.jvp(
            lambda t, call=call: call(t, weight, bias, activation="relu"), (x,), (tangent,)
        )
        assert_close(forward, tangent @ weight.t() * (expected > 0))


def test_backward_is_a_function_of_its_own_for_second_derivatives_alone(monkeypatch):
    applied = []

    class Counted:
        apply = staticmethod(lambda *args: applied.append(1) or original(*args))

    original = op.LinearBackward.apply
    monkeypatch.setattr(op, "LinearBackward", Counted)
    with fastdl.backend("cpu"):
        tensors = inputs(3, 20, 10, recorded=True)
        first = torch.autograd.grad(linear(*tensors, activation="tanh").sum(), tensors)
        assert not applied
        again = torch.autograd.grad(linear(*tensors, activation="tanh").sum(), tensors, create_graph=True)
        assert len(applied) == 1
        second = torch.autograd.grad(sum(g.square().sum() for g in again), tensors)
    for a, b in zip(first, again, strict=True):
        assert_close(a, b)
    theirs = torch.autograd.grad(eager(*tensors, activation="tanh").sum(), tensors, create_graph=True)
    for a, b in zip(second, torch.autograd.grad(sum(g.square().sum() for g in theirs), tensors), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_rows_that_vary_are_decided_once_and_forgotten(monkeypatch):
    """Whether quickly or not, never more is kept than there is room for."""
    monkeypatch.setattr(quick, "_CHOICES_MOST", 8)
    monkeypatch.setattr(plans, "_MOST", 8)
    decided = []
    for module, name in ((quick, "_choose"), (op, "_decide")):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, original=original: decided.append(1) or original(*given)
        )
    _, weight, bias = inputs(1, 64, 32)
    op._planned.clear()
    quick.forget(weight)
    most = 0
    for rows in range(1, 40):
        for dropout_p in (0.0, 0.5):
            before = len(decided)
            for _ in range(2):
                linear(torch.randn(rows, 64), weight, bias, activation="relu", dropout_p=dropout_p)
            assert len(decided) == before + 1
        most = max(most, len(quick._known[id(weight)][2]), len(op._planned))
    assert most == 8
