"""Tensors whose memory ends at an unreadable page: one element too far and the emulation reports it."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
ALIGNMENT = 16
POISON = 0xFF  # NaN in every float type


class Guarded:
    """`count` elements of `dtype`, poisoned, aligned to 16 bytes, against the end (or start) of a mapping."""

    def __init__(self, count: int, dtype: torch.dtype, at_start: bool = False) -> None:
        size = max(count, 1) * dtype.itemsize
        body = -(-(size + ALIGNMENT) // PAGE) * PAGE
        self.length = body + 2 * PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.base = _libc.mmap(None, self.length, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        _libc.mprotect(self.base, PAGE, 0)
        _libc.mprotect(self.base + PAGE + body, PAGE, 0)
        ctypes.memset(self.base + PAGE, POISON, body)
        offset = 0 if at_start else (body - size) // ALIGNMENT * ALIGNMENT
        self.address = self.base + PAGE + offset
        self._slack = (self.address + size, self.base + PAGE + body)
        memory = (ctypes.c_char * size).from_address(self.address)
        self.tensor = torch.frombuffer(memory, dtype=dtype, count=max(count, 1))[:count]

    def slack_is_untouched(self) -> bool:
        """Whether the bytes between the last element and the page hold their poison still."""
        begin, end = self._slack
        return ctypes.string_at(begin, end - begin) == bytes([POISON]) * (end - begin)

    def __del__(self) -> None:
        _libc.munmap(self.base, self.length)


def guarded_copy(t: Tensor) -> tuple[Tensor, Guarded]:
    """t with its strides in guarded memory, and what keeps that memory alive."""
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    memory = Guarded(span, t.dtype)
    memory.tensor.copy_(t.as_strided((span,), (1,)))
    return memory.tensor.as_strided(t.shape, t.stride()), memory
