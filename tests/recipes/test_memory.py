"""The figures of --compare are what they say."""

import pytest
import torch
from torch import nn

from fastdl.recipes import memory
from fastdl.recipes.comparison import table

CPU = torch.device("cpu")


def test_saved_bytes_counts_each_storage_once_and_no_parameters():
    model = nn.Linear(100, 100, bias=False)
    x = torch.rand(50, 100)
    # the input (for the weight's gradient) and, twice the same, the sigmoid's output
    saved = memory.saved_bytes(model, lambda: (lambda y: y * y.sigmoid().exp())(model(x)))
    assert saved == 4 * (x.numel() + 3 * 50 * 100)
    assert memory.saved_bytes(model, lambda: model(x).sum()) == 4 * x.numel()


def test_saved_bytes_is_zero_without_gradients():
    with torch.no_grad():
        assert memory.saved_bytes(nn.Linear(4, 4), lambda: nn.Linear(4, 4)(torch.ones(2, 4))) == 0


def test_peak_bytes_sees_what_is_freed_again():
    size = 64 * 2**20
    if (peak := memory.peak_bytes(CPU, lambda: torch.ones(size // 4).sum())) is None:
        pytest.skip("this system has no resettable high-water mark")
    # Linux counts pages for each thread in batches of 64.
    assert 0.99 * size <= peak < 1.5 * size
    assert memory.peak_bytes(CPU, lambda: None) < 2**20


def test_table_aligns():
    assert table(["a", "second"], [("row", ["1.0", "2"]), ("longer row", ["10.0", "3"])]) == [
        "               a  second",
        "row          1.0       2",
        "longer row  10.0       3",
    ]
