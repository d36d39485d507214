"""Activations after a convolution, as modules, functions and parts of another library's normalisation."""

import copy
import sys
import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from changes import changed
from residual_blocks import relative_l2
from torch import Tensor, nn

import fastdl
from fastdl.accelerate import activations

MODULES = {
    "ReLU": nn.ReLU, "ReLU6": nn.ReLU6, "SiLU": nn.SiLU, "Hardswish": nn.Hardswish, "GELU": nn.GELU, "Tanh": nn.Tanh,
    "GELU(tanh)": lambda: nn.GELU(approximate="tanh"), "Sigmoid": nn.Sigmoid,
}  # fmt: skip
FUNCTIONS = {
    "ReLU6": lambda y: F.relu6(y, inplace=True), "SiLU": lambda y: F.silu(y, True), "Hardswish": F.hardswish,
    "GELU": F.gelu, "GELU(tanh)": lambda y: F.gelu(y, approximate="tanh"), "Tanh": lambda y: y.tanh(),
    "Sigmoid": torch.sigmoid,
}  # fmt: skip


class Block(nn.Module):
    """[norm](conv(x)) [+ residual], and an activation."""

    def __init__(self, activation: Callable[[Tensor], Tensor], norm: bool, residual: bool, **conv: int):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, **conv)
        self.norm = nn.BatchNorm2d(8) if norm else None
        self.activation, self.residual = activation, residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.norm is not None:
            y = self.norm(y)
        if self.residual:
            y = y + x
        return self.activation(y)


def _settled(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
    return model


def _assert_alike(ours: nn.Module, theirs: nn.Module, limit: float = 1e-5) -> None:
    """In inference, and a step of training with running and with batch statistics."""
    x = 2 * torch.randn(2, 8, 9, 10)
    for training in (False, True):
        ours.train(training), theirs.train(training)
        found = []
        for model in (ours, theirs):
            with torch.no_grad():
                y = copy.deepcopy(model)(x)
            leaf = x.clone().requires_grad_()
            recorded = model(leaf)
            found.append(
                (y, recorded, *torch.autograd.grad(recorded.sin().sum(), [leaf, *model.parameters()]))
            )
        for a, b in zip(*found, strict=True):
            # a bias before batch statistics has a gradient of nothing but rounding
            assert (a - b).norm() < limit * b.norm() + 1e-4 * (b.norm() < 1e-3)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "add"])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("shown", MODULES)
def test_modules(shown, norm, residual, groups):
    torch.manual_seed(0)
    model = _settled(Block(MODULES[shown](), norm, residual, groups=groups)).eval()
    plain = copy.deepcopy(model)
    row = fastdl.report(fastdl.accelerate(model, strict=True))["conv"]
    names = ["Conv2d", *(["BatchNorm2d"] if norm else []), *(["add"] if residual else []), shown]
    assert (row.action, row.reason) == ("fused", f"{' → '.join(names)} in Block.forward")
    _assert_alike(model, plain)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("shown", FUNCTIONS)
def test_functions_and_methods(shown, norm):
    torch.manual_seed(0)
    model = _settled(Block(FUNCTIONS[shown], norm, False)).eval()
    plain = copy.deepcopy(model)
    row = fastdl.report(fastdl.accelerate(model))["conv"]
    assert row.reason == f"Conv2d → {'BatchNorm2d → ' if norm else ''}{shown} in Block.forward"
    _assert_alike(model, plain)


