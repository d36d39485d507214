"""accelerate() on code that picks its attention from a registry of functions at each call, as transformers does."""

import copy
import functools
import pickle
import sys
import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attention_blocks import D, Stack, Unwritten
from attention_registries import (
    BLOCKS,
    IMPLEMENTATIONS,
    INTERFACE,
    Asks,
    Assigns,
    ByFunction,
    ByInterface,
    ByOthers,
    BySubscript,
    Interface,
    OnlyLambda,
    Registers,
    doubled,
    eager,
    local,
)
from attention_twins import assert_ours_alone, by_torch_save, calls_ours, drawn, twins
from kept import reason
from torch import Tensor, nn

import fastdl

blocks = pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.__name__)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Interface is the class of transformers; what a test registers is gone after it."""
    library = types.SimpleNamespace(AttentionInterface=Interface)
    monkeypatch.setitem(sys.modules, "transformers.modeling_utils", library)
    monkeypatch.setattr(Interface, "shared", dict(Interface.shared))
    monkeypatch.setattr(INTERFACE, "own", {})


def choose(model: nn.Module, kind: str) -> None:
    model.blocks[0].config.kind = kind


@blocks
def test_what_the_registry_gives_becomes_ours(kind):
    ours, plain = twins(kind)
    before = dict(INTERFACE), dict(IMPLEMENTATIONS)
    assert_ours_alone(ours, plain)
    assert (dict(INTERFACE), dict(IMPLEMENTATIONS)) == before


@blocks
def test_the_report_and_restore(kind):
    ours, _ = twins(kind)
    row = fastdl.report(ours)["blocks.0"]
    name = "attend" if "attend" in vars(kind) else "forward"
    assert (row.action, row.reason) == ("fused", f"scaled_dot_product_attention in {kind.__name__}.{name}")
    assert type(fastdl.restore(ours).blocks[0]) is kind
    assert not calls_ours(ours, drawn())


@blocks
def test_the_choice_is_made_at_each_call(kind):
    ours, plain = twins(kind)
    if kind is ByFunction:
        INTERFACE["eager"] = eager
    for model in (ours, plain):
        choose(model, "eager")
    assert not calls_ours(ours, drawn())
    torch.testing.assert_close(ours(drawn()), plain(drawn()))
    choose(ours, "sdpa")
    assert calls_ours(ours, drawn())


@pytest.mark.parametrize("kind", [BySubscript, ByInterface])
def test_what_is_registered_later(kind, monkeypatch):
    """Is found, and substituted then; also in the place of what was there."""
    ours, plain = twins(kind)
    register = (
        functools.partial(monkeypatch.setitem, IMPLEMENTATIONS) if kind is BySubscript else Interface.register
    )
    register("doubled", doubled)
    for model in (ours, plain):
        choose(model, "doubled")
    assert calls_ours(ours, drawn())
    torch.testing.assert_close(ours(drawn()), plain(drawn()))
    register("doubled", lambda module, q, k, v: (F.scaled_dot_product_attention(q, k, v), None))
    for _ in range(2):
        assert not calls_ours(ours, drawn())
        torch.testing.assert_close(ours(drawn()), plain(drawn()))
    register("sdpa", eager)
    choose(ours, "sdpa")
    assert not calls_ours(ours, drawn())


def test_writes():
    """They reach the registry, which gets none of what stands for its functions in one model."""
    ours, plain = twins(Asks)
    found = ours(drawn())
    assert Interface.shared.pop("mine") is INTERFACE.own.pop("own") is eager
    torch.testing.assert_close(found, plain(drawn()))
    for kind in (Registers, Assigns):
        assert reason(nn.ModuleList([kind()]), "0") == "attend writes it to a registry"


@pytest.mark.parametrize("again", [copy.deepcopy, by_torch_save, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("kind", [BySubscript, ByInterface])
def test_copies(again, kind):
    model, _ = twins(kind)
    twin = again(model)
    assert fastdl.report(twin) == fastdl.report(model)
    assert calls_ours(twin, drawn())
    assert torch.equal(twin(drawn()), model(drawn()))
    choose(twin, "eager")
    assert not calls_ours(twin, drawn())
    assert calls_ours(model, drawn())
    assert type(fastdl.restore(twin).blocks[0]) is kind


@pytest.mark.long
@pytest.mark.parametrize("kind", [BySubscript, ByInterface, local()])
def test_compiles_without_a_break(dynamo, kind):
    model, x = fastdl.accelerate(Stack(kind())), drawn(32).float()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list) -> Callable:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for choice in ("sdpa", "eager", "sdpa"):
        choose(model, choice)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))
    assert ["fastdl.attention.default" in targets for targets in graphs] == [True, False]


@pytest.mark.long
def test_compiled_before_what_was_registered_later_has_run(dynamo, monkeypatch):
    """To the compiler it is what it is, until a call without it or accelerate() looks at it."""
    model, x = fastdl.accelerate(Stack(BySubscript("doubled"))), drawn(32).float()
    monkeypatch.setitem(IMPLEMENTATIONS, "doubled", doubled)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    found = compiled(x)
    torch.testing.assert_close(found, model(x))
    torch.testing.assert_close(compiled(x), found)


def test_an_entry_that_cannot_be_written(monkeypatch):
    """Stays what it is, and is named; where no other is left, the module is kept."""
    assert reason(nn.ModuleList([OnlyLambda()]), "0") == "<lambda> is not defined by def"
    unread = Unwritten.attend
    monkeypatch.setitem(IMPLEMENTATIONS, "unread", unread)
    ours, plain = twins(BySubscript)
    assert fastdl.report(ours)["blocks.0"].reason == (
        "scaled_dot_product_attention in BySubscript.attend; "
        "kept in its registry: the source of attend cannot be read"
    )
    assert calls_ours(ours, drawn())
    monkeypatch.setitem(IMPLEMENTATIONS, "unread", lambda *args: (unread(*args), None))
    for model in (ours, plain):
        choose(model, "unread")
    assert not calls_ours(ours, drawn())
    torch.testing.assert_close(ours(drawn()), plain(drawn()))


def test_what_is_no_read_of_a_registry():
    model = Stack(ByOthers())
    assert "blocks.0" not in [
        row.name for row in fastdl.report(fastdl.accelerate(model, families=("attention",)))
    ]
    assert type(model.blocks[0]) is ByOthers
    assert not calls_ours(model, drawn().float())


def test_measured():
    model = Stack(ByInterface()).eval()
    fastdl.accelerate(model, families=("attention",), example_inputs=(drawn().float(),))
    row = fastdl.report(model)["blocks.0"]
    assert row.error < 1e-5
    assert row.speedup > 0


def test_measured_where_another_is_chosen():
    model = Stack(ByInterface("eager")).eval()
    fastdl.accelerate(model, families=("attention",), example_inputs=(drawn().float(),))
    assert fastdl.report(model)["blocks.0"].reason == "the example inputs do not reach it"
    assert type(model.blocks[0]) is ByInterface


@pytest.mark.parametrize("name", ["Bert", "Llama"])
def test_transformers(monkeypatch, name):
    monkeypatch.undo()
    transformers = pytest.importorskip("transformers")
    sizes = dict(
        vocab_size=99, hidden_size=D, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8
    )
    config = getattr(transformers, f"{name}Config")(**sizes)
    torch.manual_seed(0)
    plain = Last(transformers.AutoModel.from_config(config).eval())
    ours = fastdl.accelerate(copy.deepcopy(plain), families=("attention",), strict=True)
    assert [row.action for row in fastdl.report(ours)] == ["fused"] * 2
    ids = torch.randint(3, 99, (2, 7))
    for kind in ("sdpa", "eager", "sdpa"):
        for model in (ours, plain):
            model.inner.set_attn_implementation(kind)
        assert calls_ours(ours, ids) == (kind == "sdpa")
        assert not calls_ours(plain, ids)
        torch.testing.assert_close(ours(ids), plain(ids))
    fastdl.restore(ours)
    assert [type(module) for module in ours.modules()] == [type(module) for module in plain.modules()]


class Last(nn.Module):
    """The states that a model of transformers gives where tokens are not padded."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        seen = torch.ones_like(ids)
        seen[1, 5:] = 0
        return self.inner(input_ids=ids, attention_mask=seen).last_hidden_state[seen.bool()]
