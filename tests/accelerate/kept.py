"""The reason for which accelerate() kept a module, and a module whose forward is each test's."""

import pytest
import torch
from torch import nn

import fastdl


def reason(model: nn.Module, name: str) -> str:
    """The reason of a kept module, checked against the model: nothing else about it changed."""
    plain, text = type(model), repr(model)
    row = fastdl.report(fastdl.accelerate(model))[name]
    assert row.action == "kept"
    assert type(model) is plain
    assert repr(model) == text
    with pytest.raises(fastdl.UnsupportedError, match="would keep"):
        fastdl.accelerate(model, strict=True)
    return row.reason


class Forward(nn.Module):
    """conv, norm and pool as attributes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.register_buffer("scale", torch.ones(1))
