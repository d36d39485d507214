"""fastdl's layers under torch.fx.symbolic_trace and torch.jit.script, as parts of a model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import fastdl

X, SEQUENCE, IMAGE = torch.randn(3, 8), torch.randn(5, 3, 8), torch.randn(2, 3, 8, 8)
LAYERS = {
    "Linear": (lambda: fastdl.nn.Linear(8, 4), (X,)),
    "LinearGELU": (lambda: fastdl.nn.LinearGELU(8, 4, approximate="tanh"), (X,)),
    "Dropout": (lambda: fastdl.nn.Dropout(0.5), (X,)),
    "Conv2d": (lambda: fastdl.nn.Conv2d(3, 4, 3), (IMAGE,)),
    "ConvReLU2d": (lambda: fastdl.nn.ConvReLU2d(3, 4, 3), (IMAGE,)),
    "ConvReLUMaxPool2d": (lambda: fastdl.nn.ConvReLUMaxPool2d(3, 4, 3, pool_size=2, return_indices=True), (IMAGE,)),
    "LSTM": (lambda: fastdl.nn.LSTM(8, 6, 2), (SEQUENCE,)),
    "GRU with state": (lambda: fastdl.nn.GRU(8, 6), (SEQUENCE, torch.randn(1, 3, 6))),
    "RNN": (lambda: fastdl.nn.RNN(8, 6, nonlinearity="relu"), (SEQUENCE,)),
    "LSTMCell": (lambda: fastdl.nn.LSTMCell(8, 6), (X,)),
    "GRUCell with state": (lambda: fastdl.nn.GRUCell(8, 6), (X, torch.randn(3, 6))),
    "RNNCell": (lambda: fastdl.nn.RNNCell(8, 6), (X,)),
    "MultiheadAttention": (lambda: fastdl.nn.MultiheadAttention(8, 2), (SEQUENCE, SEQUENCE, SEQUENCE)),
    "TransformerEncoderLayer": (lambda: fastdl.nn.TransformerEncoderLayer(8, 2, 16), (SEQUENCE,)),
    "TransformerDecoderLayer": (lambda: fastdl.nn.TransformerDecoderLayer(8, 2, 16), (SEQUENCE, SEQUENCE)),
    "Transformer": (lambda: fastdl.nn.Transformer(8, 2, 1, 1, 16), (SEQUENCE, SEQUENCE)),
    "TransformerEncoder": (lambda: fastdl.nn.Transformer(8, 2, 1, 1, 16).encoder, (SEQUENCE,)),
    "TransformerDecoder": (lambda: fastdl.nn.Transformer(8, 2, 1, 1, 16).decoder, (SEQUENCE, SEQUENCE)),
}  # fmt: skip


class Model(nn.Module):
    def __init__(self, layer: nn.Module, inputs: int) -> None:
        super().__init__()
        self.layer, self.inputs = layer, inputs

    def forward(self, first: Tensor, second: Tensor) -> object:
        return self.layer(*(first, second, second)[: self.inputs])


def model_and_inputs(name: str) -> tuple[Model, tuple[Tensor, Tensor]]:
    make, inputs = LAYERS[name]
    return Model(make(), len(inputs)).eval(), (inputs[0], inputs[-1])


def calls(graph: fx.Graph) -> list[tuple[str, object]]:
    return [(node.op, node.target) for node in graph.nodes if node.op.startswith("call")]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_one_node_of_a_symbolic_trace(name):
    """As torch's own are, and the same layer, with its mode, is called when the graph runs."""
    model, inputs = model_and_inputs(name)
    traced = fx.symbolic_trace(model)
    traced.graph.lint()
    assert calls(traced.graph) == [("call_module", "layer")]
    assert traced.layer is model.layer
    torch.testing.assert_close(traced(*inputs), model(*inputs), rtol=0, atol=0)


def test_keyword_arguments_are_in_the_node():
    class Reset(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.cell = fastdl.nn.GRU(8, 8), fastdl.nn.GRUCell(8, 8)

        def forward(self, x, reset):
            output, _ = self.rnn(x, reset=reset)
            return self.cell(output[-1], reset=reset[-1])

    model, reset = Reset(), torch.rand(5, 3) < 0.5
    traced = fx.symbolic_trace(model)
    torch.testing.assert_close(traced(SEQUENCE, reset), model(SEQUENCE, reset), rtol=0, atol=0)
    assert not torch.equal(traced(SEQUENCE, reset), model(SEQUENCE, ~reset))


@pytest.mark.parametrize("kind", ["forward", "pre"])
@pytest.mark.parametrize("name", ["Linear", "RNNCell", "ConvReLU2d"])
def test_hooks_act_once_in_a_symbolic_trace(name, kind):
    model, inputs = model_and_inputs(name)
    if kind == "forward":
        model.layer.register_forward_hook(lambda module, args, output: output * 3)
    else:
        model.layer.register_forward_pre_hook(lambda module, args: (args[0] * 3,))
    torch.testing.assert_close(fx.symbolic_trace(model)(*inputs), model(*inputs), rtol=0, atol=0)


def test_a_linear_layer_is_traced_as_the_root():
    layer = fastdl.nn.LinearReLU(8, 4)
    traced = fx.symbolic_trace(layer)
    assert calls(traced.graph) == [("call_function", fastdl.ops.linear)]
    torch.testing.assert_close(traced(X), layer(X), rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_torch_script_is_told_what_to_do(name):
    model, _ = model_and_inputs(name)
    with pytest.raises(
        fastdl.UnsupportedError, match=r"use torch.jit.trace, or script .* fastdl.restore\(model\)$"
    ):
        torch.jit.script(model)


@pytest.mark.parametrize("kind", ["LSTM", "Linear", "ConvReLU2d"])
def test_other_kinds_of_inputs_are_errors(kind):
    make, _ = LAYERS[kind]
    with pytest.raises(TypeError, match="must be a Tensor.*got list"):
        make()([1.0])
