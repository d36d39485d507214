"""The CUDA kernels of conv_relu_maxpool on CPU tensors, by emulation: the launchers with their own signatures."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from fastdl.ops.conv_relu_maxpool.geometry import Geometry

from . import library
from .guard import Guarded, guarded_copy

DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
FAMILY = "conv_relu_maxpool"

_i64, _pair, _quad, _ptr = ctypes.c_int64, ctypes.c_int64 * 2, ctypes.c_int64 * 4, ctypes.c_void_p


def _struct(name: str, **fields: type) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# csrc/ops/conv_relu_maxpool/conv_relu_maxpool.h, field by field
ConvGeometry = _struct(
    "ConvGeometry", N=_i64, C=_i64, H=_i64, W=_i64, C_out=_i64, KH=_i64, KW=_i64, groups=_i64,
    stride=_pair, padding=_pair, dilation=_pair, CH=_i64, CW=_i64,
)  # fmt: skip
PoolGeometry = _struct(
    "PoolGeometry",
    present=ctypes.c_bool,
    size=_pair,
    stride=_pair,
    padding=_pair,
    dilation=_pair,
    OH=_i64,
    OW=_i64,
)
ConvReluMaxpoolForward = _struct(
    "ConvReluMaxpoolForward", conv=ConvGeometry, pool=PoolGeometry, dtype=ctypes.c_int, x=_ptr, x_strides=_quad,
    weight=_ptr, bias=_ptr, output=_ptr, output_strides=_quad, record=_ptr,
)  # fmt: skip
BiasReluMaxpoolForward = _struct(
    "BiasReluMaxpoolForward", N=_i64, C=_i64, CH=_i64, CW=_i64, pool=PoolGeometry, dtype=ctypes.c_int, conv=_ptr,
    conv_strides=_quad, bias=_ptr, output=_ptr, output_strides=_quad, record=_ptr,
)  # fmt: skip
BiasReluMaxpoolBackward = _struct(
    "BiasReluMaxpoolBackward", N=_i64, C=_i64, CH=_i64, CW=_i64, pool=PoolGeometry, dtype=ctypes.c_int,
    grad_output=_ptr, grad_output_strides=_quad, record=_ptr, output=_ptr, grad_conv=_ptr, grad_conv_strides=_quad,
    grad_bias=_ptr,
)  # fmt: skip


class Emulated:
    """One schedule of the emulated machine. Tensors are copied to guarded memory; outputs start as NaN.

    `tamper` changes a launcher's argument struct before the call, for tests of the emulation itself.
    """

    def __init__(
        self,
        schedule: int = 0,
        guard_inputs: bool = True,
        tamper: Callable[[ctypes.Structure], None] = lambda _: None,
    ) -> None:
        self.schedule, self.guard_inputs, self.tamper = schedule, guard_inputs, tamper
        self.library = library.load(FAMILY)
        self.library.emulated_bias_relu_maxpool_backward_workspace.restype = ctypes.c_int64
        self.library.emulated_implicit_gemm_workspace.restype = ctypes.c_int64
        self.library.emulated_implicit_gemm_refusal.restype = ctypes.c_char_p

    def implicit_gemm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        g: Geometry,
        tf32: bool = False,
        save_record: bool = True,
    ) -> tuple[Tensor, Tensor]:
        memory = _Memory(self.guard_inputs)
        (N, C, H, W), (C_out, _, KH, KW) = x.shape, weight.shape
        CH, CW = g.conv_size(x, weight)
        OH, OW = g.output_size((CH, CW))
        output = memory.empty_image(N, C_out, OH, OW, x)
        record = memory.empty_image(N, C_out, OH, OW, x, torch.uint8) if save_record and g.pool_size else None
        conv = ConvGeometry(
            N,
            C,
            H,
            W,
            C_out,
            KH,
            KW,
            g.groups,
            _pair(*g.stride),
            _pair(*g.padding),
            _pair(*g.dilation),
            CH,
            CW,
        )
        p = ConvReluMaxpoolForward(
            conv, _pool(g, OH, OW), DTYPES[x.dtype], memory.input(x), _quad(*x.stride()), memory.input(weight),
            memory.input(bias), memory.address(output), _quad(*output.stride()), memory.address(record),
        )  # fmt: skip
        refusal = self.library.emulated_implicit_gemm_refusal(ctypes.byref(p))
        if refusal is not None:
            raise ValueError(refusal.decode())
        workspace = memory.empty(self.library.emulated_implicit_gemm_workspace(ctypes.byref(p)), torch.uint8)
        self._run("emulated_implicit_gemm_forward", p, int(tf32), _ptr(memory.address(workspace)))
        memory.check()
        return output, x.new_empty(0, dtype=torch.uint8) if record is None else record

    def bias_relu_maxpool(
        self, conv: Tensor, bias: Tensor | None, g: Geometry, save_record: bool = True
    ) -> tuple[Tensor, Tensor]:
        memory = _Memory(self.guard_inputs)
        N, C, CH, CW = conv.shape
        OH, OW = g.output_size((CH, CW))
        output = memory.empty_image(N, C, OH, OW, conv)
        record = memory.empty_image(N, C, OH, OW, conv, torch.uint8) if save_record and g.pool_size else None
        p = BiasReluMaxpoolForward(
            N, C, CH, CW, _pool(g, OH, OW), DTYPES[conv.dtype], memory.input(conv), _quad(*conv.stride()),
            memory.input(bias), memory.address(output), _quad(*output.stride()), memory.address(record),
        )  # fmt: skip
        self._run("emulated_bias_relu_maxpool_forward", p)
        memory.check()
        return output, conv.new_empty(0, dtype=torch.uint8) if record is None else record

    def bias_relu_maxpool_backward(
        self, grad_output: Tensor, saved: Tensor, CH: int, CW: int, g: Geometry, need_bias: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        memory = _Memory(self.guard_inputs)
        N, C, OH, OW = grad_output.shape
        grad_conv = memory.empty_image(N, C, CH, CW, grad_output)
        grad_bias = memory.empty(C, grad_output.dtype) if need_bias else None
        record, output = (saved, None) if g.pool_size else (None, saved)
        p = BiasReluMaxpoolBackward(
            N, C, CH, CW, _pool(g, OH, OW), DTYPES[grad_output.dtype], memory.input(grad_output),
            _quad(*grad_output.stride()), memory.input(record), memory.input(output), memory.address(grad_conv),
            _quad(*grad_conv.stride()), memory.address(grad_bias),
        )  # fmt: skip
        size = self.library.emulated_bias_relu_maxpool_backward_workspace(ctypes.byref(p))
        workspace = memory.empty(size, torch.uint8)
        self._run("emulated_bias_relu_maxpool_backward", p, _ptr(memory.address(workspace)))
        memory.check()
        return grad_conv, grad_bias

    def _run(self, launcher: str, p: ctypes.Structure, *arguments: object) -> None:
        self.tamper(p)
        library.run(self.library, launcher, ctypes.byref(p), *arguments, schedule=self.schedule)


class _Memory:
    """The guarded memory of one call."""

    def __init__(self, guard_inputs: bool) -> None:
        self._guard_inputs = guard_inputs
        self._blocks: list[Guarded] = []

    def input(self, t: Tensor | None) -> int | None:
        if t is None:
            return None
        if not self._guard_inputs:
            return t.data_ptr()
        copy, block = guarded_copy(t)
        self._blocks.append(block)
        return copy.data_ptr()

    def empty(self, count: int, dtype: torch.dtype) -> Tensor:
        block = Guarded(count, dtype)
        self._blocks.append(block)
        # Tensors do not keep the mapping alive by themselves.
        block.tensor.guard = block
        return block.tensor

    def empty_image(
        self, N: int, C: int, H: int, W: int, like: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        flat = self.empty(N * C * H * W, dtype or like.dtype)
        strides = (C * H * W, 1, W * C, C) if _channels_last(like) else (C * H * W, H * W, W, 1)
        image = flat.as_strided((N, C, H, W), strides)
        image.guard = flat.guard
        return image

    def address(self, t: Tensor | None) -> int | None:
        return None if t is None else t.guard.address

    def check(self) -> None:
        if not all(block.slack_is_untouched() for block in self._blocks):
            raise library.EmulationError("bytes behind a tensor were written")


def _channels_last(t: Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def _pool(g: Geometry, OH: int, OW: int) -> PoolGeometry:
    pairs = (g.pool_size, g.pool_stride, g.pool_padding, g.pool_dilation) if g.pool_size else [(0, 0)] * 4
    return PoolGeometry(bool(g.pool_size), *(_pair(*pair) for pair in pairs), OH, OW)
