"""Which backend and algorithm serve a model's fused modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import dispatch
from ..nn import GRU, LSTM, RNN, Conv2d, ConvReLU2d, ConvReLUMaxPool2d, Linear, MultiheadAttention


def kernels(model: nn.Module, *inputs: Tensor) -> dict[str, str]:
    """Module name -> "backend (algorithm)" for each fused module that `model(*inputs)` calls, where it trains."""
    served = {}

    def observe(name: str, explain: Callable[..., dispatch.Explanation]):
        def hook(module: nn.Module, inputs: tuple, options: dict) -> None:
            with torch.enable_grad():
                explanation = explain(module, *inputs, **options)
            served[name] = f"{explanation.backend} ({explanation.algorithm})"

        return hook

    handles = [
        module.register_forward_pre_hook(observe(name, explain), with_kwargs=True)
        for name, module in model.named_modules()
        for kind, explain in EXPLAINED
        if isinstance(module, kind)
    ]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return served


def _convolution(module: Conv2d, x: Tensor) -> dispatch.Explanation:
    names = ("pool_size", "pool_stride", "pool_padding", "pool_dilation", "ceil_mode")
    pool = {name: getattr(module, name) for name in names if isinstance(module, ConvReLUMaxPool2d)}
    return dispatch.explain(
        "conv_relu_maxpool" if isinstance(module, ConvReLU2d) else "conv2d",
        x,
        module.weight,
        module.bias,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        **pool,
    )


def _recurrence(module: LSTM | GRU | RNN, x: Tensor, hx: object = None) -> dispatch.Explanation:
    names = {"lstm": ("peephole",), "gru": (), "rnn": ("nonlinearity",)}
    op = next(kind.__name__.lower() for kind in (LSTM, GRU, RNN) if isinstance(module, kind))
    own = {name: getattr(module, name) for name in names[op]}
    return dispatch.explain(op, x, hx, module._parameter_list(), **module._arguments(None), **own)


def _linear(module: Linear, x: Tensor) -> dispatch.Explanation:
    own = dict(activation=module._activation(), dropout_p=module.dropout_p)
    return dispatch.explain("linear", x, module.weight, module.bias, **own)


def _attention(
    module: MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
    **rest: object,
) -> dispatch.Explanation:
    """As the Transformer's layers call it: no weights returned, no mask but a causal one and one of padding."""
    q, k, v = module._heads(query, key, value)
    mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None]
    causal = "top_left" if is_causal else False
    return dispatch.explain("attention", q, k, v, mask=mask, causal=causal, dropout_p=module.dropout)


EXPLAINED = (
    (Conv2d, _convolution),
    ((LSTM, GRU, RNN), _recurrence),
    (Linear, _linear),
    (MultiheadAttention, _attention),
)
