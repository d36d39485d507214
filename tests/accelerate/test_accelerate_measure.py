"""accelerate(example_inputs=…): what is measured, what that leaves behind, and what is kept because of it."""

import copy
import random
import time

import numpy
import pytest
import torch
from architectures import ARCHITECTURES
from torch import Tensor, nn

import fastdl
from fastdl.accelerate import calls, measure


@pytest.fixture
def timer(monkeypatch):
    """Stands in for the timer: every call runs once, the fused one takes `timer["after"]`."""
    seconds = {"before": 1.0, "after": 0.5}

    def interleaved(calls, **_):
        for call in calls.values():
            call()
        return dict(seconds)

    monkeypatch.setattr(measure, "interleaved", interleaved)
    return seconds


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_faster_and_correct_is_fused(name, training, timer):
    architecture = ARCHITECTURES[name]
    model = architecture.model().train(training)
    fastdl.accelerate(model, example_inputs=(architecture.x(),))
    rows = {row.name: row for row in fastdl.report(model) if row.action == "fused"}
    assert tuple(rows) == architecture.fused
    for row in rows.values():
        assert row.speedup == 2.0
        assert 0 <= row.error < 1e-5


def test_slower_is_kept(timer):
    timer["after"] = 2.0
    architecture = ARCHITECTURES["attributes"]
    model = architecture.model()
    fastdl.accelerate(model, example_inputs={"x": architecture.x()})
    rows = [(row.name, row.action, row.speedup) for row in fastdl.report(model)]
    assert rows == [(name, "kept", 0.5) for name in architecture.fused]
    assert fastdl.report(model)["conv1"].reason.startswith("slower here")
    assert type(model) is type(architecture.model())
    with pytest.raises(fastdl.UnsupportedError, match="conv1: slower here"):
        fastdl.accelerate(model, example_inputs=(architecture.x(),), strict=True)


@pytest.mark.parametrize("wrong", ["output", "gradient"])
def test_wrong_is_kept(wrong, timer, monkeypatch):
    conv_relu_maxpool = calls.conv_relu_maxpool

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y * 1.001 if wrong == "output" else y.clone()

        @staticmethod
        def backward(ctx, grad_output):
            return grad_output * 1.001 if wrong == "gradient" else grad_output

    def inexact(*args, **kwargs):
        result = conv_relu_maxpool(*args, **kwargs)
        return (Wrong.apply(result[0]), result[1]) if isinstance(result, tuple) else Wrong.apply(result)

    monkeypatch.setattr(calls, "conv_relu_maxpool", inexact)
    architecture = ARCHITECTURES["attributes"]
    model = architecture.model()
    fastdl.accelerate(model, example_inputs=(architecture.x(),))
    row = fastdl.report(model)["conv2"]
    assert row.action == "kept"
    assert row.reason.startswith(f"the error of its {wrong}")
    assert (row.error > 1e-4) == (wrong == "output")


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_failing_is_kept(place, timer, monkeypatch):
    """With the first line of the error; an interrupt and memory that runs out are raised."""
    conv_relu_maxpool, raised = calls.conv_relu_maxpool, ValueError("does not fit\nat all")

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            if place == "forward":
                raise raised
            return y.clone()

        @staticmethod
        def backward(ctx, grad_output):
            raise raised

    def failing(*args, **kwargs):
        result = conv_relu_maxpool(*args, **kwargs)
        return (Fails.apply(result[0]), result[1]) if isinstance(result, tuple) else Fails.apply(result)

    monkeypatch.setattr(calls, "conv_relu_maxpool", failing)
    architecture = ARCHITECTURES["attributes"]
    model, inputs = architecture.model(), (architecture.x(),)
    fastdl.accelerate(model, example_inputs=inputs)
    row = fastdl.report(model)["conv2"]
    assert (row.action, row.reason) == ("kept", "failed here: does not fit")
    with pytest.raises(fastdl.UnsupportedError, match="conv2: failed here: does not fit"):
        fastdl.accelerate(model, example_inputs=inputs, strict=True)
    for raised in (KeyboardInterrupt(), torch.cuda.OutOfMemoryError("out of memory")):
        with pytest.raises(type(raised)):
            fastdl.accelerate(model, example_inputs=inputs)


def test_an_error_of_the_model_itself_is_raised(timer):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(9))
    with pytest.raises(RuntimeError, match="too small"):
        fastdl.accelerate(model, example_inputs=(torch.randn(2, 3, 8, 8),))


def test_gradients_are_measured_only_in_training(timer, monkeypatch):
    steps = []
    step = measure.Computation.step
    monkeypatch.setattr(measure.Computation, "step", lambda c, **_: steps.append(list(c.inputs)) or step(c))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    fastdl.accelerate(copy.deepcopy(model).eval(), example_inputs=(torch.randn(2, 3, 8, 8),))
    assert not any(steps)
    steps.clear()
    fastdl.accelerate(model.train(), example_inputs=(torch.randn(2, 3, 8, 8),))
    # the input of the model itself needs no gradient
    assert {tuple(names) for names in steps} == {("weight", "bias"), ("input", "weight", "bias")}


