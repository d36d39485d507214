"""Tensors between unreadable pages: one element past either end is a segmentation fault."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(t: Tensor, before: bool = False) -> Tensor:
    """A copy of a dense `t`, in its strides, that ends at an unreadable page; with `before`, that starts after one.

    At the end the alignment is whatever the size leaves: kernels must not assume one. Never freed.
    """
    nbytes = t.untyped_storage().nbytes()
    assert nbytes == t.numel() * t.element_size(), "dense tensors only"
    body = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    private_anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = _libc.mmap(
        None, body + 2 * mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, private_anonymous, -1, 0
    )
    assert address not in (None, ctypes.c_void_p(-1).value), "no memory"
    for page in (address, address + mmap.PAGESIZE + body):
        assert _libc.mprotect(page, mmap.PAGESIZE, 0) == 0
    start = address + mmap.PAGESIZE + (0 if before else body - nbytes)
    flat = torch.frombuffer((ctypes.c_char * nbytes).from_address(start), dtype=t.dtype)
    return flat.as_strided(t.shape, t.stride()).copy_(t)
