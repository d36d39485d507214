"""The Triton kernels of linear: product with its epilogue; the epilogue alone; its backward with the bias gradient.

A program computes one tile of the output (backward: a part of the rows of one block of columns). Backward reads the
output or what the activation was applied to; the dropout mask is drawn again from the seed.
"""

import triton
import triton.language as tl

from .triton_epilogue import activate, activate_backward, keep


@triton.jit
def linear_kernel(
    x_ptr, weight_ptr, bias_ptr, seed_ptr, output_ptr, pre_ptr,
    M, N, K, threshold, scale,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    column_blocks = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    offs_m = (pid // column_blocks * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    offs_n = (pid % column_blocks * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    mask_m, mask_n = offs_m < M, offs_n < N
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    last = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < K
        x = tl.load(x_ptr + offs_m[:, None] * K + offs_k[None, :], mask_m[:, None] & mask_k[None, :], 0.0)
        w = tl.load(
            weight_ptr + offs_n[None, :] * K + offs_k[:, None], mask_n[None, :] & mask_k[:, None], 0.0
        )
        if x_ptr.dtype.element_ty == tl.float32:
            # A float32 product is one chain of additions: of BLOCK_K, since a block is added a step later, not K.
            sums += last
            last = tl.dot(x, w, input_precision=INPUT_PRECISION)
        else:
            sums = tl.dot(x, w, sums, input_precision=INPUT_PRECISION)
    sums += last
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + offs_n, mask_n, 0.0).to(tl.float32)[None, :]
    index = offs_m[:, None] * N + offs_n[None, :]
    mask = mask_m[:, None] & mask_n[None, :]
    if pre_ptr is not None:
        tl.store(pre_ptr + index, sums.to(pre_ptr.dtype.element_ty), mask)
    y = activate(sums, ACTIVATION)
    if DROPOUT:
        y = tl.where(keep(seed_ptr, index, threshold), y * scale, 0.0)
    tl.store(output_ptr + index, y.to(output_ptr.dtype.element_ty), mask)


@triton.jit
def linear_activation_kernel(
    pre_ptr, seed_ptr, output_ptr, count, threshold, scale,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    y = activate(tl.load(pre_ptr + index, mask, 0.0).to(tl.float32), ACTIVATION)
    if DROPOUT:
        y = tl.where(keep(seed_ptr, index, threshold), y * scale, 0.0)
    tl.store(output_ptr + index, y.to(output_ptr.dtype.element_ty), mask)


@triton.jit
def linear_activation_backward_kernel(
    grad_output_ptr, saved_ptr, seed_ptr, grad_pre_ptr, bias_parts_ptr,
    M, N, rows_per_part, threshold, scale, kept_share,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, BY_OUTPUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    offs_n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    mask_n = offs_n < N
    begin = part * rows_per_part
    end = tl.minimum(begin + rows_per_part, M)
    sums = tl.zeros((BLOCK_N,), tl.float32)
    for row in range(begin, end, BLOCK_M):
        offs_m = row + tl.arange(0, BLOCK_M).to(tl.int64)
        mask = (offs_m < end)[:, None] & mask_n[None, :]
        index = offs_m[:, None] * N + offs_n[None, :]
        grad = tl.load(grad_output_ptr + index, mask, 0.0).to(tl.float32)
        if ACTIVATION != 0:
            saved = tl.load(saved_ptr + index, mask, 0.0).to(tl.float32)
            if DROPOUT and BY_OUTPUT:
                saved = saved * kept_share
            grad = activate_backward(grad, saved, ACTIVATION)
        if DROPOUT:
            grad = tl.where(keep(seed_ptr, index, threshold), grad * scale, 0.0)
        tl.store(grad_pre_ptr + index, grad.to(grad_pre_ptr.dtype.element_ty), mask)
        sums += tl.sum(tl.where(mask, grad, 0.0), 0)
    if bias_parts_ptr is not None:
        tl.store(bias_parts_ptr + part * N + offs_n, sums, mask_n)
