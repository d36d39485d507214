"""opcheck of the raw operators, and torch.compile(fullgraph=True) with dynamic shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conv2d_plans import KERNELS, WINOGRAD, call, eager, forced, name, serves, tensors_of
from torch.library import opcheck
from torch.testing import assert_close

from fastdl.ops import conv2d
from fastdl.ops.conv2d.activations import ACTIVATIONS
from fastdl.ops.conv_relu_maxpool.backends import ALGORITHMS
from fastdl.testing.conv2d import ALL, SAME, SAMPLES, Sample

pytestmark = pytest.mark.usefixtures("dynamo")

CODE = ALGORITHMS["winograd"]
SERVED = [s for s in SAMPLES if serves(WINOGRAD, s, torch.float32)]


@pytest.mark.parametrize("sample", SERVED[:6], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_opcheck_conv2d(sample, training):
    tensors = tensors_of(sample)
    packed = sample.geometry(*tensors[:3]).packed()
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    checked = opcheck(
        torch.ops.fastdl.conv2d.default, (*leaves, ACTIVATIONS[sample.activation], packed, CODE, training)
    )
    assert set(checked.values()) == {"SUCCESS"}


@pytest.mark.parametrize("sample", SERVED[:4], ids=str)
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, False), (True, False, False)], ids=str)
@pytest.mark.parametrize("grad_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_opcheck_conv2d_backward(sample, needs, grad_format):
    x, weight, bias = sample.inputs(torch.float32)
    g = sample.geometry(x, weight, bias)
    grad_output = torch.randn(x.shape[0], weight.shape[0], *g.conv_size(x, weight))
    leaves = [t.requires_grad_() for t in (grad_output.to(memory_format=grad_format), x, weight)]
    checked = opcheck(torch.ops.fastdl.conv2d_backward.default, (*leaves, g.packed(), CODE, *needs))
    assert set(checked.values()) == {"SUCCESS"}


def run(op, N, **flags):
    sample = Sample(N, 16, 8 + 2 * N, 12, 16, kwargs=SAME, **flags)
    leaves = [t if t is None else t.requires_grad_() for t in tensors_of(sample)]
    with torch.no_grad():
        inference = call(op, sample, leaves)
    output = call(op, sample, leaves)
    wanted = [t for t in leaves if t is not None]
    return inference, output, *torch.autograd.grad(output.square().sum(), wanted)


@pytest.mark.long
@pytest.mark.parametrize("plan", KERNELS, ids=name)
@pytest.mark.parametrize("flags", [{}, ALL], ids=lambda f: "-".join(f) or "plain")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_graph_with_dynamic_shapes(plan, flags, backend):
    """Without gradients, and forward and backward, for every batch and height."""
    with forced(plan):
        compiled = torch.compile(conv2d, fullgraph=True, dynamic=True, backend=backend)
        for N in (2, 3, 5):
            for ours, theirs in zip(run(compiled, N, **flags), run(eager, N, **flags), strict=True):
                assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_compiles_after_a_call_with_numpys_numbers():
    """Dynamo reads what is in a dict of the plans, and takes such a number for an array."""
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(2, 4, 3, 3)
    expected = conv2d(x, weight, stride=np.int64(2), padding=np.int64(1))
    compiled = torch.compile(conv2d, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, weight, stride=2, padding=1), expected)
