"""accelerate() on code that calls torch's scaled_dot_product_attention: this model's calls alone become fastdl's."""

import copy
import pickle

import attention_blocks
import pytest
import torch
import torch.nn.functional as F
from attention_blocks import BLOCKS, Block, ByFunction, Causal, D, Fed, H, InMethod, Stack
from attention_twins import assert_ours_alone, by_torch_save, calls_ours, drawn, twins
from kept import reason
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastdl
from fastdl.nn import functional

_TORCH = F.scaled_dot_product_attention
blocks = pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.__name__)


@blocks
def test_this_models_calls_become_ours_and_no_others(kind):
    ours, plain = twins(kind)
    assert_ours_alone(ours, plain)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert isinstance(ours.blocks[0], kind)


class Merged(nn.Module):
    """All heads are one."""

    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)


def test_symbolic_trace():
    """A graph has torch's own call."""
    ours, plain = twins(Merged)
    assert calls_ours(ours, drawn())
    traced = torch.fx.symbolic_trace(ours)
    assert _TORCH in [node.target for node in traced.graph.nodes]
    torch.testing.assert_close(traced(drawn()), plain(drawn()))


@blocks
def test_restore_and_the_report(kind):
    ours, plain = twins(kind)
    row = fastdl.report(ours)["blocks.0"]
    assert row.action == "fused"
    assert row.reason.startswith(f"scaled_dot_product_attention in {kind.__name__}.")
    rows, made = fastdl.report(ours).rows, type(ours.blocks[0])
    assert fastdl.report(fastdl.accelerate(ours, families=("attention",))).rows == rows
    assert type(ours.blocks[0]) is made
    fastdl.restore(ours)
    assert type(ours.blocks[0]) is kind
    assert not calls_ours(ours, drawn())
    assert ours.blocks[0].__dict__.keys() == plain.blocks[0].__dict__.keys()


@pytest.mark.parametrize("again", [copy.deepcopy, by_torch_save, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("kind", [Causal, Fed])
def test_copies(again, kind):
    model = fastdl.accelerate(Stack(kind()).double())
    twin = again(model)
    assert fastdl.report(twin) == fastdl.report(model)
    assert calls_ours(twin, drawn())
    assert torch.equal(twin(drawn()), model(drawn()))
    assert type(fastdl.restore(twin).blocks[0]) is kind


def test_dropout_and_masks_are_the_forwards_own():
    ours, plain = (model.blocks[0] for model in twins(Causal, dropout=0.5))
    x = drawn()
    assert not torch.equal(ours(x), ours(x))
    ours.eval()
    torch.testing.assert_close(ours(x), plain.eval()(x))
    mask = torch.rand(1, 1, 5, 5) < 0.8
    torch.testing.assert_close(ours(x, mask), plain(x, mask))


def test_the_copy_sees_what_the_original_sees(monkeypatch):
    """A global of the module that changes later, here the function that another one calls."""
    ours, _ = twins(InMethod)
    monkeypatch.setattr(attention_blocks.Block, "join", lambda self, y: y.transpose(1, 2).flatten(2) * 0)
    assert torch.equal(ours(drawn()), drawn())


def test_a_chain_in_the_same_forward(monkeypatch):
    model = Stack(Fed()).double()
    expected = model(drawn())
    rows = {row.name: row for row in fastdl.report(fastdl.accelerate(model))}
    assert rows["blocks.0"].reason == "scaled_dot_product_attention in Fed.forward"
    assert rows["blocks.0.out"].reason == "Linear → ReLU in Fed.forward"
    torch.testing.assert_close(model(drawn()), expected)
    seen = []
    monkeypatch.setattr(functional, "attention", lambda q, k, v, **_: seen.append(v.shape) or v)
    for training in (True, False):
        model.train(training)(drawn())
    assert seen == [(1, 2, 5, D)] * 2
    monkeypatch.undo()
    only = fastdl.accelerate(fastdl.restore(model), families=("linear",))
    assert fastdl.report(only)["blocks.0.out"].action == "fused"
    torch.testing.assert_close(fastdl.accelerate(only)(drawn()), expected)
    assert fastdl.report(only)["blocks.0"].action == "fused"


@pytest.mark.long
@pytest.mark.parametrize("kind", [Causal, ByFunction, Fed])
def test_compiles_without_a_break(dynamo, kind):
    model, x = fastdl.accelerate(Stack(kind())), drawn().float()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    restored = torch.compile(fastdl.restore(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(restored(x), model(x))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Imports", "attend imports it"),
        ("Decorated", "attend is decorated by torch.utils._contextlib"),
        ("Anonymous", "<lambda> is not defined by def"),
        ("Overridden", "InMethod.attend calls it, and Overridden.attend calls that"),
        ("Called", "Called has a metaclass, __init_subclass__, __call__ or attribute access of its own"),
        ("Unwritten", "the source of attend cannot be read"),
    ],
)
def test_what_is_kept(name, message):
    assert reason(nn.ModuleList([getattr(attention_blocks, name)()]), "0") == message


def test_an_instance_that_is_not_its_class_is_kept():
    block = InMethod()
    block.forward = block.forward
    assert reason(nn.ModuleList([block]), "0") == "InMethod has a forward of its own"
    block = InMethod()
    parametrizations.weight_norm(block.qkv)
    assert fastdl.report(fastdl.accelerate(Stack(block)))["blocks.0"].action == "fused"


def test_source_that_is_not_what_runs_is_kept(monkeypatch):
    def other(self: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)

    monkeypatch.setattr(InMethod, "attend", other)
    changed = other.__code__.replace(
        co_consts=tuple(2.0 if c == 1.0 else c for c in other.__code__.co_consts)
    )
    monkeypatch.setattr(other, "__code__", changed)
    assert reason(nn.ModuleList([InMethod()]), "0") == "the source of other is not what runs"


def test_families_and_filter():
    seen = []
    model = Stack(InMethod(), InMethod())
    fastdl.accelerate(
        model, families=("attention",), filter_fn=lambda m, name: seen.append(name) or name == "blocks.1"
    )
    assert seen == ["blocks.0", "blocks.1"]
    assert [type(block) is InMethod for block in model.blocks] == [True, False]
    model = fastdl.accelerate(Stack(InMethod()), families=("conv", "linear", "rnn"))
    assert type(model.blocks[0]) is InMethod


@pytest.mark.parametrize("training", [False, True])
def test_measured(training):
    model = Stack(Causal(dropout=0.2), Block()).train(training)
    model.blocks[1].attend = lambda q, k, v: v
    state = copy.deepcopy(model.state_dict())
    fastdl.accelerate(model, families=("attention",), example_inputs=(drawn().float(),))
    row = fastdl.report(model)["blocks.0"]
    assert row.error < 1e-5
    assert row.speedup > 0
    assert (type(model.blocks[0]) is Causal) == (row.action == "kept")
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))


def test_measured_where_the_example_does_not_reach_it():
    model = Stack(InMethod())
    model.blocks[0].forward = lambda x: x
    other = nn.ModuleList([InMethod(), model])
    other.forward = lambda x: model(x)
    fastdl.accelerate(other, families=("attention",), example_inputs=(drawn().float(),))
    assert fastdl.report(other)["0"].reason == "the example inputs do not reach it"


def test_heads_are_as_the_blocks_say():
    assert Block().heads(drawn().float())[0].shape == (2, H, 5, D // H)
