"""What a forward returns and gives to the modules it calls is of the same class and content after accelerate()."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fastdl


class Forward(nn.Module):
    """conv and relu as attributes; the forward is each test's."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 5), nn.ReLU()


class Levels(OrderedDict):
    pass


class Pair(NamedTuple):
    first: Tensor
    second: int


class Count(Pair):
    def __new__(cls, first, second):
        return super().__new__(cls, first, second + 1)


class Alone(Pair):
    def __new__(cls, first):
        return super().__new__(cls, first, 1)


@dataclass
class Output:
    features: Tensor


@dataclass
class Doubling(Output):
    def __post_init__(self):
        self.features = 2 * self.features


@dataclass
class Marked(Output):
    mark: int = field(init=False, default=1)


@dataclass
class Tripling(Output):
    def __init__(self, features):
        super().__init__(3 * features)


class Renamed(Output):
    def __init__(self, y):
        super().__init__(y)


@pytest.mark.parametrize(
    ("wrap", "action"),
    [
        (lambda y: {"levels": OrderedDict(first=y)}, "fused"),
        (lambda y: Pair(y, 1), "fused"),
        (lambda y: Output(y), "fused"),
        (lambda y: (y, torch.Size((1, 2))), "fused"),
        (lambda y: Levels(first=y), "kept"),
        (lambda y: [Doubling(y)], "kept"),
        (lambda y: Marked(y), "kept"),
        (lambda y: Tripling(y), "kept"),
        (lambda y: Renamed(y), "kept"),
        (lambda y: Count(y, 1), "kept"),
        (lambda y: Alone(y), "kept"),
        (lambda y: (y, {1, 2}), "kept"),
    ],
)
def test_results_are_of_the_classes_they_were(wrap, action):
    class Wraps(Forward):
        def forward(self, x):
            return wrap(self.relu(self.conv(x)))

    model, x = Wraps().requires_grad_(False), torch.randn(1, 3, 6, 6)
    expected = repr(model(x))
    row = fastdl.report(fastdl.accelerate(model))["conv"]
    assert row.action == action
    assert ("which a trace cannot make" in row.reason) == (action == "kept")
    with fastdl.backend("reference"):
        assert repr(model(x)) == expected


class Collects(nn.Module):
    def forward(self, x, *, seen):
        if isinstance(seen, dict):
            seen["x"] = x
        else:
            seen.append(x)
        return x + len(seen)


@pytest.mark.parametrize(
    ("make", "read", "kept"),
    [
        (lambda y: [], sum, True),
        (lambda y: OrderedDict(), len, True),
        (lambda y: {"last": y}, lambda seen: {"seen": seen}, True),
        (lambda y: [y], torch.cat, True),
        (lambda y: [y], lambda seen: 0, False),
    ],
)
def test_what_a_module_may_have_changed_is_not_read_from_a_trace(make, read, kept):
    class Gives(Forward):
        def __init__(self):
            super().__init__()
            self.collects = Collects()

        def forward(self, x):
            y = self.relu(self.conv(x))
            seen = make(y)
            return self.collects(y, seen=seen), read(seen)

    model, x = Gives().requires_grad_(False), torch.randn(1, 3, 6, 6)
    expected = repr(model(x))
    row = fastdl.report(fastdl.accelerate(model))["conv"]
    assert row.action == ("kept" if kept else "fused")
    assert row.reason.endswith("that the module may change") == kept
    with fastdl.backend("reference"):
        assert repr(model(x)) == expected
