"""The reason for which accelerate() kept a module."""

import pytest
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
