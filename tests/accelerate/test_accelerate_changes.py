"""A model that changes after accelerate(): what the trace took for granted is looked at in each call."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import fastdl

SCALE = 1.0


class Configured(nn.Module):
    """Reads something of every kind: attributes, class attributes, globals, methods, children, lists, functions."""

    factor = 2

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.window = [2, 2]
        self.negate = False
        self.head = None
        self.after = nn.ModuleList([nn.Identity()])
        self.activation = F.relu
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.alias = self.second

    def finish(self, x):
        return x * self.factor * SCALE

    def forward(self, x, residual=None, gain: float = 1.0):
        x = self.pool(self.relu(self.norm(self.conv(x))))
        x = F.max_pool2d(self.activation(self.alias(x)), self.window)
        if self.negate or self.norm.eps > 0.25:
            x = -x
        if self.head is not None:
            x = self.head(x)
        if hasattr(self, "extra"):
            x = x + self.extra
        for layer in self.after:
            x = layer(x)
        if residual is not None:
            x = x + residual
        return self.finish(x) * gain


def replace_class_method(model):
    model.finish = lambda x: x - 1


CHANGES = {
    "flag": lambda m: setattr(m, "negate", True),
    "list in place": lambda m: m.window.__setitem__(0, 1),
    "list replaced": lambda m: setattr(m, "window", 3),
    "same value, other type": lambda m: setattr(m, "negate", 0),
    "class attribute": lambda m: setattr(m, "factor", 3),
    "method": replace_class_method,
    "function": lambda m: setattr(m, "activation", torch.sigmoid),
    "child appears": lambda m: setattr(m, "head", nn.Tanh()),
    "attribute appears": lambda m: setattr(m, "extra", 5),
    "list of children": lambda m: m.after.append(nn.Tanh()),
    "child of a list": lambda m: m.after.__setitem__(0, nn.Tanh()),
    "relu": lambda m: setattr(m, "relu", nn.Tanh()),
    "pool": lambda m: setattr(m, "pool", nn.AvgPool2d(2)),
    "pool's window": lambda m: setattr(m.pool, "kernel_size", 3),
    "pool's stride": lambda m: setattr(m.pool, "stride", 1),
    "convolution": lambda m: setattr(m, "conv", nn.Conv2d(3, 4, 1)),
    "convolution's stride": lambda m: setattr(m.conv, "stride", (2, 2)),
    "convolution's padding": lambda m: setattr(m.conv, "padding", (0, 0)),
    "padding mode": lambda m: (
        setattr(m.conv, "padding_mode", "reflect"),
        setattr(m.conv, "_reversed_padding_repeated_twice", [1, 1, 1, 1]),
    ),
    "weight": lambda m: setattr(m.conv, "weight", nn.Parameter(-m.conv.weight.detach())),
    "weight's data": lambda m: setattr(m.conv.weight, "data", -m.conv.weight.data),
    "bias removed": lambda m: setattr(m.conv, "bias", None),
    "norm": lambda m: setattr(m, "norm", nn.InstanceNorm2d(4)),
    "norm's eps": lambda m: setattr(m.norm, "eps", 0.5),
    "norm's mode": lambda m: m.norm.train(not m.norm.training),
    "norm's statistics": lambda m: m.norm.running_var.fill_(4.0),
    "alias": lambda m: setattr(m, "alias", nn.Conv2d(4, 4, 1)),
    "hook": lambda m: m.conv.register_forward_hook(lambda _, __, y: -y),
    "hook on relu": lambda m: m.relu.register_forward_hook(lambda _, __, y: -y),
    "parametrization": lambda m: nn.utils.parametrizations.weight_norm(m.conv),
    "forward": lambda m: setattr(m, "forward", lambda x: x),
    "forward of a layer": lambda m: setattr(m.conv, "forward", lambda x, usual=m.conv.forward: -usual(x)),
    "forward of the relu": lambda m: setattr(m.relu, "forward", torch.sigmoid),
    "dtype": lambda m: m.double(),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("change", CHANGES)
def test_attribute_changed_after_tracing(change, training):
    torch.manual_seed(0)
    model = Configured().train(training)
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    for m in (model, plain):
        torch.manual_seed(1)
        CHANGES[change](m)
    x = torch.randn(2, 3, 12, 12, dtype=next(model.parameters()).dtype)
    with fastdl.backend("reference"):
        torch.testing.assert_close(model(x), plain(x), rtol=1e-6, atol=1e-6)


def is_fused(model: nn.Module, *args: object, **kwargs: object) -> bool:
    """Whether a call runs the graph: there the ReLU is not called."""
    called = []

    def relu(self, x):
        called.append(self)
        return F.relu(x)

    original, nn.ReLU.forward = nn.ReLU.forward, relu
    try:
        model(*args, **kwargs)
    finally:
        nn.ReLU.forward = original
    return model.relu not in called


def test_a_change_taken_back_is_fused_again():
    model, x = fastdl.accelerate(Configured()), torch.randn(1, 3, 8, 8)
    assert is_fused(model, x)
    model.negate = True
    assert not is_fused(model, x)
    model.negate = False
    assert is_fused(model, x)


def test_a_hook_on_every_module_sees_each_of_them():
    model, x = Configured(), torch.randn(1, 3, 8, 8)
    called = []
    fastdl.accelerate(model)
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
    assert not is_fused(model, x)
    handle.remove()
    assert called == [model.conv, model.norm, model.relu, model.pool, model.second, model.after[0], model]
    assert is_fused(model, x)


def test_a_global_changed_after_tracing(monkeypatch):
    model, x = Configured().eval(), torch.randn(1, 3, 8, 8)
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-6)
    assert not is_fused(model, x)


def test_a_class_changed_after_tracing(monkeypatch):
    model, x = Configured().eval(), torch.randn(1, 3, 8, 8)
    fastdl.accelerate(model)
    monkeypatch.setattr(Configured, "forward", lambda self, x, *_: x + 1)
    assert torch.equal(model(x), x + 1)


NOT_A_NUMBER = float("nan")


def test_a_value_that_does_not_equal_itself():
    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.fill = nn.Conv2d(3, 4, 3), nn.ReLU(), float("nan")

        def forward(self, x):
            return self.relu(self.conv(x)).nan_to_num(self.fill) * max(1.0, NOT_A_NUMBER)

    model, x = Filled(), torch.randn(1, 3, 8, 8)
    assert fastdl.report(fastdl.accelerate(model))["conv"].action == "fused"
    assert is_fused(model, x)
    model.fill = 2.0
    assert not is_fused(model, x)


def test_arguments_other_than_the_defaults():
    """Arguments with a default are traced at it; other values take the old forward."""
    model, x = Configured().eval(), torch.randn(1, 3, 8, 8)
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    for args, kwargs in [((x,), {}), ((x, 1.5), {}), ((x,), dict(residual=2)), ((), dict(x=x, gain=2.0))]:
        torch.testing.assert_close(model(*args, **kwargs), plain(*args, **kwargs), rtol=1e-5, atol=1e-6)
    assert is_fused(model, x)
    assert is_fused(model, x=x, gain=1.0)
    assert not is_fused(model, x, 1.5)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        model()


def test_none_for_a_required_argument():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()

        def forward(self, x, mask):
            y = self.relu(self.conv(x))
            return y if mask is None else y * mask

    model, x = Masked(), torch.randn(1, 3, 8, 8)
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    with fastdl.backend("reference"):
        assert torch.equal(model(x, None), plain(x, None))
        assert torch.equal(model(x, 2 * torch.ones(1)), plain(x, 2 * torch.ones(1)))


@pytest.mark.parametrize("key", ["slice", "append", "insert", "delete"])
def test_a_fused_sequential_that_changes(key):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    plain, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    fastdl.accelerate(model)
    change = dict(
        slice=lambda m: m[:2],
        append=lambda m: m.append(nn.Tanh()),
        insert=lambda m: m.insert(1, nn.Tanh()),
        delete=lambda m: (m.__delitem__(2), m)[1],
    )[key]
    assert torch.equal(change(model)(x), change(plain)(x))


class Wrapped(nn.Module):
    """A layer inside another module, as low-rank adapters do it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x):
        return self.base(x) - 0.5


