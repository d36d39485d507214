"""The random masks of recurrent layers: their probabilities, to the last element."""

from __future__ import annotations

import importlib

import pytest
import torch

masks = importlib.import_module("fastdl.ops.rnn.masks")
SHAPE = (1000, 1000)


@pytest.mark.parametrize("p", [1e-4, 0.1, 0.5, 0.97])
def test_probability(p):
    torch.manual_seed(0)
    mask = masks.zoneout_mask(torch.ones(1), SHAPE, p)
    assert mask.dtype is torch.bool
    assert abs(mask.double().mean() - p) <= 5 * (p * (1 - p)) ** 0.5 / 1000


@pytest.mark.parametrize("drawn", [2**31 - 1, 0])
def test_what_is_certain_happens(drawn, monkeypatch):
    """Whatever is drawn, also the largest and the smallest number."""
    monkeypatch.setattr(torch.Tensor, "random_", lambda t: t.fill_(drawn))
    assert masks.zoneout_mask(torch.ones(1), (3, 4), 1.0).all()
    assert masks.zoneout_mask(torch.ones(1), (3, 4), 0.0) is None
    assert not masks.recurrent_mask(torch.ones(1), (3, 4), 1.0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_kept_is_scaled_alike_in_every_dtype(dtype):
    torch.manual_seed(0)
    mask = masks.recurrent_mask(torch.ones(1, dtype=dtype), SHAPE, 0.2)
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(1.0, dtype=dtype).div(0.8).item()}
    torch.manual_seed(0)
    assert torch.equal(mask != 0, masks.recurrent_mask(torch.ones(1), SHAPE, 0.2) != 0)
