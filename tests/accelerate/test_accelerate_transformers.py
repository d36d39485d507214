"""Activations and Conv1D of Hugging Face's transformers in chains, known by their classes."""

import copy
import functools
import importlib.util
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers_stand_ins as strangers
from changes import changed
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastdl
from fastdl.accelerate import linear_calls

FILES = ("transformers.activations", "transformers.pytorch_utils")


@pytest.fixture
def library(monkeypatch):
    """The stand-ins as transformers' files."""
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    for name in FILES:
        spec = importlib.util.spec_from_file_location(name, Path(strangers.__file__))
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        monkeypatch.setitem(sys.modules, name, loaded)
    return types.SimpleNamespace(**{**vars(sys.modules[FILES[0]]), "Conv1D": sys.modules[FILES[1]].Conv1D})


class Block(nn.Module):
    """As GPT-2's: two layers, an activation, a dropout."""

    def __init__(self, first: nn.Module, act: nn.Module, second: nn.Module, p: float = 0.0) -> None:
        super().__init__()
        self.first, self.act, self.second, self.drop = first, act, second, nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.second(self.act(self.first(x))))


def _linears(act: nn.Module) -> Block:
    return Block(nn.Linear(5, 7), act, nn.Linear(7, 3))


def _conv1d(library: types.SimpleNamespace, p: float = 0.0) -> Block:
    return Block(library.Conv1D(7, 5), library.NewGELUActivation(), library.Conv1D(3, 7), p)


def _assert_alike(
    ours: nn.Module, theirs: nn.Module, dtype: torch.dtype = torch.float64, limit=1e-13
) -> None:
    """The output and the gradients, of few rows and of many."""
    for rows in (2, 40):
        x = torch.randn(rows, 3, 5, dtype=dtype)
        found = []
        for model in (ours.to(dtype), theirs.to(dtype)):
            leaf = x.clone().requires_grad_()
            y = model(leaf)
            found.append((y, *torch.autograd.grad(y.sin().sum(), [leaf, *model.parameters()])))
        for a, b in zip(*found, strict=True):
            assert (a - b).norm() < limit * b.norm()
        with torch.no_grad():
            assert (ours(x) - theirs(x)).norm() < limit * x.norm()


def _fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The activation of each fused call from now on."""
    calls, linear = [], linear_calls.linear
    monkeypatch.setattr(
        linear_calls, "linear", lambda *a, **k: calls.append(k["activation"]) or linear(*a, **k)
    )
    return calls


ACTIVATIONS = {
    "GELUActivation": ((), "GELU"),
    "GELUActivation by its formula": ((True,), "GELU"),
    "GELUTanh": ((), "GELU(tanh)"),
    "GELUTanh by its formula": ((True,), "GELU(tanh)"),
    "PytorchGELUTanh": ((), "GELU(tanh)"),
    "NewGELUActivation": ((), "GELU(tanh)"),
    "SiLUActivation": ((), "SiLU"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(library, name):
    arguments, shown = ACTIVATIONS[name]
    model = _linears(getattr(library, name.partition(" ")[0])(*arguments))
    plain, text, kinds = copy.deepcopy(model), repr(model), [type(m) for m in model.modules()]
    rows = fastdl.report(fastdl.accelerate(model, strict=True))
    assert rows["first"].reason == f"Linear → {shown} in Block.forward"
    _assert_alike(model, plain)
    _assert_alike(model, plain, torch.float32, 1e-5)
    fastdl.restore(model)
    assert (repr(model), [type(m) for m in model.modules()]) == (text, kinds)


@pytest.mark.parametrize("name", ["FastGELUActivation", "QuickGELUActivation"])
def test_others_have_no_kernel(library, name):
    """FastGELU's rounded constant makes it another function in float64."""
    model = _linears(getattr(library, name)())
    assert fastdl.report(fastdl.accelerate(model))["first"].reason == "Linear as fastdl.nn.Linear"


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_after_a_convolution(library, norm):
    layers = [nn.Conv2d(3, 4, 3), *([nn.BatchNorm2d(4)] if norm else []), library.NewGELUActivation()]
    model = nn.Sequential(*layers).eval()
    plain = copy.deepcopy(model)
    row = fastdl.report(fastdl.accelerate(model, strict=True))["0"]
    assert row.reason == f"Conv2d → {'BatchNorm2d → ' if norm else ''}GELU(tanh) in Sequential"
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(model(x), plain(x))