def test_an_attribute_of_the_activation_changes():
    torch.manual_seed(0)
    model = Block(nn.GELU(), False, False).eval()
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    x = torch.randn(2, 8, 9, 10)
    for m in (model, plain):
        m.activation.approximate = "tanh"
    assert relative_l2(model(x), plain(x)) < 1e-6
    for m in (model, plain):
        m.activation = nn.ELU()
    assert relative_l2(model(x), plain(x)) < 1e-6


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_a_relu6_with_other_limits(before):
    torch.manual_seed(0)
    model = Block(nn.ReLU6(), True, False).eval()
    if before:
        model.activation.max_val = 0.5
    plain = copy.deepcopy(model)
    assert fastdl.report(fastdl.accelerate(model))["conv"].reason.endswith(
        "Conv2d → BatchNorm2d in Block.forward" if before else "→ ReLU6 in Block.forward"
    )
    for m in (model, plain):
        m.activation.max_val = 0.5
    x = 3 * torch.randn(2, 8, 9, 10)
    assert relative_l2(model(x), plain(x)) < 1e-5


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish", "silu"])
def test_pieces_change_where_the_derivative_jumps(activation):
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64, requires_grad=True)
    y = getattr(F, activation)(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    jumps = (slope.diff().abs() > 0.1).nonzero().flatten()
    found = activations.piece(y.detach(), activation)
    changes = [] if found is None else found.diff().nonzero().flatten().tolist()
    assert all(min(abs(jump - change) for change in changes) <= 1 for jump in jumps.tolist())
    assert (activation == "silu") == (found is None)


class BatchNormAct2d(nn.BatchNorm2d):
    """What timm's class computes."""

    def __init__(self, num_features: int, act: nn.Module, drop: nn.Module | None = None):
        super().__init__(num_features)
        self.drop = nn.Identity() if drop is None else drop
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class Inverted(nn.Module):
    """Channels convolved by themselves between two pointwise convolutions, as in mobile networks."""

    def __init__(self, act: Callable[[], nn.Module]):
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(8, 24, 1, bias=False), BatchNormAct2d(24, act())
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False)
        self.bn2 = BatchNormAct2d(24, act())
        self.project, self.bn3 = nn.Conv2d(24, 8, 1, bias=False), BatchNormAct2d(8, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.bn3(self.project(self.bn2(self.depthwise(self.bn1(self.expand(x)))))) + x


@pytest.fixture
def known(monkeypatch):
    """The class is that of the library."""
    library = types.SimpleNamespace(BatchNormAct2d=BatchNormAct2d)
    monkeypatch.setitem(sys.modules, "timm.layers.norm_act", library)


@pytest.mark.parametrize("shown", ["ReLU", "ReLU6", "SiLU", "Hardswish"])
def test_a_normalisation_that_ends_in_its_activation(known, shown):
    torch.manual_seed(0)
    model = _settled(Inverted(MODULES[shown])).eval()
    plain = copy.deepcopy(model)
    rows = fastdl.report(fastdl.accelerate(model, strict=True))
    fused = f"Conv2d → BatchNormAct2d({shown}) in Inverted.forward"
    assert [row.reason for row in rows] == [fused, fused, "Conv2d → BatchNorm2d → add in Inverted.forward"]
    _assert_alike(model, plain)


CHANGES = {
    "activation": lambda m: setattr(m.bn1, "act", nn.Tanh()),
    "activation of nothing": lambda m: setattr(m.bn3, "act", nn.Sigmoid()),
    "drop": lambda m: setattr(m.bn1, "drop", nn.Softplus()),
    "hook on the activation": lambda m: m.bn2.act.register_forward_hook(lambda _, __, y: y + 1),
    "hook on the drop": lambda m: m.bn1.drop.register_forward_hook(lambda _, __, y: 2 * y),
    "forward": lambda m: setattr(m.bn1, "forward", torch.sin),
    "another part": lambda m: setattr(m.bn1, "act", nn.Sequential(nn.SiLU(), nn.Tanh())),
}


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("change", CHANGES)
def test_its_parts_change(known, change, before):
    """After it was accelerated, or before."""
    torch.manual_seed(0)
    model, plain = changed(_settled(Inverted(nn.SiLU)).eval(), CHANGES[change], before)
    x = torch.randn(2, 8, 9, 10)
    assert relative_l2(model(x), plain(x)) < 1e-5


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (dict(drop=nn.Dropout(0.0)), "BatchNormAct2d drops by Dropout"),
        (dict(act=nn.ELU()), "no kernel for ELU after a normalisation"),
        (dict(more=nn.ReLU()), "BatchNormAct2d has other parts than drop and act"),
    ],
    ids=["drop", "act", "more"],
)
def test_why_it_is_kept(known, part, reason):
    model = Inverted(nn.ReLU).eval()
    for name, module in part.items():
        model.bn1.add_module(name, module)
    assert fastdl.report(fastdl.accelerate(model))["expand"].reason.endswith(reason)


def test_a_class_that_only_looks_like_it():
    model = Inverted(nn.ReLU).eval()
    reason = fastdl.report(fastdl.accelerate(model))["expand"].reason
    assert reason.endswith("BatchNormAct2d has a forward of its own")


def test_timm():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = _settled(timm.create_model("mobilenetv3_small_050")).eval()
    plain = copy.deepcopy(model)
    fused = [row.reason for row in fastdl.report(fastdl.accelerate(model)) if row.action == "fused"]
    assert any("BatchNormAct2d(Hardswish)" in reason for reason in fused)
    x = torch.randn(2, 3, 64, 64)
    assert relative_l2(model(x), plain(x)) < 1e-5
