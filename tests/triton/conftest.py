"""Tests of the Triton kernels by Triton's interpreter: a process of their own, with TRITON_INTERPRET=1.

`tests/test_triton_interpreted.py` starts that process; without the variable nothing is collected here.
The interpreter keeps bfloat16 as its bits and computes with these, and truncates where a GPU rounds to nearest;
both are put right below, for products and conversions, which is all that the kernels do in bfloat16.
Its integer overflow checks are turned off: they report nothing and take 40% of the time.
"""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]

if INTERPRETED:
    from dataclasses import replace

    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    def _widen(bits: np.ndarray) -> np.ndarray:
        return (bits.astype(np.uint32) << 16).view(np.float32)

    def _round(values: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype(np.uint16)

    def _float32(handle: object) -> object:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle(_widen(handle.data), tl.float32)

    _create_dot = interpreter.InterpreterBuilder.create_dot
    _cast = interpreter.InterpreterBuilder.cast_impl

    def _dot(self: object, a: object, b: object, d: object, *rest: object) -> object:
        return _create_dot(self, _float32(a), _float32(b), d, *rest)

    def _convert(self: object, source: object, to: object) -> object:
        types = (source.dtype.scalar, to.scalar)
        if types == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(_widen(source.data), tl.float32)
        if types == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(_round(source.data), tl.bfloat16)
        return _cast(self, source, to)

    interpreter.InterpreterBuilder.create_dot = _dot
    interpreter.InterpreterBuilder.cast_impl = _convert
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
