"""Forwards that accelerate() keeps, because a trace would not be the same, and the reason its report gives."""

import copy
import inspect
import random

import pytest
import torch
import torch.nn.functional as F
from kept import Forward, reason

import fastdl


class SecondConsumer(Forward):
    def forward(self, x):
        y = self.conv(x)
        return self.pool(self.relu(y)) + self.pool(y)


class ReturnsBoth(Forward):
    def forward(self, x):
        y = self.conv(x)
        return y, F.relu(y)


class DataDependent(Forward):
    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return self.relu(self.conv(x))


class DependsOnShape(Forward):
    def forward(self, x):
        if x.shape[0] > 1:
            x = -x
        return self.relu(self.conv(x))


class DependsOnAWeight(Forward):
    def forward(self, x):
        x = -x if self.conv.weight.requires_grad else x
        return self.relu(self.conv(x))


class DependsOnBoth(Forward):
    def forward(self, x):
        if x.shape[0] > x.mean():
            x = -x
        return self.relu(self.conv(x))


class DependsOnDevice(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if x.is_cuda and x.dim() == 4 else x


class Iterates(Forward):
    def forward(self, levels):
        return [self.relu(self.conv(x)) for x in levels]


class Loops(Forward):
    def forward(self, x):
        for _ in range(x.size(1) // 2):
            x = self.relu(self.conv(x))
        return x


class ReadsParameters(Forward):
    def forward(self, x):
        return self.relu(self.conv(x.to(next(self.parameters()).device)))


class Starred(Forward):
    def forward(self, *inputs):
        return self.relu(self.conv(inputs[0]))


class NoGrad(Forward):
    def forward(self, x):
        with torch.no_grad():
            return self.relu(self.conv(x))


class Decorated(Forward):
    @torch.no_grad()
    def forward(self, x):
        return self.relu(self.conv(x))


class Tries(Forward):
    def forward(self, x):
        try:
            return self.relu(self.conv(x))
        except RuntimeError:
            return x


class Prints(Forward):
    def forward(self, x):
        print(x.shape)
        return self.relu(self.conv(x))


class Counts(Forward):
    def forward(self, x):
        self.calls = 1
        return self.relu(self.conv(x))


class Appends(Forward):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(1)
        return self.relu(self.conv(x))


class ReadsABuffer(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) * float(self.scale)


class MakesATensor(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) + torch.arange(2)


class DrawsInPython(Forward):
    def forward(self, x):
        if random.random() < 0.5:
            x = -x
        return self.relu(self.conv(x))


class DrawsATensor(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if torch.rand(()) < 0.5 else x


class AsksForGradMode(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if torch.is_grad_enabled() else x


class ReadsAnObject(Forward):
    def __init__(self):
        super().__init__()
        self.config = object()

    def forward(self, x):
        return self.relu(self.conv(x)) if self.config else x


class AsksForItsCaller(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if inspect.currentframe() else x


class ComputesThePool(Forward):
    def forward(self, x):
        return F.max_pool2d(F.relu(self.conv(x)), x.shape[2] // 3)


class Pickled(Forward):
    def __reduce__(self):
        return Pickled, ()

    def forward(self, x):
        return self.relu(self.conv(x))


SETTINGS = {"double": False}


class ReadsAGlobalDict(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if SETTINGS else x


class Registered(Forward):
    kinds: list = []

    def __init_subclass__(cls):
        Registered.kinds.append(cls)

    def forward(self, x):
        return self.relu(self.conv(x))


class Delegates(Forward):
    def __getattr__(self, name):
        return super().__getattr__(name)

    def forward(self, x):
        return self.relu(self.conv(x))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (SecondConsumer, "the output of conv is used 2 times"),
        (ReturnsBoth, "the output of conv is used 2 times"),
        (DataDependent, "its control flow depends on data"),
        (DependsOnBoth, "its control flow depends on data"),
        (DependsOnShape, "its control flow depends on a tensor's shape"),
        (DependsOnDevice, "its control flow depends on a tensor's is_cuda"),
        (DependsOnAWeight, "its control flow depends on a tensor's requires_grad"),
        (Iterates, "it iterates over a value of unknown length"),
        (Loops, "it reads a number from a tensor's size"),
        (ReadsParameters, "it reads _parameters, as parameters() does"),
        (Starred, "it takes *inputs"),
        (NoGrad, "uses no_grad"),
        (Decorated, "a decorator around it takes **kwargs"),
        (Tries, "with or try block"),
        (Prints, "calls print()"),
        (Counts, "writes the attribute calls"),
        (Appends, "it changes self.seen"),
        (ReadsABuffer, "it reads a number from data"),
        (MakesATensor, "does not depend on its input"),
        (DrawsInPython, "uses the module random"),
        (AsksForItsCaller, "uses the module inspect"),
        (DrawsATensor, "draws random numbers"),
        (AsksForGradMode, "uses is_grad_enabled"),
        (ReadsAnObject, "self.config: no guard can watch object objects"),
        (ComputesThePool, "the pool's arguments are computed"),
        (Pickled, "Pickled defines __reduce__"),
        (ReadsAGlobalDict, "reads SETTINGS, a dict from outside the module"),
        (Registered, "__init_subclass__"),
        (Delegates, "attribute access of its own"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_forward(kind, says, capsys):
    model = kind()
    before, kinds = set(model.__dict__), list(Registered.kinds)
    assert says in reason(model, "conv")
    assert model.__dict__.keys() - before <= {"_fastdl_rows"}
    assert Registered.kinds == kinds
    assert capsys.readouterr().out == ""


def test_a_trace_leaves_random_generators_alone():
    model = DrawsATensor()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fastdl.accelerate(model)
    assert torch.equal(torch.rand(2), expected)


def test_one_mode_only():
    class NoisyTraining(Forward):
        def forward(self, x):
            if self.training and float(self.scale) > 0.5:
                x = x + 1
            return self.relu(self.conv(x))

    model = NoisyTraining()
    plain, x = copy.deepcopy(model), torch.randn(1, 3, 6, 6)
    row = fastdl.report(fastdl.accelerate(model))["conv"]
    assert row.action == "fused"
    assert "in eval only" in row.reason
    with fastdl.backend("reference"):
        for training in (True, False):
            assert torch.equal(model.train(training)(x), plain.train(training)(x))


def test_forward_of_the_instance():
    """It runs, so nothing of the class's is fused; one that was set later is the user's, and nothing changes."""

    class Plain(Forward):
        def forward(self, x):
            return self.relu(self.conv(x))

    model = Plain()
    model.forward = model.forward
    assert reason(model, "conv") == "Plain.forward cannot be traced: the instance has a forward of its own"
    model = fastdl.accelerate(Plain())
    model.forward, before = model.forward, fastdl.report(model)
    assert before["conv"].action == "fused"
    assert fastdl.report(fastdl.accelerate(model, strict=True)) == before


def test_a_signature_is_read():
    class InParts(Forward):
        def part(self, x):
            return self.relu(self.conv(x))

        def forward(self, x):
            return self.part(*[x] * len(inspect.signature(self.part).parameters))

    assert fastdl.report(fastdl.accelerate(InParts()))["conv"].action == "fused"


def test_a_method_of_a_builtin_s_name():
    class Named(Forward):
        def print(self, x):
            return x

        def forward(self, x):
            return self.relu(self.conv(self.print(x)))

    assert fastdl.report(fastdl.accelerate(Named()))["conv"].action == "fused"
