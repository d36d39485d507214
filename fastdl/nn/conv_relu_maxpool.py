"""conv + ReLU and conv + ReLU + max-pool as one module: nn.Conv2d's signature, parameters and state_dict."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import conv_relu_maxpool
from ..ops.conv_relu_maxpool.geometry import IntPair


class ConvReLU2d(nn.Conv2d):
    """relu(conv2d(x)) in one kernel; every argument and the state_dict are those of nn.Conv2d.

    Source: torch.nn.Conv2d followed by torch.nn.ReLU.

    >>> import fastdl, torch
    >>> fastdl.nn.ConvReLU2d(3, 8, 3, padding=1)(torch.ones(1, 3, 6, 6)).shape
    torch.Size([1, 8, 6, 6])
    """

    pool_size: IntPair | None = None
    pool_stride: IntPair | None = None
    pool_padding: IntPair = 0
    pool_dilation: IntPair = 1
    ceil_mode: bool = False
    return_indices: bool = False

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return conv_relu_maxpool(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            pool_size=self.pool_size,
            pool_stride=self.pool_stride,
            pool_padding=self.pool_padding,
            pool_dilation=self.pool_dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )

    @classmethod
    def from_layers(
        cls, conv: nn.Conv2d, relu: nn.ReLU | None = None, pool: nn.MaxPool2d | None = None
    ) -> ConvReLU2d:
        """The fused module of existing layers, sharing their Parameters. `relu` says only that one is there."""
        fused = cls.__new__(cls)
        fused.__dict__.update({name: value for name, value in conv.__dict__.items() if name[0] != "_"})
        nn.Module.__init__(fused)
        fused.__dict__.update({name: value for name, value in conv.__dict__.items() if name[0] != "_"})
        fused._reversed_padding_repeated_twice = conv._reversed_padding_repeated_twice
        fused.register_parameter("weight", conv.weight)
        fused.register_parameter("bias", conv.bias)
        fused._set_pool(pool)
        return fused

    def _set_pool(self, pool: nn.MaxPool2d | None) -> None:
        if pool is not None:
            raise TypeError(f"{type(self).__name__} has no pool; use ConvReLUMaxPool2d")


class ConvReLUMaxPool2d(ConvReLU2d):
    """max_pool2d(relu(conv2d(x))) in one kernel: nn.Conv2d's arguments, then nn.MaxPool2d's with the prefix `pool_`.

    `pool_stride=None` means `pool_size`. With `return_indices` the output is (output, indices), as nn.MaxPool2d's.
    Source: torch.nn.Conv2d, torch.nn.ReLU and torch.nn.MaxPool2d in sequence.

    >>> import fastdl, torch
    >>> fastdl.nn.ConvReLUMaxPool2d(3, 8, 3, padding=1, pool_size=2)(torch.ones(1, 3, 6, 6)).shape
    torch.Size([1, 8, 3, 3])
    """

    def __init__(
        self,
        *args: object,
        pool_size: IntPair,
        pool_stride: IntPair | None = None,
        pool_padding: IntPair = 0,
        pool_dilation: IntPair = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
        **kwargs: object,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.pool_size, self.pool_stride = pool_size, pool_stride
        self.pool_padding, self.pool_dilation = pool_padding, pool_dilation
        self.ceil_mode, self.return_indices = ceil_mode, return_indices

    def _set_pool(self, pool: nn.MaxPool2d | None) -> None:
        if pool is None:
            raise TypeError("ConvReLUMaxPool2d.from_layers needs a pool; use ConvReLU2d without one")
        self.pool_size, self.pool_stride = pool.kernel_size, pool.stride
        self.pool_padding, self.pool_dilation = pool.padding, pool.dilation
        self.ceil_mode, self.return_indices = pool.ceil_mode, pool.return_indices

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pool_size={self.pool_size}, pool_stride={self.pool_stride}"