IN_A_SEQUENTIAL = {
    "a convolution wrapped": lambda m: m.__setitem__(0, Wrapped(m[0])),
    "a linear wrapped": lambda m: m.__setitem__(4, Wrapped(m[4])),
    "a linear replaced": lambda m: setattr(m, "4", nn.Linear(36, 8)),
    "an activation replaced": lambda m: m.__setitem__(1, nn.Tanh()),
    "a pool replaced": lambda m: m.__setitem__(2, nn.AvgPool2d(2)),
    "hook on a convolution": lambda m: m[0].register_forward_hook(lambda _, __, y: -y),
    "hook on an activation": lambda m: m[5].register_forward_hook(lambda _, __, y: -y),
    "hook before a pool": lambda m: m[2].register_forward_pre_hook(lambda _, x: (-x[0],)),
    "parametrization": lambda m: nn.utils.parametrizations.weight_norm(m[4]),
    "pruning": lambda m: prune.l1_unstructured(m[4], "weight", 0.5),
    "the dropout's p": lambda m: setattr(m[6], "p", 1.0),
}


@pytest.mark.parametrize("change", IN_A_SEQUENTIAL)
def test_layers_of_a_sequential_change_afterwards(change):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.ReLU(),
        nn.Dropout(0.0),
    )
    plain, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    fastdl.accelerate(model)
    for m in (model, plain):
        torch.manual_seed(1)
        IN_A_SEQUENTIAL[change](m)
    with fastdl.backend("reference"):
        torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-6)


