"""linear under torch.jit.trace and batched gradients."""

import pytest
import torch

import fastdl


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_batched_gradients(activation):
    """torch.autograd.functional.jacobian(vectorize=True) asks for them."""
    x, weight = torch.randn(2, 3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    grad_outputs = torch.randn(6, 2, 3, 5)
    y = fastdl.ops.linear(x, weight, activation=activation)
    batched = torch.autograd.grad(y, (x, weight), grad_outputs, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, (x, weight), one, retain_graph=True) for one in grad_outputs]
    torch.testing.assert_close(batched, tuple(map(torch.stack, zip(*each, strict=True))))


def test_a_trace_of_a_layer_never_called_is_repeatable():
    layer = fastdl.nn.Linear(8, 4)
    torch.jit.trace(layer, torch.randn(2, 8), check_trace=True)