def test_conv1d(library, monkeypatch):
    model = _conv1d(library)
    plain, text = copy.deepcopy(model), repr(model)
    parameters = list(map(id, model.parameters()))
    rows = fastdl.report(fastdl.accelerate(model, strict=True))
    assert {row.name: row.reason for row in rows} == {
        "first": "Conv1D → GELU(tanh) in Block.forward",
        "second": "Conv1D → Dropout in Block.forward",
    }
    assert list(map(id, model.parameters())) == parameters
    calls = _fused_calls(monkeypatch)
    model(torch.randn(40, 5))
    assert calls == ["gelu_tanh", None]
    model(torch.randn(2, 5))  # so few rows that the second is called itself
    assert calls == ["gelu_tanh", None, "gelu_tanh"]
    _assert_alike(model, plain)
    _assert_alike(model, plain, torch.float32, 1e-5)
    fastdl.restore(model)
    assert repr(model) == text
    assert type(model) is Block


def test_conv1d_and_dropout(library):
    model = fastdl.accelerate(_conv1d(library, 0.5))
    for rows in (2, 40):
        x = torch.ones(rows, 5)
        assert not torch.equal(model.train()(x), model(x))
        torch.testing.assert_close(model.eval()(x), fastdl.restore(copy.deepcopy(model))(x))


def test_conv1d_alone_stays(library):
    model = fastdl.accelerate(nn.Sequential(library.Conv1D(4, 5)), strict=True)
    assert type(model[0]) is library.Conv1D
    assert not fastdl.report(model).rows


def _own_forward(kind: type[nn.Module]) -> type[nn.Module]:
    return type("Own", (kind,), {"forward": lambda self, x: 2 * kind.forward(self, x)})


KEPT = {
    "hooks": (lambda m: m.register_forward_hook(lambda *_: None), "Conv1D has hooks"),
    "parametrized": (parametrizations.weight_norm, "Conv1D is parametrized"),
    "own": (lambda m: setattr(m, "__class__", _own_forward(type(m))), "Own has a forward of its own"),
    "integers": (
        lambda m: setattr(m, "weight", nn.Parameter(torch.ones(5, 7, dtype=torch.int8), False)),
        "a parameter is a Tensor of torch.int8",
    ),
}


@pytest.mark.parametrize("why", KEPT)
def test_conv1d_kept(library, why):
    model = _conv1d(library)
    change, reason = KEPT[why]
    change(model.first)
    assert fastdl.report(fastdl.accelerate(model))["first"].reason == reason


