"""accelerate() on Linear with what follows it, in a Sequential and in a forward, and on a Linear alone."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from kept import reason
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import fastdl

ACTIVATIONS = {kind.__name__: kind for kind in (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)}


class Perceptron(nn.Module):
    """Modules and function calls, with and without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.drop = nn.Linear(5, 7), nn.GELU(approximate="tanh"), nn.Dropout(0.4)
        self.fc2, self.fc3, self.fc4 = nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.fc1(x)))
        x = F.dropout(F.silu(self.fc2(x)), 0.3, self.training)
        x = self.fc3(x).relu_()
        return self.fc4(x)


REASONS = {
    "fc1": "Linear → GELU(tanh) → Dropout in Perceptron.forward",
    "fc2": "Linear → SiLU → Dropout in Perceptron.forward",
    "fc3": "Linear → ReLU in Perceptron.forward",
    "fc4": "Linear as fastdl.nn.Linear",
}


def _same_gradients(model: nn.Module, twin: nn.Module, x: Tensor) -> None:
    outputs = [each(x) for each in (model, twin)]
    torch.testing.assert_close(*outputs)
    gradients = [
        torch.autograd.grad(y.square().sum(), list(each.parameters()))
        for y, each in zip(outputs, (model, twin), strict=True)
    ]
    for ours, truth in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_in_a_sequential(name: str):
    model = nn.Sequential(nn.Linear(5, 4), ACTIVATIONS[name](), nn.Dropout(0.5), nn.Linear(4, 2))
    plain, text, keys = copy.deepcopy(model), repr(model), list(model.state_dict())
    parameters = list(map(id, model.parameters()))
    reasons = [row.reason for row in fastdl.report(fastdl.accelerate(model))]
    assert reasons == [f"Linear → {name} → Dropout in Sequential", "Linear as fastdl.nn.Linear"]
    assert [type(module) for module in model] == [
        nn.Linear, ACTIVATIONS[name], nn.Dropout, fastdl.nn.Linear,
    ]  # fmt: skip
    assert list(map(id, model.parameters())) == parameters
    assert list(model.state_dict()) == keys
    assert not torch.equal(model(torch.ones(9, 5)), model(torch.ones(9, 5)))
    _same_gradients(model.eval(), plain.eval(), torch.randn(3, 2, 5))
    fastdl.restore(model)
    assert repr(model) == text
    assert type(model) is nn.Sequential
    assert "_fastdl_class" not in model[3].__dict__


def test_both_gelus_in_a_sequential():
    model = nn.Sequential(nn.Linear(5, 4), nn.GELU("tanh"), nn.Linear(4, 4), nn.GELU())
    plain = copy.deepcopy(model)
    shown = [row.reason for row in fastdl.report(fastdl.accelerate(model))]
    assert shown == ["Linear → GELU(tanh) in Sequential", "Linear → GELU in Sequential"]
    _same_gradients(model, plain, torch.randn(3, 5))


