# One step of a recurrent layer in reverse, fused: the product of the gates' gradients of the step done before with
# weight_hh, which completes the gradient of h_t, then that of the cell. Work is split as in forward.
# From forward: output, gates, cells. dh and dc are carried in float32; a row past its length carries them on.

import triton
import triton.language as tl

from .triton_cells import GRU, LSTM, RNN_TANH, keeps_state, rows_of, tanh, unzoned, within_length


@triton.jit
def _add_product(
    total, values_ptr, weight_ptr, row, stride_row, row_mask, column, K: tl.constexpr, COLUMNS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """total + values [rows, K] @ weight [K, COLUMNS], of the rows in `row_mask`."""
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        k_mask = k < K
        v_offsets = row[:, None] * stride_row + k[None, :]
        value = tl.load(values_ptr + v_offsets, mask=row_mask[:, None] & k_mask[None, :], other=0.0)
        w_offsets = k[:, None] * COLUMNS + column[None, :]
        w = tl.load(weight_ptr + w_offsets, mask=k_mask[:, None] & (column < COLUMNS)[None, :], other=0.0)
        total = tl.dot(value, w, total, input_precision=INPUT_PRECISION)
    return total


@triton.jit
def _arriving(
    carry_ptr, grad_gates_ptr, grad_gates_hh_ptr, weight_hh_ptr, recurrent_mask_ptr,
    offsets_ptr, reset_ptr, t, d, b, r, T, B,
    CELL: tl.constexpr, G: tl.constexpr, D: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
    BATCH_FIRST: tl.constexpr, INDEX_64: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What reaches columns r of h_t from the steps after it in the direction's order."""
    after = t + 1 - 2 * d
    row, exists = rows_of(offsets_ptr, after, b, T, B, BATCH_FIRST, INDEX_64)
    kept = keeps_state(reset_ptr, row, exists)
    total = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    # The reset gate stands between a GRU's third gate and the product.
    SAME: tl.constexpr = (2 if CELL == GRU else G) * H
    total = _add_product(
        total, grad_gates_ptr + d * G * H, weight_hh_ptr + d * G * H * R, row, D * G * H, kept, r, SAME, R,
        INPUT_PRECISION, BLOCK_K,
    )  # fmt: skip
    if CELL == GRU:
        total = _add_product(
            total, grad_gates_hh_ptr + d * H, weight_hh_ptr + (d * G + 2) * H * R, row, D * H, kept, r, H, R,
            INPUT_PRECISION, BLOCK_K,
        )  # fmt: skip
    offsets = (d * B + b)[:, None] * R + r[None, :]
    mask = (b < B)[:, None] & (r < R)[None, :]
    if recurrent_mask_ptr is not None:
        total *= tl.load(recurrent_mask_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    return total + tl.load(carry_ptr + offsets, mask=mask, other=0.0)


@triton.jit
def _old_value(values_ptr, initial_ptr, offsets_ptr, lengths_ptr, t, d, b, u, kept, T, B,
               D: tl.constexpr, WIDTH: tl.constexpr, BATCH_FIRST: tl.constexpr, INDEX_64: tl.constexpr):  # fmt: skip
    """Columns u of the state that step t started from: after the step before it, or the first."""
    before = t - 1 + 2 * d
    row, exists = rows_of(offsets_ptr, before, b, T, B, BATCH_FIRST, INDEX_64)
    done = within_length(lengths_ptr, before, b, exists)
    u_mask = (u < WIDTH)[None, :]
    mask = (kept & done)[:, None] & u_mask
    value = tl.load(values_ptr + row[:, None] * (D * WIDTH) + (d * WIDTH + u)[None, :], mask=mask, other=0.0)
    mask = (kept & (done == 0))[:, None] & u_mask
    initial = tl.load(initial_ptr + (d * B + b)[:, None] * WIDTH + u[None, :], mask=mask, other=0.0)
    return value.to(tl.float32) + initial.to(tl.float32)


@triton.jit
def _cell_gradient(
    dh, output_ptr, gates_ptr, cells_ptr, h_0_ptr, c_0_ptr, peephole_ptr,
    grad_gates_ptr, grad_gates_hh_ptr, grad_c_ptr, offsets_ptr, lengths_ptr, zoneout_c_ptr,
    t, d, b, u, row, exists, active, kept, T, B, zoneout_c,
    CELL: tl.constexpr, G: tl.constexpr, D: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
    BATCH_FIRST: tl.constexpr, INDEX_64: tl.constexpr, ZONEOUT_C: tl.constexpr,
):  # fmt: skip
    """From the gradient of h' to those of the gates, stored, and of c; returns what else h_{t-1} gets."""
    dtype: tl.constexpr = gates_ptr.dtype.element_ty
    u_mask = u < H
    active_tile, exists_tile = active[:, None] & u_mask[None, :], exists[:, None] & u_mask[None, :]
    S: tl.constexpr = 1 if CELL > GRU else 4
    gate_offsets = row[:, None] * (D * S * H) + (d * S * H + u)[None, :]
    saved = ()
    for g in tl.static_range(S):
        value = tl.load(gates_ptr + gate_offsets + g * H, mask=active_tile, other=0.0)
        saved = saved + (value.to(tl.float32),)
    from_cell = tl.zeros_like(dh)
    if CELL == LSTM:
        i, f, g, o = saved
        c_old = _old_value(
            cells_ptr, c_0_ptr, offsets_ptr, lengths_ptr, t, d, b, u, kept, T, B, D, H, BATCH_FIRST, INDEX_64
        )
        unit_offsets = (d * B + b)[:, None] * H + u[None, :]
        dc = tl.load(grad_c_ptr + unit_offsets, mask=active_tile, other=0.0)
        unit_rows = row[:, None] * (D * H) + (d * H + u)[None, :]
        dc, dc_old = unzoned(dc, zoneout_c_ptr, unit_rows, active_tile, zoneout_c, ZONEOUT_C)
        shown = tanh(f * c_old + i * g)
        dc += dh * o * (1 - shown * shown)
        do = dh * shown * o * (1 - o)
        if peephole_ptr is not None:
            p = peephole_ptr + d * 3 * H + u
            dc += do * tl.load(p + 2 * H, mask=u_mask, other=0.0).to(tl.float32)[None, :]
        di, df, dg = dc * g * i * (1 - i), dc * c_old * f * (1 - f), dc * i * (1 - g * g)
        dc_old += dc * f
        if peephole_ptr is not None:
            dc_old += di * tl.load(p, mask=u_mask, other=0.0).to(tl.float32)[None, :]
            dc_old += df * tl.load(p + H, mask=u_mask, other=0.0).to(tl.float32)[None, :]
        tl.store(grad_c_ptr + unit_offsets, tl.where(kept[:, None], dc_old, 0.0), mask=active_tile)
        gradients = (di, df, dg, do)
    elif CELL == GRU:
        r, z, n, u_n = saved
        h_old = _old_value(
            output_ptr, h_0_ptr, offsets_ptr, lengths_ptr, t, d, b, u, kept, T, B, D, R, BATCH_FIRST, INDEX_64
        )
        dn = dh * (1 - z) * (1 - n * n)
        gradients = (dn * u_n * r * (1 - r), dh * (h_old - n) * z * (1 - z), dn)
        from_cell = dh * z
        dn_hh = tl.where(active_tile, dn * r, 0.0).to(dtype)
        tl.store(grad_gates_hh_ptr + row[:, None] * (D * H) + (d * H + u)[None, :], dn_hh, mask=exists_tile)
    elif CELL == RNN_TANH:
        gradients = (dh * (1 - saved[0] * saved[0]),)
    else:
        gradients = (tl.where(saved[0] > 0, dh, 0.0),)
    offsets = row[:, None] * (D * G * H) + (d * G * H + u)[None, :]
    for g in tl.static_range(G):
        value = tl.where(active_tile, gradients[g], 0.0).to(dtype)
        tl.store(grad_gates_ptr + offsets + g * H, value, mask=exists_tile)
    return from_cell


@triton.jit
def _state_tile(
    grad_output_ptr, h_0_ptr, c_0_ptr, weight_hh_ptr, peephole_ptr, output_ptr, gates_ptr, cells_ptr,
    grad_gates_ptr, grad_gates_hh_ptr, carry_ptr, grad_c_ptr, grad_projected_ptr,
    offsets_ptr, lengths_ptr, reset_ptr, recurrent_mask_ptr, zoneout_h_ptr, zoneout_c_ptr,
    step, d, b, r, T, B, zoneout_h, zoneout_c,
    CELL: tl.constexpr, G: tl.constexpr, D: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
    BATCH_FIRST: tl.constexpr, INDEX_64: tl.constexpr, ZONEOUT_H: tl.constexpr, ZONEOUT_C: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradient of columns r of h_t; without a projection through the cell, else to `grad_projected`."""
    t = T - 1 - step + d * (2 * step + 1 - T)
    row, exists = rows_of(offsets_ptr, t, b, T, B, BATCH_FIRST, INDEX_64)
    active = within_length(lengths_ptr, t, b, exists)
    kept = keeps_state(reset_ptr, row, active)
    carried = _arriving(
        carry_ptr, grad_gates_ptr, grad_gates_hh_ptr, weight_hh_ptr, recurrent_mask_ptr,
        offsets_ptr, reset_ptr, t, d, b, r, T, B,
        CELL, G, D, H, R, BATCH_FIRST, INDEX_64, INPUT_PRECISION, BLOCK_B, BLOCK_H, BLOCK_K,
    )  # fmt: skip
    r_mask = (r < R)[None, :]
    active_tile = active[:, None] & r_mask
    row_offsets = row[:, None] * (D * R) + (d * R + r)[None, :]
    arrived = carried
    if grad_output_ptr is not None:
        arrived += tl.load(grad_output_ptr + row_offsets, mask=active_tile, other=0.0).to(tl.float32)
    new, old = unzoned(arrived, zoneout_h_ptr, row_offsets, active_tile, zoneout_h, ZONEOUT_H)
    if grad_projected_ptr is not None:
        dtype: tl.constexpr = gates_ptr.dtype.element_ty
        value = tl.where(active_tile, new, 0.0).to(dtype)
        tl.store(grad_projected_ptr + row_offsets, value, mask=exists[:, None] & r_mask)
    else:
        old += _cell_gradient(
            new, output_ptr, gates_ptr, cells_ptr, h_0_ptr, c_0_ptr, peephole_ptr,
            grad_gates_ptr, grad_gates_hh_ptr, grad_c_ptr, offsets_ptr, lengths_ptr, zoneout_c_ptr,
            t, d, b, r, row, exists, active, kept, T, B, zoneout_c,
            CELL, G, D, H, R, BATCH_FIRST, INDEX_64, ZONEOUT_C,
        )  # fmt: skip
    old = tl.where(kept[:, None], old, 0.0)
    offsets = (d * B + b)[:, None] * R + r[None, :]
    tl.store(carry_ptr + offsets, tl.where(active[:, None], old, carried), mask=(b < B)[:, None] & r_mask)


@triton.jit
def _unit_tile(
    h_0_ptr, c_0_ptr, weight_hr_ptr, peephole_ptr, output_ptr, gates_ptr, cells_ptr,
    grad_gates_ptr, grad_gates_hh_ptr, grad_c_ptr, grad_projected_ptr,
    offsets_ptr, lengths_ptr, reset_ptr, zoneout_c_ptr, step, d, b, u, T, B, zoneout_c,
    CELL: tl.constexpr, G: tl.constexpr, D: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
    BATCH_FIRST: tl.constexpr, INDEX_64: tl.constexpr, ZONEOUT_C: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradient of units u of h' from that of the projection, then through the cell."""
    t = T - 1 - step + d * (2 * step + 1 - T)
    row, exists = rows_of(offsets_ptr, t, b, T, B, BATCH_FIRST, INDEX_64)
    active = within_length(lengths_ptr, t, b, exists)
    kept = keeps_state(reset_ptr, row, active)
    total = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    total = _add_product(
        total, grad_projected_ptr + d * R, weight_hr_ptr + d * R * H, row, D * R, active, u, R, H,
        INPUT_PRECISION, BLOCK_K,
    )  # fmt: skip
    _cell_gradient(
        total, output_ptr, gates_ptr, cells_ptr, h_0_ptr, c_0_ptr, peephole_ptr,
        grad_gates_ptr, grad_gates_hh_ptr, grad_c_ptr, offsets_ptr, lengths_ptr, zoneout_c_ptr,
        t, d, b, u, row, exists, active, kept, T, B, zoneout_c,
        CELL, G, D, H, R, BATCH_FIRST, INDEX_64, ZONEOUT_C,
    )  # fmt: skip


@triton.jit
def _first_state_tile(
    grad_h_0_ptr, weight_hh_ptr, grad_gates_ptr, grad_gates_hh_ptr, carry_ptr,
    offsets_ptr, reset_ptr, recurrent_mask_ptr, d, b, r, T, B,
    CELL: tl.constexpr, G: tl.constexpr, D: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
    BATCH_FIRST: tl.constexpr, INDEX_64: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Columns r of the gradient of h_0: what reaches the step before the first."""
    carried = _arriving(
        carry_ptr, grad_gates_ptr, grad_gates_hh_ptr, weight_hh_ptr, recurrent_mask_ptr,
        offsets_ptr, reset_ptr, d * (T + 1) - 1, d, b, r, T, B,
        CELL, G, D, H, R, BATCH_FIRST, INDEX_64, INPUT_PRECISION, BLOCK_B, BLOCK_H, BLOCK_K,
    )  # fmt: skip
    offsets = (d * B + b)[:, None] * R + r[None, :]
    mask = (b < B)[:, None] & (r < R)[None, :]
    tl.store(grad_h_0_ptr + offsets, carried.to(grad_h_0_ptr.dtype.element_ty), mask=mask)


# STAGE 0 is the state (without a projection the cell too), 1 the cell after a projection, 2 the first state.
@triton.jit(do_not_specialize=["step", "T", "B"])
def rnn_backward_step_kernel(
    grad_output_ptr, h_0_ptr, c_0_ptr, weight_hh_ptr, weight_hr_ptr, peephole_ptr, output_ptr, gates_ptr, cells_ptr,
    grad_gates_ptr, grad_gates_hh_ptr, grad_h_0_ptr, carry_ptr, grad_c_ptr, grad_projected_ptr,
    offsets_ptr, lengths_ptr, reset_ptr, recurrent_mask_ptr, zoneout_h_ptr, zoneout_c_ptr,
    step, T, B, zoneout_h, zoneout_c,
    CELL: tl.constexpr, G: tl.constexpr, D: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
    BATCH_FIRST: tl.constexpr, INDEX_64: tl.constexpr, ZONEOUT_H: tl.constexpr, ZONEOUT_C: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, STAGE: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """carry and grad_c: float32 [D, B, R] and [D, B, H], those of the last states to begin with."""
    d = tl.program_id(2)
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    u = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    if STAGE == 0:
        _state_tile(
            grad_output_ptr, h_0_ptr, c_0_ptr, weight_hh_ptr, peephole_ptr, output_ptr, gates_ptr, cells_ptr,
            grad_gates_ptr, grad_gates_hh_ptr, carry_ptr, grad_c_ptr, grad_projected_ptr,
            offsets_ptr, lengths_ptr, reset_ptr, recurrent_mask_ptr, zoneout_h_ptr, zoneout_c_ptr,
            step, d, b, u, T, B, zoneout_h, zoneout_c,
            CELL, G, D, H, R, BATCH_FIRST, INDEX_64, ZONEOUT_H, ZONEOUT_C, INPUT_PRECISION, BLOCK_B, BLOCK_H, BLOCK_K,
        )  # fmt: skip
    elif STAGE == 1:
        _unit_tile(
            h_0_ptr, c_0_ptr, weight_hr_ptr, peephole_ptr, output_ptr, gates_ptr, cells_ptr,
            grad_gates_ptr, grad_gates_hh_ptr, grad_c_ptr, grad_projected_ptr,
            offsets_ptr, lengths_ptr, reset_ptr, zoneout_c_ptr, step, d, b, u, T, B, zoneout_c,
            CELL, G, D, H, R, BATCH_FIRST, INDEX_64, ZONEOUT_C, INPUT_PRECISION, BLOCK_B, BLOCK_H, BLOCK_K,
        )  # fmt: skip
    else:
        _first_state_tile(
            grad_h_0_ptr, weight_hh_ptr, grad_gates_ptr, grad_gates_hh_ptr, carry_ptr,
            offsets_ptr, reset_ptr, recurrent_mask_ptr, d, b, u, T, B,
            CELL, G, D, H, R, BATCH_FIRST, INDEX_64, INPUT_PRECISION, BLOCK_B, BLOCK_H, BLOCK_K,
        )  # fmt: skip


@triton.jit(do_not_specialize=["T", "B"])
def rnn_backward_sequence_kernel(
    grad_output_ptr, h_0_ptr, c_0_ptr, weight_hh_ptr, weight_hr_ptr, peephole_ptr, output_ptr, gates_ptr, cells_ptr,
    grad_gates_ptr, grad_gates_hh_ptr, grad_h_0_ptr, carry_ptr, grad_c_ptr, grad_projected_ptr,
    offsets_ptr, lengths_ptr, reset_ptr, recurrent_mask_ptr, zoneout_h_ptr, zoneout_c_ptr,
    T, B, zoneout_h, zoneout_c,
    CELL: tl.constexpr, G: tl.constexpr, D: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
    BATCH_FIRST: tl.constexpr, INDEX_64: tl.constexpr, ZONEOUT_H: tl.constexpr, ZONEOUT_C: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All steps. A program reads only gradients it wrote itself: a barrier of its own threads orders the steps."""
    d = tl.program_id(1)
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    for step in range(T):
        for start in range(0, R, BLOCK_H):
            _state_tile(
                grad_output_ptr, h_0_ptr, c_0_ptr, weight_hh_ptr, peephole_ptr, output_ptr, gates_ptr, cells_ptr,
                grad_gates_ptr, grad_gates_hh_ptr, carry_ptr, grad_c_ptr, grad_projected_ptr,
                offsets_ptr, lengths_ptr, reset_ptr, recurrent_mask_ptr, zoneout_h_ptr, zoneout_c_ptr,
                step, d, b, start + tl.arange(0, BLOCK_H), T, B, zoneout_h, zoneout_c,
                CELL, G, D, H, R, BATCH_FIRST, INDEX_64, ZONEOUT_H, ZONEOUT_C, INPUT_PRECISION,
                BLOCK_B, BLOCK_H, BLOCK_K,
            )  # fmt: skip
        tl.debug_barrier()
        if grad_projected_ptr is not None:
            for start in range(0, H, BLOCK_H):
                _unit_tile(
                    h_0_ptr, c_0_ptr, weight_hr_ptr, peephole_ptr, output_ptr, gates_ptr, cells_ptr,
                    grad_gates_ptr, grad_gates_hh_ptr, grad_c_ptr, grad_projected_ptr,
                    offsets_ptr, lengths_ptr, reset_ptr, zoneout_c_ptr,
                    step, d, b, start + tl.arange(0, BLOCK_H), T, B, zoneout_c,
                    CELL, G, D, H, R, BATCH_FIRST, INDEX_64, ZONEOUT_C, INPUT_PRECISION, BLOCK_B, BLOCK_H, BLOCK_K,
                )  # fmt: skip
            tl.debug_barrier()
    for start in range(0, R, BLOCK_H):
        _first_state_tile(
            grad_h_0_ptr, weight_hh_ptr, grad_gates_ptr, grad_gates_hh_ptr, carry_ptr,
            offsets_ptr, reset_ptr, recurrent_mask_ptr, d, b, start + tl.arange(0, BLOCK_H), T, B,
            CELL, G, D, H, R, BATCH_FIRST, INDEX_64, INPUT_PRECISION, BLOCK_B, BLOCK_H, BLOCK_K,
        )  # fmt: skip