CHANGES = {
    "act": lambda m: setattr(m.act, "act", torch.tanh),
    "act is a module": lambda m: setattr(m.act, "act", nn.Tanh()),
    "act in one mode": lambda m: setattr(m.act, "act", functools.partial(F.gelu, approximate="none")),
    "act's arguments": lambda m: getattr(m.act.act, "keywords", {}).update(approximate="none"),
    "forward": lambda m: setattr(m.act, "forward", torch.sin),
    "forward of the class": lambda m: setattr(type(m.act), "forward", lambda _, x: x.cos()),
    "class": lambda m: setattr(m.act, "__class__", _own_forward(type(m.act))),
    "hook": lambda m: m.act.register_forward_hook(lambda _, __, y: y + 1),
    "another": lambda m: setattr(m, "act", nn.Softplus()),
    "another layer": lambda m: setattr(m, "first", nn.ConstantPad1d((0, 2), 1.0)),
    "hook on the layer": lambda m: m.first.register_forward_hook(lambda _, __, y: y + 1),
    "forward of the layer's class": lambda m: setattr(
        type(m.first), "forward", lambda _, x: x.repeat(1, 2)[:, :7]
    ),
}


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("name", ["GELUActivation", "GELUActivation by its formula", "GELUTanh"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes(library, change, name, before):
    """After it was accelerated, or before."""
    act = getattr(library, name.partition(" ")[0])(*ACTIVATIONS[name][0])
    model, plain = changed(
        Block(library.Conv1D(7, 5), act, library.Conv1D(3, 7)).double(), CHANGES[change], before
    )
    x = torch.randn(40, 5, dtype=torch.float64)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("file", FILES)
def test_a_class_of_another_s_in_the_library_s_place(library, monkeypatch, file):
    """As some put there for releases that lack it."""
    for name in ("GELUActivation", "Conv1D"):
        monkeypatch.setattr(sys.modules[file], name, getattr(strangers, name))
    model = Block(strangers.Conv1D(7, 5), nn.ReLU(), nn.Linear(7, 3))
    assert "first" not in {row.name for row in fastdl.report(fastdl.accelerate(model))}
    model = _linears(strangers.GELUActivation())
    assert fastdl.report(fastdl.accelerate(model))["first"].reason == "Linear as fastdl.nn.Linear"


def test_a_formula_of_a_subclass(library):
    own = type("Own", (library.GELUActivation,), {"_gelu_python": lambda self, x: x.sin()})
    model = _linears(own(True))
    assert fastdl.report(fastdl.accelerate(model))["first"].reason == "Linear as fastdl.nn.Linear"


def test_without_the_library():
    model = Block(strangers.Conv1D(7, 5), strangers.GELUActivation(), nn.Linear(7, 3))
    assert {row.name for row in fastdl.report(fastdl.accelerate(model))} == {"second"}


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_copies(library, how):
    model = fastdl.accelerate(Block(library.Conv1D(7, 5), library.GELUTanh(True), library.Conv1D(3, 7)))
    twin, x = how(model), torch.randn(4, 5)
    assert fastdl.report(twin) == fastdl.report(model)
    assert torch.equal(twin(x), model(x))
    torch.testing.assert_close(fastdl.restore(twin)(x), model(x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_repeated_blocks_share_a_class(library, name):
    kind, arguments = getattr(library, name.partition(" ")[0]), ACTIVATIONS[name][0]
    blocks = [fastdl.accelerate(_linears(kind(*arguments))) for _ in range(2)]
    assert type(blocks[0]) is type(blocks[1]) is not Block


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_compiles_in_one_graph(library, name):
    act = getattr(library, name.partition(" ")[0])(*ACTIVATIONS[name][0])
    model = fastdl.accelerate(Block(library.Conv1D(7, 5), act, library.Conv1D(3, 7)))
    called = []

    def backend(graph: torch.fx.GraphModule, _: list) -> Callable:
        called.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    x = torch.randn(40, 5)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend=backend)(x), model(x))
    assert called
    assert torch.addmm not in called  # as the layer's own forward does
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_measured_against_the_module(library, monkeypatch):
    model, calls = _conv1d(library, 0.1), []
    formula = library._tanh_formula
    monkeypatch.setattr(sys.modules[FILES[0]], "_tanh_formula", lambda x: calls.append(x) or formula(x))
    report = fastdl.report(fastdl.accelerate(model, example_inputs=(torch.randn(64, 5),)))
    assert len(calls) > 1  # the first is in the model's own run
    assert {row.name for row in report} == {"first", "second"}
    assert all(row.error < 1e-5 and (row.action == "fused") == (row.speedup > 1) for row in report)


def test_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    gpt2 = transformers.GPT2Model(transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2))
    sizes = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=20, **sizes))
    distil = transformers.DistilBertModel(
        transformers.DistilBertConfig(vocab_size=20, dim=8, n_layers=2, n_heads=2, hidden_dim=12)
    )
    expected = {
        "Conv1D → GELU(tanh) in GPT2MLP.forward": gpt2,
        "Linear → GELU in BertIntermediate.forward": bert,
        "Linear → GELU in FFN.forward": distil,
    }
    for reason, model in expected.items():
        plain = copy.deepcopy(model.eval())
        rows = fastdl.report(fastdl.accelerate(model))
        assert [row.reason for row in rows].count(reason) == 2
        x = torch.randint(20, (2, 5))
        ours, theirs = (m(x).last_hidden_state for m in (model, plain))
        torch.testing.assert_close(ours, theirs)
        (ours.sin().sum() + theirs.sin().sum()).backward()
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
        assert [type(m) for m in fastdl.restore(model).modules()] == [type(m) for m in plain.modules()]
