"""The rival of an LSTM with layer norm and zoneout computes what the layer does, with its masks."""

from __future__ import annotations

import pytest
import torch

import fastdl
from benchmarks.ops.layer_norm_lstm import Loop


@pytest.mark.parametrize("scripted", [False, True])
def test_the_loop_is_the_layer(scripted):
    module = fastdl.nn.LSTM(5, 7, layer_norm=True, zoneout=(0.3, 0.2))
    x = torch.randn(4, 3, 5)
    torch.manual_seed(1)
    expected = module(x)[0]
    torch.manual_seed(1)
    torch.testing.assert_close(Loop(module, scripted)(x), expected)
