"""torch's newer setting of float32 precision, after which the older one cannot be read."""

from __future__ import annotations

import subprocess
import sys

import pytest

CALLS = """
import torch, fastdl
{setting} = "ieee"
x, weight = torch.randn(1, 16, 16, 16), torch.randn(8, 16, 3, 3)
def pooled(x):
    return fastdl.ops.conv_relu_maxpool(x, weight, pool_size=3, pool_stride=2)
fastdl.explain("conv_relu_maxpool", x, weight, pool_size=3, pool_stride=2)
expected = torch.nn.functional.max_pool2d(torch.conv2d(x, weight).relu(), 3, 2)
for function in (pooled, torch.compile(pooled, fullgraph=True, backend="eager")):
    torch.testing.assert_close(function(x), expected, rtol=1e-4, atol=1e-4)
for kind in ("LSTM", "GRU", "RNN"):
    layer = getattr(fastdl.nn, kind)(4, 6, zoneout=0.1)
    layer(torch.randn(3, 2, 4))[0].sum().backward()
"""


@pytest.mark.parametrize("setting", ["torch.backends.fp32_precision", "torch.backends.cudnn.fp32_precision"])
def test_the_newer_setting(setting):
    command = [sys.executable, "-c", CALLS.format(setting=setting)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 0, finished.stderr[-2000:]