class Stateful(nn.Module):
    """Everything that a call may change."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.seen, self.last = {}, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        self.seen[len(self.seen)] = x
        random.random()
        numpy.random.rand()
        return self.dropout(self.block(x))


def test_leaves_the_model_and_the_generators_as_they_were(timer):
    model, x = Stateful(), torch.randn(2, 3, 10, 10)
    model.dropout.eval()
    hook = model.block[3].register_forward_hook(lambda *_: hook.remove())
    model(x).sum().backward()
    handles = [model.dropout.register_forward_hook(lambda *_: None)]
    state = copy.deepcopy(model.state_dict())
    gradients = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    attributes = [
        {k: copy.copy(v) if isinstance(v, dict) else v for k, v in m.__dict__.items()}
        for m in model.modules()
    ]
    torch.manual_seed(1), random.seed(1), numpy.random.seed(1)
    expected = torch.rand(1), random.random(), numpy.random.rand()
    torch.manual_seed(1), random.seed(1), numpy.random.seed(1)

    fastdl.accelerate(model, example_inputs=(x,))
    fastdl.restore(model)

    assert (torch.rand(1), random.random(), numpy.random.rand()) == expected
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name][0]
        assert torch.equal(parameter.grad, gradients[name][1])
    assert [module.training for module in model.modules()] == modes
    assert [dict(module.__dict__) for module in model.modules()] == attributes
    assert not x.requires_grad
    handles[0].remove()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("what", ["model", "input", "call"])
def test_inference_mode(what, training, timer):
    """Its tensors are written in it only, and have no backward pass."""

    def mode(which: str) -> torch.inference_mode:
        return torch.inference_mode(which == what)

    architecture = ARCHITECTURES["norms in sequential"]
    with mode("model"):
        model = architecture.model().train(training)
    with mode("input"):
        x = architecture.x()
    state = copy.deepcopy(model.state_dict())
    with mode("call"):
        fastdl.accelerate(model, example_inputs=(x,))
    assert {row.action for row in fastdl.report(model)} == {"fused"}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.inference_mode():
        assert torch.isfinite(model(x)).all()


def test_a_dict_that_cannot_be_written_is_left_alone(timer):
    class Frozen(dict):
        def update(self, *_):
            raise TypeError("a configuration")

    model = ARCHITECTURES["vgg"].model()
    model.config = Frozen(channels=3)
    fastdl.accelerate(model, example_inputs=(ARCHITECTURES["vgg"].x(),))
    assert model.config == dict(channels=3)
    assert fastdl.report(model).to_dict()["fused"]


def test_a_call_that_fails_leaves_the_model_as_it_was(timer):
    model = Stateful()
    with pytest.raises(RuntimeError):
        fastdl.accelerate(model, example_inputs=(torch.randn(2, 7, 10, 10),))
    assert model.calls == 0
    assert model.last is None
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert type(model.block) is nn.Sequential


def test_not_reached(timer):
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
            self.unused = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

        def forward(self, x):
            return self.used(x)

    model = fastdl.accelerate(Skips(), example_inputs=(torch.randn(1, 3, 8, 8),))
    assert fastdl.report(model)["used.0"].action == "fused"
    assert fastdl.report(model)["unused.0"].reason == "the example inputs do not reach it"


def test_a_filtered_candidate_is_not_measured(timer):
    architecture = ARCHITECTURES["attributes"]
    model = architecture.model()
    fastdl.accelerate(model, example_inputs=(architecture.x(),), filter_fn=lambda _, name: name == "conv2")
    speedups = {row.name: row.speedup for row in fastdl.report(model)}
    assert speedups == dict.fromkeys(architecture.fused) | {"conv2": 2.0}


def test_under_autocast_and_in_half_precision(timer):
    architecture = ARCHITECTURES["resnet"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model = fastdl.accelerate(architecture.model().eval(), example_inputs=(architecture.x(),))
    assert 1e-4 < fastdl.report(model)["conv1"].error < 1e-2
    architecture = ARCHITECTURES["vgg"]
    model = architecture.model().bfloat16()
    fastdl.accelerate(model, example_inputs=(architecture.x().bfloat16(),))
    assert [(row.name, row.action) for row in fastdl.report(model)] == [
        (n, "fused") for n in architecture.fused
    ]


def test_lazy_modules_come_first(timer):
    with pytest.raises(ValueError, match="lazy"):
        fastdl.accelerate(
            nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()), example_inputs=(torch.ones(1, 3, 8, 8),)
        )


def test_real_time(monkeypatch):
    """Without a stand-in: an op that sleeps is slower."""
    conv_relu_maxpool = calls.conv_relu_maxpool

    def slow(*args, **kwargs):
        time.sleep(0.02)
        return conv_relu_maxpool(*args, **kwargs)

    monkeypatch.setattr(calls, "conv_relu_maxpool", slow)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    fastdl.accelerate(model, example_inputs=(torch.randn(1, 3, 8, 8),))
    row = fastdl.report(model)["0"]
    assert row.action == "kept"
    assert row.speedup < 1
