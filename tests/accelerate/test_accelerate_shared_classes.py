"""Modules of one class that do the same have one class after accelerate() too."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES
from attention_blocks import BLOCKS
from torch import nn
from torch.func import functional_call, stack_module_state

import fastdl


class Scaled(nn.Module):
    def __init__(self, scale: object) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 4), scale

    def forward(self, x):
        return F.relu(self.linear(x)) * self.scale


@pytest.mark.parametrize("again", [False, True], ids=["copied", "made twice"])
@pytest.mark.parametrize("name", ["vgg", "resnet", "norms in sequential"])
def test_copies_of_a_model(name, again):
    plain = ARCHITECTURES[name].model()
    model = fastdl.accelerate(copy.deepcopy(plain))
    copied = fastdl.accelerate(plain) if again else copy.deepcopy(model)
    fused = [module for module in model.modules() if "_fastdl_base" in vars(type(module))]
    assert fused
    assert [type(module) for module in copied.modules()] == [type(module) for module in model.modules()]


def test_a_model_that_was_saved():
    model, saved = fastdl.accelerate(Scaled(2)), io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    assert type(torch.load(saved, weights_only=False)) is type(model) is not Scaled


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.__name__)
def test_blocks_that_call_attention(kind):
    one, other = fastdl.accelerate(kind()), fastdl.accelerate(kind())
    assert type(one) is type(other) is not kind


def test_models_that_differ_in_a_constant():
    x = torch.randn(2, 4)
    models = [fastdl.accelerate(Scaled(scale)) for scale in (2, 3, 2, 2.0)]
    kinds = [type(model) for model in models]
    assert kinds[0] is kinds[2]
    assert len(set(kinds)) == 3
    for model in models:
        expected = F.relu(F.linear(x, model.linear.weight, model.linear.bias)) * model.scale
        torch.testing.assert_close(model(x), expected)


def test_models_of_which_one_is_filtered():
    one = fastdl.accelerate(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()))
    other = copy.deepcopy(fastdl.restore(one))
    fastdl.accelerate(one)
    fastdl.accelerate(other, filter_fn=lambda module, name: name == "0")
    assert type(one) is not type(other)
    fastdl.restore(one)
    assert type(one) is nn.Sequential is not type(other)


def test_an_ensemble():
    """torch.func.stack_module_state takes models of one class."""
    models = [fastdl.accelerate(Scaled(2)) for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    x = torch.randn(2, 4)

    def call(parameters, buffers):
        return functional_call(models[0], (parameters, buffers), (x,))

    stacked = torch.func.vmap(call)(parameters, buffers)
    torch.testing.assert_close(stacked, torch.stack([model(x) for model in models]))


def test_repeated_blocks_are_compiled_once():
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    torch._dynamo.reset()
    model = fastdl.accelerate(nn.Sequential(*(BLOCKS[0]() for _ in range(10))))
    for block in model:
        block.compile(backend=backend, fullgraph=True)
    with torch.no_grad():
        model(torch.randn(2, 5, BLOCKS[0]().qkv.in_features))
    assert len(compiled) == 1


def forward_with(constant):
    def forward(self, x):
        return F.relu(self.linear(x)) * constant

    return forward


@pytest.mark.parametrize(
    "constants",
    [(1, True), (0.0, -0.0), (torch.ones(2, 1), torch.zeros(2, 1))],
    ids=["a bool", "the sign of zero", "tensors"],
)
def test_forwards_that_differ_in_what_they_closed_over(constants, monkeypatch):
    kinds, x = [], torch.randn(2, 4)
    for constant in constants:
        monkeypatch.setattr(Scaled, "forward", forward_with(constant))
        model = fastdl.accelerate(Scaled(None))
        found, expected = model(x), F.relu(model.linear(x)) * constant
        torch.testing.assert_close(found, expected)
        assert torch.equal(found.signbit(), expected.signbit())
        kinds.append(type(model))
    assert kinds[0] is not kinds[1] or kinds[0] is Scaled  # which keeps what it does not know
