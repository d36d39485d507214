"""Hypothesis strategies that families share: shapes of convolutions, tensors of any strides."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import strategies as st

LAST_CASE = Path(tempfile.gettempdir()) / "fastdl_last_case.txt"
SPECIAL = [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33]


@st.composite
def geometries(draw, winograd: bool = False):
    """(x shape, weight shape, keyword arguments), valid by construction: x is at least as large as it must be."""
    channels = st.one_of(st.sampled_from(SPECIAL), st.integers(1, 40))
    groups = 1 if winograd else draw(st.sampled_from([1, 1, 1, 2, 3]))
    C, C_out = groups * draw(channels), groups * draw(channels)
    if winograd:
        kernel, stride, dilation = (3, 3), (1, 1), (1, 1)
        padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
        pool = (2, 2) if draw(st.booleans()) else None
        pool_stride, pool_padding, pool_dilation = (2, 2), (0, 0), (1, 1)
    else:
        pair = lambda least, most: draw(st.tuples(*[st.integers(least, most)] * 2))  # noqa: E731
        kernel, stride, dilation, padding = pair(1, 7), pair(1, 3), pair(1, 3), pair(0, 4)
        pool = pair(1, 5) if draw(st.integers(0, 3)) else None
        pool_stride, pool_dilation = pair(1, 4), pair(1, 2)
        pool_padding = tuple(draw(st.integers(0, p // 2)) for p in pool or (0, 0))
    kwargs = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    least = []
    for i in range(2):
        rows = 1
        if pool:
            kwargs |= dict(
                pool_size=pool, pool_stride=pool_stride, pool_padding=pool_padding,
                pool_dilation=pool_dilation, ceil_mode=draw(st.booleans()) if i else False,
            )  # fmt: skip
            # at least one dilation: no window lies in the padding alone
            rows = max(pool_dilation[i], pool_dilation[i] * (pool[i] - 1) + 1 - 2 * pool_padding[i])
        least.append(max(1, (rows - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]))
    H, W = (n + draw(st.integers(0, 20)) for n in least)
    return (draw(st.integers(0, 3)), C, H, W), (C_out, C // groups, *kernel), kwargs


@st.composite
def strided(draw, shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float = 1.0):
    """A tensor of any strides: permuted, stepped, offset, expanded; NaN between its elements."""
    order = draw(st.permutations(range(len(shape))))
    step = [draw(st.integers(1, 3)) for _ in shape]
    pad = draw(st.integers(0, 3))
    expanded = [draw(st.integers(0, 7)) == 0 for _ in shape]
    large = [1 if e else s * k + pad for s, k, e in zip(shape, step, expanded, strict=True)]
    storage = torch.full([large[p] for p in order], torch.nan, dtype=dtype)
    storage = storage.permute([order.index(i) for i in range(len(shape))])
    window = tuple(
        slice(None) if e else slice(pad, pad + s * k, k)
        for s, k, e in zip(shape, step, expanded, strict=True)
    )
    view = storage[window]
    view.copy_(torch.randn(view.shape, generator=torch.Generator().manual_seed(seed)) * scale)
    return view.expand(shape)


# Of the largest value: eager's own error is 1e-6, 1e-15 and 4e-3; Winograd's in fp32 up to 1e-5.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}