def test_in_a_forward():
    model = Perceptron()
    plain = copy.deepcopy(model)
    keys, parameters = list(model.state_dict()), list(map(id, model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    report = fastdl.report(fastdl.accelerate(model))
    assert {row.name: row.reason for row in report} == REASONS
    assert {row.action for row in report} == {"fused"}
    assert type(model.fc1) is nn.Linear
    assert list(map(id, model.parameters())) == parameters
    assert list(model.state_dict()) == keys
    x = torch.randn(6, 5)
    _same_gradients(model.eval(), plain.eval(), x)
    model.train()
    model(x).sum().backward()
    before = model(x)
    optimizer.step()
    assert not torch.equal(before, model(x))
    fastdl.restore(model)
    assert type(model) is Perceptron
    assert type(model.fc4) is nn.Linear


def test_the_fused_call_runs(monkeypatch: pytest.MonkeyPatch):
    from fastdl.accelerate import linear_calls

    model, calls = Perceptron(), []
    fastdl.accelerate(model)
    linear = linear_calls.linear
    monkeypatch.setattr(linear_calls, "linear", lambda *a, **k: calls.append(k) or linear(*a, **k))
    model(torch.ones(2, 5))
    assert [call["activation"] for call in calls] == ["gelu_tanh", "silu", "relu"]
    assert [call["dropout_p"] for call in calls] == [0.4, 0.3, 0.0]
    calls.clear()
    model.eval()(torch.ones(2, 5))
    assert [call["dropout_p"] for call in calls] == [0.0, 0.0, 0.0]
    calls.clear()
    model.drop.train()  # as for samples of a network's uncertainty
    model.drop.p = 0.7
    model(torch.ones(2, 5))
    assert calls[0]["dropout_p"] == 0.7


def test_a_changed_activation_is_seen():
    model = fastdl.accelerate(Perceptron().eval())
    x = torch.randn(6, 5)
    model.act.approximate = "none"
    twin = fastdl.restore(copy.deepcopy(model))
    torch.testing.assert_close(model(x), twin(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
@pytest.mark.parametrize("make", [Perceptron, lambda: nn.Sequential(nn.Linear(5, 3), nn.Tanh())])
def test_copies(make: object, how: str):
    model = fastdl.accelerate(make().eval())
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert fastdl.report(twin) == fastdl.report(model)
    assert [type(m).__name__ for m in twin.modules()] == [type(m).__name__ for m in model.modules()]
    x = torch.randn(2, 5)
    assert torch.equal(twin(x), model(x))
    torch.testing.assert_close(fastdl.restore(twin)(x), model(x))


def test_idempotent():
    for model in (Perceptron(), nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2))):
        rows = fastdl.report(fastdl.accelerate(model)).rows
        kinds = [type(m) for m in model.modules()]
        assert fastdl.report(fastdl.accelerate(model)).rows == rows
        assert [type(m) for m in model.modules()] == kinds


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiles_in_one_graph(training: bool):
    model = fastdl.accelerate(Perceptron().train(training))
    model.drop.p = 0.0
    x = torch.randn(4, 5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    if training:
        assert compiled(x).shape == (4, 3)
    else:
        torch.testing.assert_close(compiled(x), model(x))


class Twice(nn.Module):
    """The Linear's output is used after the activation too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y.relu() + y


def test_a_chain_that_is_kept_leaves_the_linear():
    model = Twice()
    plain = copy.deepcopy(model)
    assert [(row.name, row.action, row.reason) for row in fastdl.report(fastdl.accelerate(model))] == [
        ("fc", "fused", "Linear as fastdl.nn.Linear"),
        ("fc", "kept", "Linear → ReLU in Twice.forward: the output of fc is used 2 times"),
    ]
    _same_gradients(model, plain, torch.randn(3, 4))


class Untraced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).relu() if x.sum() > 0 else x


def test_below_a_forward_that_cannot_be_traced():
    model = fastdl.accelerate(Untraced())
    assert type(model.fc) is fastdl.nn.Linear
    assert type(fastdl.restore(model).fc) is nn.Linear


def test_in_place_activations_and_a_residual():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.act(self.fc(x))

    model = Model()
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    _same_gradients(model, plain, torch.randn(3, 4))


def test_an_encoder_layer_of_torch():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    plain = copy.deepcopy(model)
    report = fastdl.report(fastdl.accelerate(model, families=("linear",)))
    assert [row.name for row in report.rows] == ["linear1", "dropout", "linear2", "dropout1", "dropout2"]
    assert type(model.self_attn.out_proj) is nn.modules.linear.NonDynamicallyQuantizableLinear
    x = torch.randn(2, 3, 8)
    with torch.no_grad():  # torch's fast path, which reads the weights itself
        torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Named(nn.Linear):
    pass


def _hooked() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda *_: None)
    return layer


KEPT = [
    (_hooked, "Linear has hooks"),
    (lambda: Own(4, 4), "Own has a forward of its own"),
    (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "Linear is parametrized"),
    (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), "Linear is parametrized"),
    (lambda: nn.LazyLinear(4), "LazyLinear is not initialised yet: run the model once first"),
]
if hasattr(nn.utils, "weight_norm"):
    KEPT.append((lambda: weight_norm(nn.Linear(4, 4)), "Linear has hooks"))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(("make", "why"), KEPT, ids=[why for _, why in KEPT])
@pytest.mark.parametrize("alone", [True, False])
def test_kept(make: object, why: str, alone: bool):
    model = nn.Sequential(make(), *([] if alone else [nn.ReLU()]))
    assert reason(model, "0") == why


def test_a_subclass_is_kept_alone_and_fused_in_a_chain():
    assert reason(nn.Sequential(Named(4, 4)), "0") == "Named is a subclass of Linear"
    model = nn.Sequential(Named(4, 4), nn.ReLU())
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    assert type(model[0]) is Named
    _same_gradients(model, plain, torch.randn(3, 4))


def test_dropout_in_another_mode_than_the_linear():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5))
    model.eval()[2].train()
    fastdl.accelerate(model)
    assert not torch.equal(model(torch.ones(9, 4)), model(torch.ones(9, 4)))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_measured_on_what_reaches_it(training: bool):
    model = Perceptron().train(training)
    report = fastdl.report(fastdl.accelerate(model, example_inputs=(torch.randn(4, 5),)))
    assert {row.name for row in report} == set(REASONS)
    for row in report:
        assert row.error < 1e-5
        assert (row.action == "fused") == (row.speedup > 1)


def test_families_and_filter_are_asked():
    model = Perceptron()
    fastdl.accelerate(model, families=("conv", "rnn"))
    assert not fastdl.report(model).rows
    asked = []
    fastdl.accelerate(model, filter_fn=lambda module, name: asked.append(name) or name == "fc4")
    assert asked == list(REASONS)
    assert [row.name for row in fastdl.report(model) if row.action == "fused"] == ["fc4"]
