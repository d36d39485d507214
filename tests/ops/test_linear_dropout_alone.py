"""dropout without a product: the mask of linear's, its gradients of every order, and where torch's own serves."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import fastdl
from fastdl import _extension
from fastdl.ops import dropout
from fastdl.ops.linear.reference import kept

pytestmark = [
    pytest.mark.isa,
    pytest.mark.skipif(
        not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}"
    ),
]
MANY = (37, 300)


def drawn(backend: str, x: torch.Tensor, p: float) -> torch.Tensor:
    torch.manual_seed(5)
    with fastdl.backend(backend):
        return dropout(x, p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("p", [0.1, 0.7])
def test_the_reference_s_values_and_gradients(dtype, p):
    x = torch.randn(MANY).to(dtype)
    expected = drawn("reference", x, p)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        output = drawn("cpu", x.requires_grad_(), p)
        grad_output = torch.randn(MANY).to(dtype)
        grad = torch.autograd.grad(output, x, grad_output)[0]
    names = [event.name for event in profiled.events()]
    assert names.count("fastdl::linear_activation") == 2
    assert "aten::bernoulli_" not in names
    torch.testing.assert_close(output, expected, rtol=torch.finfo(dtype).eps, atol=0)
    assert torch.equal(output != 0, expected != 0)
    torch.testing.assert_close(grad, torch.where(output != 0, grad_output / (1 - p), 0).to(dtype))


def test_every_derivative_is_the_same_mask():
    x = torch.randn(MANY, requires_grad=True)
    grad_output = torch.randn(MANY, requires_grad=True)
    torch.manual_seed(2)
    output = dropout(x, 0.5)
    (grad,) = torch.autograd.grad(output, x, grad_output, create_graph=True)
    (second,) = torch.autograd.grad(grad, grad_output, torch.ones(MANY))
    assert torch.equal(second, 2.0 * (output != 0))


def test_seed_threads_and_share():
    x, threads = torch.ones(200, 1000), torch.get_num_threads()
    first, found = drawn("cpu", x, 0.3), []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        found.append(drawn("cpu", x, 0.3))
    torch.set_num_threads(threads)
    assert all(torch.equal(first, output) for output in found)
    assert not torch.equal(first, dropout(x, 0.3))
    # five standard deviations of 200000 draws
    assert abs((first == 0).double().mean() - 0.3) < 5 * (0.21 / 2e5) ** 0.5


def test_saves_a_seed():
    x, saved = torch.randn(MANY, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        dropout(x, 0.5)
    assert [(t.dtype, t.numel()) for t in saved] == [(torch.int64, 1)]


@pytest.mark.parametrize(
    ("x", "p"),
    [
        (torch.randn(20), 0.5),
        (torch.randn(100, 200).t(), 0.5),
        (torch.randn(MANY, dtype=torch.float64), 0.5),
        (torch.randn(MANY), 1.0),
    ],
    ids=["few", "transposed", "float64", "everything"],
)
def test_what_torch_serves(x, p):
    torch.manual_seed(4)
    expected = F.dropout(x, p)
    torch.manual_seed(4)
    assert torch.equal(dropout(x, p), expected)
    assert fastdl.explain("dropout", x, p).algorithm == "torch"


def test_nothing_to_do_and_nothing_there():
    x = torch.randn(MANY)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x
    assert drawn("cpu", torch.empty(0, 5), 0.5).shape == (0, 5)


def test_a_dropped_nan_is_zero():
    output = drawn("cpu", torch.full(MANY, torch.nan), 0.5)
    assert torch.equal(output.isnan(), drawn("reference", torch.ones(MANY), 0.5) != 0)
    assert (output[~output.isnan()] == 0).all()


@pytest.mark.parametrize(
    ("x", "p", "kind", "message"),
    [
        (torch.ones(3, dtype=torch.int32), 0.5, TypeError, "floating point tensor, got torch.int32"),
        ([1.0], 0.5, TypeError, "floating point tensor, got list"),
        (torch.ones(3), 1.5, ValueError, r"p must be in \[0, 1\], got 1.5"),
        (torch.ones(3), float("nan"), ValueError, r"p must be in \[0, 1\], got nan"),
    ],
)
def test_says_what_was_expected(x, p, kind, message):
    with pytest.raises(kind, match=message):
        dropout(x, p)


def test_transforms_and_a_compiler():
    x = torch.randn(3, *MANY)
    mapped = torch.func.vmap(lambda t: dropout(t, 0.5), randomness="different")(x)
    assert 0.4 < (mapped == 0).double().mean() < 0.6
    grad = torch.func.grad(lambda t: dropout(t, 0.5).sum())(x)
    assert set(grad.unique().tolist()) == {0.0, 2.0}
    compiled = torch.compile(lambda t: dropout(t, 0.5), fullgraph=True, backend="aot_eager")
    assert 0.4 < (compiled(x) == 0).double().mean() < 0.6


def test_the_module_is_torch_s():
    layer = fastdl.nn.Dropout(0.25)
    assert isinstance(layer, torch.nn.Dropout)
    assert repr(layer) == repr(torch.nn.Dropout(0.25))
    x = torch.randn(MANY)
    for each in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.manual_seed(8)
        output = each(x)
        torch.manual_seed(8)
        assert torch.equal(output, dropout(x, 0.25))
        assert each.eval()(x) is x
        each.train()
    inplace = fastdl.nn.Dropout(0.25, inplace=True)
    assert inplace(x).data_ptr() == x.data_ptr()


def test_the_mask_is_linear_s():
    seed = torch.tensor([77])
    output = torch.ops.fastdl.linear_activation(torch.ones(MANY), seed, 0, 0.4)
    assert torch.equal(output != 0, kept(MANY, seed, 0.4))
