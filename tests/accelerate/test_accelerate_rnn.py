"""accelerate() on recurrent layers and their cells: replaced one by one, wherever they are called."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from kept import reason
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastdl

LAYERS = {
    "LSTM": dict(num_layers=2, bidirectional=True, proj_size=3),
    "GRU": dict(batch_first=True),
    "RNN": dict(nonlinearity="relu", bias=False),
}
CELLS = ("LSTMCell", "GRUCell", "RNNCell")


class Tagger(nn.Module):
    """A forward that no trace can read: it packs, prints and asks for sizes."""

    def __init__(self, kind: str = "LSTM", **options: object) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.layer = getattr(nn, kind)(5, 6, **options)
        self.head = nn.Linear(self.layer(torch.zeros(1, 1, 5))[0].shape[-1], 4)

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autograd.set_grad_enabled(torch.is_grad_enabled()):
            output, _ = self.layer(self.embedding(tokens))
        return self.head(output)


def _tokens() -> Tensor:
    return torch.randint(0, 11, (7, 3))


@pytest.mark.parametrize("kind", LAYERS)
def test_the_same_parameters_and_results(kind: str):
    model = Tagger(kind, **LAYERS[kind])
    tokens, optimizer = _tokens(), torch.optim.SGD(model.parameters(), 0.1)
    expected = model(tokens)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    before = {name: id(p) for name, p in model.named_parameters()}
    keys = list(model.state_dict())
    model.zero_grad()
    assert fastdl.accelerate(model) is model
    assert isinstance(model.layer, getattr(fastdl.nn, kind))
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert list(model.state_dict()) == keys
    model.layer.flatten_parameters()
    found = model(tokens)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)
    optimizer.step()
    assert not torch.equal(model(tokens), found)


def test_the_report_says_what_no_longer_holds():
    model = Tagger()
    row = fastdl.report(fastdl.accelerate(model))["layer"]
    assert row.action == "fused"
    assert row.reason == "LSTM as fastdl.nn.LSTM; isinstance(nn.LSTM) holds in apply() alone"
    assert not isinstance(model.layer, nn.LSTM)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_function_that_initialises_by_class_finds_it(kind: str):
    model = nn.Sequential(Tagger(kind), nn.Linear(2, 2))
    plain = copy.deepcopy(model)

    def initialise(module: nn.Module) -> None:
        if isinstance(module, getattr(nn, kind)):
            for parameter in module.parameters():
                nn.init.constant_(parameter, 0.25)

    fastdl.accelerate(model)
    for each in (model, plain):
        each.apply(initialise)
    assert isinstance(model[0].layer, getattr(fastdl.nn, kind))
    tokens = _tokens()
    torch.testing.assert_close(model[0](tokens), plain[0](tokens))
    with pytest.raises(ZeroDivisionError):
        model.apply(lambda module: 1 / (not isinstance(module, getattr(nn, kind))))
    assert isinstance(model[0].layer, getattr(fastdl.nn, kind))
    assert fastdl.report(model)["0.layer"].action == "fused"
    fastdl.restore(model)
    assert type(model[0].layer) is getattr(nn, kind)


@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str):
    model = nn.ModuleList([getattr(nn, kind)(3, 4)])
    x = torch.randn(2, 3)
    expected = model[0](x)
    row = fastdl.report(fastdl.accelerate(model))["0"]
    assert row.reason == f"{kind} as fastdl.nn.{kind}"
    assert type(model[0]) is getattr(fastdl.nn, kind)
    assert isinstance(model[0], getattr(nn, kind))
    torch.testing.assert_close(model[0](x), expected)


def test_restore_is_exact_and_calling_again_changes_nothing():
    model = Tagger(num_layers=2, dropout=0.3)
    text, attributes = repr(model), set(model.layer.__dict__)
    fastdl.accelerate(model)
    rows, kind = fastdl.report(model).rows, type(model.layer)
    assert fastdl.report(fastdl.accelerate(model)).rows == rows
    assert type(model.layer) is kind
    fastdl.restore(model)
    assert type(model.layer) is nn.LSTM
    assert repr(model) == text
    assert set(model.layer.__dict__) == attributes
    assert not fastdl.report(model).rows
    model(_tokens())


def test_changes_while_accelerated_outlive_restore():
    model = fastdl.accelerate(Tagger())
    model.double()
    model.load_state_dict({name: torch.ones_like(p) for name, p in model.state_dict().items()})
    fastdl.restore(model)
    tokens = _tokens()
    expected = fastdl.accelerate(copy.deepcopy(model))(tokens)
    assert expected.dtype == torch.float64
    torch.testing.assert_close(model(tokens), expected)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies(how: str):
    model = fastdl.accelerate(Tagger("GRU"))
    tokens = _tokens()
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert isinstance(twin.layer, fastdl.nn.GRU)
    torch.testing.assert_close(twin(tokens), model(tokens))
    assert type(fastdl.restore(twin).layer) is nn.GRU
    torch.testing.assert_close(twin(tokens), model(tokens))
    assert isinstance(model.layer, fastdl.nn.GRU)


def test_compiles_in_one_graph_where_torchs_breaks_it():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(5, 6, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            output, (h_n, c_n) = self.layer(x)
            return output.sum() + h_n.sum() + c_n.sum()

    model, x = Model(), torch.randn(4, 2, 5)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"(?i)rnn|lstm|graph"):
        compiled(x)
    torch._dynamo.reset()
    fastdl.accelerate(model)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


def test_packed_sequences_and_states():
    model = nn.ModuleDict({"layer": nn.GRU(5, 6, batch_first=True)})
    x, h_0 = torch.randn(3, 7, 5), torch.randn(1, 3, 6)
    packed = pack_padded_sequence(x, [2, 7, 4], batch_first=True, enforce_sorted=False)
    expected = model["layer"](packed, h_0)
    fastdl.accelerate(model)
    found = model["layer"](packed, hx=h_0)
    torch.testing.assert_close(found[1], expected[1])
    torch.testing.assert_close(*(pad_packed_sequence(each[0])[0] for each in (found, expected)))


def test_train_and_eval():
    model = fastdl.accelerate(Tagger(num_layers=2, dropout=0.5))
    tokens = _tokens()
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


class Own(nn.LSTM):
    def forward(self, input: Tensor, hx: object = None) -> object:
        return super().forward(input, hx)


class Named(nn.GRU):
    pass


def _hooked() -> nn.Module:
    layer = nn.LSTM(3, 4)
    layer.register_forward_hook(lambda *_: None)
    return layer


KEPT = [
    (_hooked, "LSTM has hooks"),
    (lambda: Own(3, 4), "Own has a forward of its own"),
    (lambda: Named(3, 4), "Named is a subclass of GRU"),
    (lambda: parametrizations.weight_norm(nn.RNN(3, 4), "weight_hh_l0"), "RNN is parametrized"),
    (lambda: prune.l1_unstructured(nn.LSTM(3, 4), "weight_hh_l0", 0.5), "LSTM has hooks"),
    (lambda: parametrizations.spectral_norm(nn.GRUCell(3, 4), "weight_hh"), "GRUCell is parametrized"),
]


@pytest.mark.parametrize(("make", "why"), KEPT, ids=[why for _, why in KEPT])
def test_kept(make: object, why: str):
    assert reason(nn.ModuleDict({"layer": make()}), "layer") == why


def test_families_and_filter_are_asked():
    model = Tagger()
    assert type(fastdl.accelerate(model, families=("conv", "linear")).layer) is nn.LSTM
    asked = []
    fastdl.accelerate(model, families="rnn", filter_fn=lambda module, name: asked.append(name) or False)
    assert asked == ["layer"]
    assert type(model.layer) is nn.LSTM


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_measured_on_what_reaches_it(training: bool):
    model = Tagger(num_layers=2, dropout=0.4).train(training)
    before = copy.deepcopy(model.state_dict())
    row = fastdl.report(fastdl.accelerate(model, example_inputs=(_tokens(),)))["layer"]
    assert row.error < 1e-5
    assert row.speedup > 0
    assert (row.action == "fused") == (row.speedup > 1)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_measured_with_a_packed_sequence():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(pack_padded_sequence(x, [4, 2]), hx=None)[1][0]

    row = fastdl.report(fastdl.accelerate(Model(), example_inputs=(torch.randn(4, 2, 5),)))["layer"]
    assert row.error < 1e-5


def test_fused_chains_around_it_keep_working():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.fc = nn.GRU(5, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.fc(self.layer(x)[0]))

    model, x = Model(), torch.randn(4, 2, 5)
    expected = model(x)
    fastdl.accelerate(model)
    assert [row.action for row in fastdl.report(model)] == ["fused"] * 2
    torch.testing.assert_close(model(x), expected)
    twin = pickle.loads(pickle.dumps(fastdl.accelerate(nn.Sequential(nn.Linear(3, 5), nn.ReLU()))))
    assert fastdl.report(twin)["0"].action == "fused"
