"""Forwards that ask of a value what a trace's stand-in for it cannot answer: accelerate() keeps them."""

import pytest
import torch
import torch.nn.functional as F
from kept import Forward, reason
from torch import Tensor, nn

import fastdl


class Counted(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if len(x.shape) == 4 else x


class Rounds(Forward):
    def forward(self, x):
        return self.relu(self.conv(x[:, :, : round(0.5 * x.shape[2])]))


class WritesElements(Forward):
    def forward(self, x):
        x[0] = 0
        return self.relu(self.conv(x))


class Unwraps(Forward):
    def forward(self, x):
        return self.relu(self.conv(x.tensors if hasattr(x, "tensors") else x))


class Masks(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)), getattr(x.data, "mask", None)


class MakesZeros(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) + torch.zeros(x.shape[0], 1, 1, 1)


class AsksForAType(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if isinstance(x, Tensor) else None


class AsksForItself(Forward):
    def forward(self, x, y):
        return x if x is y else self.relu(self.conv(x))


class AsksForADtype(Forward):
    def forward(self, x):
        dtype = x.dtype
        return self.relu(self.conv(x)) if dtype is torch.float32 else x


class AsksForItsDtype(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if torch.float32 is self.conv.weight.dtype else x


class AsksForAHistory(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if x.grad_fn is None else x


class AsksForATuple(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if isinstance(x.shape, tuple) else x


class Matches(Forward):
    def forward(self, x):
        match x.shape:
            case [_, _, _, _]:
                return self.relu(self.conv(x))
        return x


class MayBeNone(nn.Module):
    def forward(self, x):
        return x, None


class AsksForNone(Forward):
    def __init__(self):
        super().__init__()
        self.part = MayBeNone()


class AsksAfterUnpacking(AsksForNone):
    def forward(self, x):
        y, weights = self.part(x)
        y = self.relu(self.conv(y))
        return y if weights is None else (y, weights)


class AsksForAPart(AsksForNone):
    def forward(self, x):
        weights = self.part(x)[1]
        nothing = weights is None
        return self.relu(self.conv(x)) if nothing else x


class AsksAtOnce(AsksForNone):
    def forward(self, x):
        if (given := self.part(x)) is not None:
            x = given[0]
        return self.relu(self.conv(x))


class LooksUp(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) * {6: 2.0}.get(x.shape[3], 1.0)


class IsOneOf(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if x.shape[3] in {6, 8} else x


class Holds(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if 6 in x.shape else x


class MakesText(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if f"{x.shape[1]} planes" == "3 planes" else x


class MakesAName(Forward):
    def forward(self, x):
        return self.relu(self.conv(x)) if str(x.dtype) == "torch.float32" else x


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Counted, "it reads the length of a value"),
        (Rounds, "it reads a number from a tensor's shape"),
        (WritesElements, "it writes elements of a value"),
        (Unwraps, "it asks a value for tensors by hasattr or getattr"),
        (Masks, "it asks a value for mask by hasattr or getattr"),
        (MakesZeros, "the type of a value is asked for, as isinstance and torch.zeros do"),
        (AsksForAType, "the type of a value is asked for"),
        (AsksForItself, "asks whether one value is another"),
        (AsksForADtype, "asks whether one value is another"),
        (AsksForItsDtype, "asks whether one value is another"),
        (AsksForAHistory, "it reads grad_fn of a value"),
        (AsksForATuple, "the type of a value is asked for"),
        (Matches, "matches a value with the pattern of a list or dict"),
        (AsksAfterUnpacking, "asks whether the result of a call is None"),
        (AsksForAPart, "asks whether the result of a call is None"),
        (AsksAtOnce, "asks whether the result of a call is None"),
        (LooksUp, "it looks a tensor's shape up in a set or dict"),
        (IsOneOf, "it looks a tensor's shape up in a set or dict"),
        (Holds, "it asks whether a value holds another"),
        (MakesText, "it makes text of a tensor's shape"),
        (MakesAName, "it makes text of a tensor's dtype"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_question(kind, says):
    assert says in reason(kind(), "conv")


def test_what_is_the_same_in_a_trace_may_be_asked_for():
    class Chooses(Forward):
        activation = staticmethod(F.relu)
        doubled = False

        def shift(self, x):
            return None

        def forward(self, x, scale=None):
            y = self.conv(x)
            shift, extra = self.shift(x), getattr(self, "extra", None)
            if shift is not None or extra is not None:
                x = x + 1
            given = getattr(self, "given", None)
            if given is not None:
                x = x + given
            y = F.relu(y) if self.activation is F.relu else y
            if scale is not None and self.doubled is None:
                scale = self.relu(scale)
            if self.doubled is True:
                y = 2 * y
            return y if scale is None else scale * y

    assert fastdl.report(fastdl.accelerate(Chooses()))["conv"].action == "fused"
