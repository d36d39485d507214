"""Forwards that change values in place: a trace changes the same, and a convolution waits for no such value."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl


class Block(nn.Module):
    """conv and act as attributes; the forward is each test's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y, other = self.body(x.clone())
        return F.relu(self.conv(y)) + other


class AnotherName(Block):
    def body(self, x):
        y = x
        y += 1
        return y, x


class EveryOperator(Block):
    def body(self, x):
        y = x
        y += 1
        y -= 0.5
        y *= 2
        y /= 3
        y **= 2
        return x, y


class AView(Block):
    def body(self, x):
        rows = x.mT
        rows += 1
        return x, rows


class ANumber(Block):
    def body(self, x):
        n = before = x.shape[1]
        n += 1
        return x * n, x * before


@pytest.mark.parametrize("kind", [AnotherName, EveryOperator, AView, ANumber])
def test_augmented_assignments(kind):
    torch.manual_seed(0)
    model, x = kind(), torch.randn(2, 4, 8, 8)
    plain = copy.deepcopy(model)
    assert fastdl.report(fastdl.accelerate(model))["conv"].action == "fused"
    with fastdl.backend("reference"):
        assert torch.equal(model(x), plain(x))


def test_the_callers_tensor_is_changed_too():
    class AddsToItsInput(Block):
        def forward(self, x):
            y = self.conv(x)
            x += y
            return F.relu(self.conv(x))

    model, ours, theirs = AddsToItsInput().eval(), torch.randn(2, 4, 8, 8), None
    plain, theirs = copy.deepcopy(model), ours.clone()
    fastdl.accelerate(model)
    with torch.no_grad(), fastdl.backend("reference"):
        assert torch.equal(model(ours), plain(theirs))
    assert torch.equal(ours, theirs)


class InputThenRelu(Block):
    def forward(self, x):
        y = self.conv(x)
        return y + self.act(x)


class InputThenMethod(Block):
    def forward(self, x):
        y = self.conv(x)
        return y + x.mul_(2)


class InputThenView(Block):
    def forward(self, x):
        rows = x.mT
        y = self.conv(x)
        rows += 1
        return y + x


class InputThenFlag(Block):
    def forward(self, x):
        y = self.conv(x)
        return y + F.silu(x, True)


class UnknownModule(Block):
    def __init__(self):
        super().__init__()
        self.other = AnotherName()

    def forward(self, x):
        y = self.conv(x)
        return y + self.other(x)


@pytest.mark.parametrize(
    "kind", [InputThenRelu, InputThenMethod, InputThenView, InputThenFlag, UnknownModule]
)
def test_a_convolution_does_not_wait_where_its_input_may_change(kind):
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(2, 4, 8, 8)
    plain = copy.deepcopy(model)
    fused, kept = [row for row in fastdl.report(fastdl.accelerate(model)) if row.name == "conv"]
    assert (fused.action, kept.action) == ("fused", "kept")
    assert kept.reason.startswith("Conv2d → add")
    assert kept.reason.endswith(": what it reads may be changed in place before the sum")
    with torch.no_grad(), fastdl.backend("reference"):
        assert torch.equal(model(x.clone()), plain(x.clone()))


def test_a_convolution_waits_for_torch_s_own_layers_as_long_as_they_write_nothing():
    class Parallel(Block):
        def forward(self, x):
            y = self.conv(x)
            return F.relu(y + self.shortcut(x))

    torch.manual_seed(0)
    model, x = Parallel().eval(), torch.randn(2, 4, 8, 8)
    plain = copy.deepcopy(model)
    assert fastdl.report(fastdl.accelerate(model))["conv"].reason == "Conv2d → add → ReLU in Parallel.forward"
    with torch.no_grad(), fastdl.backend("reference"):
        torch.testing.assert_close(model(x.clone()), plain(x.clone()))
        for m in (model, plain):
            m.shortcut = nn.ReLU(inplace=True)
        torch.testing.assert_close(model(x.clone()), plain(x.clone()))


def test_the_same_batch_norm_again_before_the_sum():
    """Its running statistics depend on the order of its calls."""

    class Shared(Block):
        def __init__(self):
            super().__init__()
            self.norm, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            y = self.norm(self.conv(x))
            return y + self.norm(self.conv2(x.exp()))

    model, x = Shared(), torch.randn(2, 4, 8, 8)
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    with fastdl.backend("reference"):
        assert torch.equal(model(x), plain(x))
    assert torch.equal(model.norm.running_mean, plain.norm.running_mean)


def test_a_convolution_waits_for_no_layer_of_somebody_else():
    """It may reach into any other; the normalisation is fused where it stands."""

    class Residual(Block):
        def __init__(self):
            super().__init__()
            self.conv1, self.other = nn.Conv2d(4, 4, 3, padding=1), AnotherName()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.norm(self.conv(self.act(self.conv1(x))))
            return F.relu(y + self.other(x))

    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(2, 4, 8, 8)
    plain = copy.deepcopy(model)
    row = fastdl.report(fastdl.accelerate(model))["conv"]
    assert row.reason == "Conv2d → BatchNorm2d in Residual.forward"
    with torch.no_grad():
        torch.testing.assert_close(model(x.clone()), plain(x.clone()), rtol=1e-4, atol=1e-5)


class TwoConvolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.b2 = nn.BatchNorm2d(4)


class ChangesTheWeight(TwoConvolutions):
    def forward(self, x):
        y = self.c2(F.relu(self.c1(x)))
        self.c2.weight.data.mul_(0.5)
        return y + x


class ChangesAStatistic(TwoConvolutions):
    def forward(self, x):
        y = self.b2(self.c2(F.relu(self.c1(x))))
        self.b2.running_mean.add_(1)
        return F.relu(y + x)


class Decay(nn.Module):
    """A layer that reaches into another."""

    def __init__(self, conv):
        super().__init__()
        self.reached = [conv]

    def forward(self, x):
        self.reached[0].weight.data.mul_(0.5)
        return x


class CallsWhatChangesTheWeight(TwoConvolutions):
    def __init__(self):
        super().__init__()
        self.decay = Decay(self.c2)

    def forward(self, x):
        y = self.c2(F.relu(self.c1(x)))
        return y + self.decay(x)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.randn(1, 4, 6, 6))

    def forward(self):
        return self.p


class ChangesItsOwnInput(TwoConvolutions):
    def __init__(self):
        super().__init__()
        self.own = Own()

    def forward(self, x):
        y = self.c1(self.own())
        self.own.p.data.mul_(2)
        return F.relu(y + x)


class CallsAnOperatorThatWrites(TwoConvolutions):
    def forward(self, x):
        y = self.b2(self.c1(x))
        torch.ops.aten.relu_.default(x)
        return F.relu(y + x)


@pytest.mark.parametrize(
    "kind",
    [
        ChangesTheWeight, ChangesAStatistic, CallsWhatChangesTheWeight, ChangesItsOwnInput,
        CallsAnOperatorThatWrites,
    ],
    ids=lambda kind: kind.__name__,
)  # fmt: skip
def test_a_convolution_does_not_wait_where_something_may_be_changed_before_the_sum(kind):
    torch.manual_seed(0)
    model = kind().eval()
    plain = copy.deepcopy(model)
    if kind is CallsWhatChangesTheWeight:  # the copy reaches its own
        plain.decay.reached = [plain.c2]
    fastdl.accelerate(model)
    for _ in range(2):
        x = torch.randn(1, 4, 6, 6)
        with torch.no_grad():
            ours, theirs = model(x.clone()), plain(x.clone())
        assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5
