"""The CUDA kernels of conv_relu_maxpool on CPU tensors, by emulation: the launchers with their own signatures."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from fastdl.ops.conv_relu_maxpool.geometry import Geometry

from . import library
from .guard import Guarded, guarded_copy
from .structs import structs

DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
FAMILY = "conv_relu_maxpool"

STRUCTS = structs("ops/conv_relu_maxpool/conv_relu_maxpool.h")


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
        conv = STRUCTS["ConvGeometry"](
            N=N, C=C, H=H, W=W, C_out=C_out, KH=KH, KW=KW, groups=g.groups, stride=g.stride, padding=g.padding,
            dilation=g.dilation, CH=CH, CW=CW,
        )  # fmt: skip
        p = STRUCTS["ConvReluMaxpoolForward"](
            conv=conv, pool=_pool(g, OH, OW), dtype=DTYPES[x.dtype], x=memory.input(x), x_strides=x.stride(),
            weight=memory.input(weight), bias=memory.input(bias), output=memory.address(output),
            output_strides=output.stride(), record=memory.address(record),
        )  # fmt: skip
        refusal = self.library.emulated_implicit_gemm_refusal(ctypes.byref(p))
        if refusal is not None:
            raise ValueError(refusal.decode())
        workspace = memory.empty(self.library.emulated_implicit_gemm_workspace(ctypes.byref(p)), torch.uint8)
        self._run("emulated_implicit_gemm_forward", p, int(tf32), ctypes.c_void_p(memory.address(workspace)))
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
        p = STRUCTS["BiasReluMaxpoolForward"](
            N=N, C=C, CH=CH, CW=CW, pool=_pool(g, OH, OW), dtype=DTYPES[conv.dtype], conv=memory.input(conv),
            conv_strides=conv.stride(), bias=memory.input(bias), output=memory.address(output),
            output_strides=output.stride(), record=memory.address(record),
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
        p = STRUCTS["BiasReluMaxpoolBackward"](
            N=N, C=C, CH=CH, CW=CW, pool=_pool(g, OH, OW), dtype=DTYPES[grad_output.dtype],
            grad_output=memory.input(grad_output), grad_output_strides=grad_output.stride(),
            record=memory.input(record), output=memory.input(output), grad_conv=memory.address(grad_conv),
            grad_conv_strides=grad_conv.stride(), grad_bias=memory.address(grad_bias),
        )  # fmt: skip
        size = self.library.emulated_bias_relu_maxpool_backward_workspace(ctypes.byref(p))
        workspace = memory.empty(size, torch.uint8)
        self._run("emulated_bias_relu_maxpool_backward", p, ctypes.c_void_p(memory.address(workspace)))
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


def _pool(g: Geometry, OH: int, OW: int) -> ctypes.Structure:
    pool = STRUCTS["PoolGeometry"](present=bool(g.pool_size), OH=OH, OW=OW)
    if g.pool_size:
        pool.size, pool.stride = g.pool_size, g.pool_stride
        pool.padding, pool.dilation = g.pool_padding, g.pool_dilation
    return pool
