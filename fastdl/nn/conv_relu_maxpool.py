"""conv + ReLU and conv + ReLU + max-pool as one module: nn.Conv2d's signature, parameters and state_dict."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import conv_relu_maxpool
from ..ops.conv_relu_maxpool.geometry import IntPair
from .conv2d import Conv2d


class ConvReLU2d(Conv2d):
    """relu(conv2d(x)) in one kernel; every argument, the parameters and the state_dict are those of nn.Conv2d.

    x is [N, C, H, W] or [C, H, W]; the result [N, C_out, OH, OW] or [C_out, OH, OW]. Errors are those of
    `fastdl.ops.conv_relu_maxpool`. Source: torch.nn.Conv2d followed by torch.nn.ReLU.

    >>> import fastdl, torch
    >>> fastdl.nn.ConvReLU2d(3, 8, 3, padding=1)(torch.ones(1, 3, 6, 6)).shape
    torch.Size([1, 8, 6, 6])
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._computed_by(conv_relu_maxpool, x)

    @classmethod
    def from_layers(cls, conv: nn.Conv2d, relu: nn.ReLU | None = None) -> ConvReLU2d:
        """`conv` followed by a ReLU as one module that shares conv's Parameters; `conv` itself is left alone.

        Every attribute of `conv` is taken over (its `training` flag and state_dict hooks too), that of `relu`
        says nothing more. Raises TypeError if `conv` computes something else than nn.Conv2d, ValueError if it
        is not initialised yet or carries hooks, which would see another output.

        >>> import fastdl, torch
        >>> conv = torch.nn.Conv2d(3, 8, 3)
        >>> fastdl.nn.ConvReLU2d.from_layers(conv, torch.nn.ReLU()).weight is conv.weight
        True
        """
        _check_relu(relu)
        return cls._from_conv(conv)


class ConvReLUMaxPool2d(ConvReLU2d):
    """max_pool2d(relu(conv2d(x))) in one kernel: nn.Conv2d's arguments, then nn.MaxPool2d's with the prefix `pool_`.

    `pool_stride=None` means `pool_size`. With `return_indices` the output is (output, indices), as nn.MaxPool2d's.
    Parameters and state_dict are those of nn.Conv2d; errors those of `fastdl.ops.conv_relu_maxpool`.
    Source: torch.nn.Conv2d, torch.nn.ReLU and torch.nn.MaxPool2d in sequence.

    >>> import fastdl, torch
    >>> fastdl.nn.ConvReLUMaxPool2d(3, 8, 3, padding=1, pool_size=2)(torch.ones(1, 3, 6, 6)).shape
    torch.Size([1, 8, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair | str = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        pool_size: IntPair,
        pool_stride: IntPair | None = None,
        pool_padding: IntPair = 0,
        pool_dilation: IntPair = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            device, dtype,
        )  # fmt: skip
        self.pool_size, self.pool_stride = pool_size, pool_stride
        self.pool_padding, self.pool_dilation = pool_padding, pool_dilation
        self.ceil_mode, self.return_indices = ceil_mode, return_indices

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self._computed_by(
            conv_relu_maxpool,
            x,
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
    ) -> ConvReLUMaxPool2d:
        """`conv`, a ReLU and `pool` as one module that shares conv's Parameters; the three are left alone.

        Attributes and errors as in `ConvReLU2d.from_layers`; TypeError also if there is no pool.

        >>> import fastdl, torch
        >>> conv, pool = torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(3, stride=2)
        >>> fastdl.nn.ConvReLUMaxPool2d.from_layers(conv, torch.nn.ReLU(), pool).pool_stride
        2
        """
        _check_relu(relu)
        if not isinstance(pool, nn.MaxPool2d):
            raise TypeError(
                f"pool must be an nn.MaxPool2d, got {type(pool).__name__}; without one use ConvReLU2d"
            )
        fused = cls._from_conv(conv)
        fused.__dict__.update(pool_attributes(pool))
        return fused

    def extra_repr(self) -> str:
        pool = [f"pool_size={self.pool_size}"]
        defaults = dict(
            pool_stride=None, pool_padding=0, pool_dilation=1, ceil_mode=False, return_indices=False
        )
        pool += [f"{name}={getattr(self, name)}" for name, d in defaults.items() if getattr(self, name) != d]
        return ", ".join([super().extra_repr(), *pool])


def pool_attributes(pool: nn.MaxPool2d) -> dict[str, object]:
    """The attributes of ConvReLUMaxPool2d that stand for `pool`."""
    return dict(
        pool_size=pool.kernel_size,
        pool_stride=pool.stride,
        pool_padding=pool.padding,
        pool_dilation=pool.dilation,
        ceil_mode=pool.ceil_mode,
        return_indices=pool.return_indices,
    )


def _check_relu(relu: nn.ReLU | None) -> None:
    if relu is not None and not isinstance(relu, nn.ReLU):
        raise TypeError(f"relu must be an nn.ReLU, got {type(relu).__name__}")
