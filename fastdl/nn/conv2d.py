"""nn.Conv2d by the op's kernels; what the modules that go on from a convolution share with it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import conv2d
from .leaf import Leaf


class Conv2d(Leaf, nn.Conv2d):
    """conv2d(x), by Winograd where that is faster; arguments, parameters and state_dict are those of nn.Conv2d.

    The input is [N, C, H, W] or [C, H, W]; the result [N, C_out, OH, OW] or [C_out, OH, OW]. Errors are those of
    `fastdl.ops.conv2d`. Source: torch.nn.Conv2d.

    >>> import fastdl, torch
    >>> fastdl.nn.Conv2d(3, 8, 3, padding=1)(torch.ones(1, 3, 6, 6)).shape
    torch.Size([1, 8, 6, 6])
    """

    def forward(self, input: Tensor) -> Tensor:
        return self._computed_by(conv2d, input)

    def _computed_by(
        self, op: Callable[..., Tensor], x: Tensor, **options: object
    ) -> Tensor | tuple[Tensor, Tensor]:
        if not isinstance(x, Tensor) and (node := self._node(x)) is not None:
            return node
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return op(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            **options,
        )

    @classmethod
    def from_layers(cls, conv: nn.Conv2d) -> Conv2d:
        """`conv` as a module of this class that shares conv's Parameters; `conv` itself is left alone.

        Every attribute of `conv` is taken over (its `training` flag and state_dict hooks too). Raises TypeError if
        `conv` computes something else than nn.Conv2d, ValueError if it is not initialised yet or carries hooks.

        >>> import fastdl, torch
        >>> conv = torch.nn.Conv2d(3, 8, 3)
        >>> fastdl.nn.Conv2d.from_layers(conv).weight is conv.weight
        True
        """
        return cls._from_conv(conv)

    @classmethod
    def _from_conv(cls, conv: nn.Conv2d) -> Conv2d:
        _check_conv(conv)
        fused = cls.__new__(cls)
        # Containers (parameters, hooks) are copied, so that later additions to one module stay out of the other.
        containers = (dict, set)
        fused.__dict__.update(
            {name: copy.copy(v) if isinstance(v, containers) else v for name, v in conv.__dict__.items()}
        )
        return fused


def _check_conv(conv: nn.Conv2d) -> None:
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"conv must be an nn.Conv2d, got {type(conv).__name__}")
    if isinstance(conv, nn.modules.lazy.LazyModuleMixin):
        raise ValueError("conv is lazy and has no weights yet: run it once first")
    kind = type(conv)
    if kind.forward is not nn.Conv2d.forward or kind._conv_forward is not nn.Conv2d._conv_forward:
        raise TypeError(f"conv is a {kind.__name__}, whose forward is not that of nn.Conv2d")
    if "weight" not in conv._parameters:
        raise TypeError(
            "conv's weight is not a Parameter of its own (pruned, weight_norm or another parametrization)"
        )
    if conv._forward_pre_hooks or conv._forward_hooks or conv._backward_pre_hooks or conv._backward_hooks:
        raise ValueError("conv has hooks, which would see the output of the whole fused module")
