"""Which backend and algorithm serve a model's fused convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import dispatch
from ...nn import ConvReLU2d, ConvReLUMaxPool2d


def kernels(model: nn.Module, x: Tensor) -> dict[str, str]:
    """Module name -> "backend (algorithm)" for each fused convolution that `model(x)` calls."""
    served = {}

    def observe(name: str):
        def hook(module: ConvReLU2d, inputs: tuple[Tensor]) -> None:
            served[name] = _explained(module, inputs[0])

        return hook

    fused = [(name, module) for name, module in model.named_modules() if isinstance(module, ConvReLU2d)]
    handles = [module.register_forward_pre_hook(observe(name)) for name, module in fused]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return served


def _explained(module: ConvReLU2d, x: Tensor) -> str:
    names = ("pool_size", "pool_stride", "pool_padding", "pool_dilation", "ceil_mode")
    pool = {name: getattr(module, name) for name in names if isinstance(module, ConvReLUMaxPool2d)}
    explanation = dispatch.explain(
        "conv_relu_maxpool",
        x,
        module.weight,
        module.bias,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        **pool,
    )
    return f"{explanation.backend} ({explanation.algorithm})"
