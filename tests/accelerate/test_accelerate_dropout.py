"""accelerate() on nn.Dropout: alone, behind a Linear, and one module in both places."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from kept import reason
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fastdl
from fastdl import _extension

needs_kernels = pytest.mark.skipif(
    not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}"
)
MANY = (64, 300)


class Both(nn.Module):
    """One dropout in front of a Linear, where it is alone, and behind it, where the Linear's call drops."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop, self.last = nn.Linear(300, 7), nn.Dropout(0.5), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.relu(self.fc(self.drop(x)))))


def rows(model: nn.Module) -> dict[str, tuple[str, str]]:
    return {row.name: (row.action, row.reason) for row in fastdl.report(model)}


@needs_kernels
def test_alone_it_draws_by_our_kernel_and_not_by_torch_s():
    model = fastdl.accelerate(nn.Sequential(nn.Dropout(0.25), nn.Tanh()))
    assert rows(model) == {"0": ("fused", "Dropout as fastdl.nn.Dropout")}
    x = torch.ones(MANY, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        output = model[0](x)
        grad = torch.autograd.grad(output.sum(), x)[0]
    names = [event.name for event in profiled.events()]
    assert names.count("fastdl::linear_activation") == 2
    assert "aten::bernoulli_" not in names
    assert torch.equal(grad, output)
    assert abs((output == 0).float().mean() - 0.25) < 0.02
    assert torch.equal(model.eval()[0](x), x)
    fastdl.restore(model)
    assert type(model[0]) is nn.Dropout


@needs_kernels
def test_one_module_alone_and_behind_a_linear():
    model = Both()
    plain, text = copy.deepcopy(model), repr(model)
    fastdl.accelerate(model)
    expected = {
        "fc": ("fused", "Linear → ReLU → Dropout in Both.forward"),
        "drop": ("fused", "Dropout as fastdl.nn.Dropout"),
        "last": ("fused", "Linear as fastdl.nn.Linear"),
    }
    assert rows(model) == expected
    x = torch.randn(MANY)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        output = model(x)
    names = {event.name for event in profiled.events()}
    assert not names & {"aten::relu", "aten::bernoulli_"}
    assert not torch.equal(model(x), output)
    model.drop.p = 0.0
    torch.testing.assert_close(model(x), plain.eval()(x), rtol=1e-4, atol=1e-6)
    fastdl.accelerate(model)
    assert rows(model) == expected
    fastdl.restore(model).drop.p = 0.5
    assert repr(model) == text
    assert [type(model), type(model.drop)] == [Both, nn.Dropout]


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_only_behind_a_linear_it_stays_what_it_is(again):
    model = fastdl.accelerate(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.5)))
    if again:
        fastdl.accelerate(model)
    assert rows(model) == {"0": ("fused", "Linear → ReLU → Dropout in Sequential")}
    assert type(model[2]) is nn.Dropout


def test_where_a_forward_cannot_be_read():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.fc(x)) if x.sum() > 0 else x

    model = fastdl.accelerate(Branches())
    assert [type(model.drop), type(model.fc)] == [fastdl.nn.Dropout, fastdl.nn.Linear]


def test_copies_pickles_and_a_probability_changed_later():
    model = fastdl.accelerate(nn.Sequential(nn.Dropout(0.5), nn.Linear(300, 3)))
    kept = io.BytesIO()
    torch.save(model, kept)
    kept.seek(0)
    for each in (model, copy.deepcopy(model), torch.load(kept, weights_only=False)):
        assert type(each[0]) is fastdl.nn.Dropout
        each[0].p = 1.0
        assert not each[0](torch.ones(MANY)).any()


class Own(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Named(nn.Dropout):
    pass


def _hooked() -> nn.Module:
    layer = nn.Dropout()
    layer.register_forward_hook(lambda *_: None)
    return layer


KEPT = [
    (_hooked, "Dropout has hooks"),
    (Own, "Own has a forward of its own"),
    (Named, "Named is a subclass of Dropout"),
    (lambda: nn.Dropout(inplace=True), "it drops in place, which only torch does"),
]


@pytest.mark.parametrize(("make", "expected"), KEPT, ids=["hooks", "forward", "subclass", "in place"])
def test_kept(make, expected):
    assert reason(nn.Sequential(make()), "0") == expected


def test_what_drops_nothing_is_no_candidate():
    model = nn.Sequential(nn.Dropout(0.0), nn.Dropout2d(0.5), nn.AlphaDropout(0.5))
    assert rows(fastdl.accelerate(model, strict=True)) == {}


def test_a_transformer_layer_s_products_still_drop(monkeypatch):
    """The layer reads its dropouts' probability for the fused products, whichever class they have."""
    calls = []
    linear = fastdl.nn.transformer_layers.linear
    monkeypatch.setattr(
        fastdl.nn.transformer_layers,
        "linear",
        lambda *a, **k: calls.append(k["dropout_p"]) or linear(*a, **k),
    )
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    fastdl.accelerate(model)
    assert all(type(m) is fastdl.nn.Dropout for m in model.modules() if isinstance(m, nn.Dropout))
    model(torch.randn(2, 3, 8))
    assert calls == [0.3, 0.3]