def test_layers_of_a_sequential_are_what_they_were_to_everyone_else():
    """Feature extraction, slices, and a search for layers by class, such as Monte Carlo dropout's."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 8))
    model.extend([nn.Sigmoid(), nn.Dropout(0.5)])
    plain, x = copy.deepcopy(model).eval(), torch.randn(2, 3, 8, 8)
    fastdl.accelerate(model.eval())
    found = []
    model.apply(lambda m: found.append(type(m)))
    assert found[:-1] == [type(layer) for layer in plain]
    assert torch.equal(model[:2](x), plain[:2](x))
    seen = {}
    for i, layer in enumerate(model):
        layer.register_forward_hook(lambda _, __, y, i=i: seen.update({i: y}))
    model(x)
    for i in range(len(model)):
        torch.testing.assert_close(seen[i], plain[: i + 1](x), rtol=1e-5, atol=1e-6)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    assert not torch.equal(model(x), model(x))


def test_layers_called_one_by_one_keep_their_outputs():
    """A forward that iterates over a Sequential sees every intermediate result, as before."""

    class Taps(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2)
            )

        def forward(self, x):
            taps = []
            for i, layer in enumerate(self.features):
                x = layer(x)
                if i == 1:
                    taps.append(x)
            return x, taps

    class UnreadableTaps(Taps):
        def forward(self, x):
            if x.sum() > 1e9:
                return x, []
            return super().forward(x)

    for kind in (Taps, UnreadableTaps):
        model, x = kind(), torch.randn(2, 3, 14, 14)
        plain = copy.deepcopy(model)
        fastdl.accelerate(model)
        with fastdl.backend("reference"):
            (y, taps), (expected, expected_taps) = model(x), plain(x)
            assert torch.equal(model.features(x), plain.features(x))
        assert torch.equal(y, expected)
        assert torch.equal(taps[0], expected_taps[0])
        assert fastdl.report(model)["features.3"].action == "fused"


def test_shared_layers():
    """A ReLU, a pool or a convolution used in several places is replaced only where the pattern is."""
    relu, conv = nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.MaxPool2d(2))
            self.second = nn.Sequential(conv, relu, conv, relu)
            self.relu, self.conv = relu, conv

        def forward(self, x):
            x = self.conv(self.second(self.first(x)))
            return self.relu(x - 1) + self.first[1](x + 1)

    model, x = Shared(), torch.randn(2, 3, 12, 12)
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    assert model.relu is relu
    assert [row.name for row in fastdl.report(model) if row.action == "fused"] == ["first.0", "second.0"]
    with fastdl.backend("reference"):
        assert torch.equal(model(x), plain(x))
    fastdl.restore(model)
    assert model.first[1] is model.second[1] is model.second[3] is model.relu is relu
    assert type(conv) is nn.Conv2d
    assert torch.equal(model(x), plain(x))


def test_input_changed_in_place_after_the_convolution():
    class Reuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = x * 1
            y = self.conv(x)
            x.mul_(0)
            return F.relu(y) + x.sum()

    model, x = Reuses(), torch.randn(1, 3, 6, 6)
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    with fastdl.backend("reference"), torch.no_grad():
        assert torch.equal(model(x), plain(x))
