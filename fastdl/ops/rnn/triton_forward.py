# One step of a recurrent layer, fused: the product of h_{t-1} with weight_hh, all gates, the cell, the new states.
# One program of a step: BLOCK_B sequences x BLOCK_H units of one direction. Of a sequence: all units of BLOCK_B
# sequences and all steps, one tile after another. Saves for backward: the gates and c_t.

import triton
import triton.language as tl

from .triton_cells import GRU, LSTM, RNN_TANH, keeps_state, rows_of, sigmoid, tanh, within_length, zoned


@triton.jit
def _recurrent_product(
    state_ptr, weight_ptr, recurrent_mask_ptr, d, b, kept, u, u_mask, B,
    G: tl.constexpr, H: tl.constexpr, R: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """G tiles [BLOCK_B, BLOCK_H] of W_hh (m * h_{t-1}); the state is zero where it is not `kept`."""
    sums = (tl.zeros((BLOCK_B, BLOCK_H), tl.float32),) * G
    for start in range(0, R, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        k_mask = k < R
        offsets = (d * B + b)[:, None] * R + k[None, :]
        mask = kept[:, None] & k_mask[None, :]
        h = tl.load(state_ptr + offsets, mask=mask, other=0.0)
        if recurrent_mask_ptr is not None:
            scale = tl.load(recurrent_mask_ptr + offsets, mask=mask, other=0.0)
            h = (h.to(tl.float32) * scale.to(tl.float32)).to(state_ptr.dtype.element_ty)
        added = ()
        for g in tl.static_range(G):
            w_offsets = ((d * G + g) * H + u)[:, None] * R + k[None, :]
            w = tl.load(weight_ptr + w_offsets, mask=u_mask[:, None] & k_mask[None, :], other=0.0)
            added = added + (tl.dot(h, tl.trans(w), sums[g], input_precision=INPUT_PRECISION),)
        sums = added
    return sums


@triton.jit
def _cell_tile(
    x_ptr, state_ptr, new_state_ptr, hidden_ptr, weight_hh_ptr, bias_hh_ptr, peephole_ptr,
    output_ptr, c_n_ptr, gates_ptr, cells_ptr,
    offsets_ptr, lengths_ptr, reset_ptr, recurrent_mask_ptr, zoneout_h_ptr, zoneout_c_ptr,
    step, d, b, u, T, B, stride_xt, stride_xb, zoneout_h, zoneout_c,
    CELL: tl.constexpr, G: tl.constexpr, D: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
    BATCH_FIRST: tl.constexpr, INDEX_64: tl.constexpr, ZONEOUT_H: tl.constexpr, ZONEOUT_C: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The cell of one tile. With a projection h' goes to `hidden`, else h_t to the output and the new state."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    t = step + d * (T - 1 - 2 * step)
    row, exists = rows_of(offsets_ptr, t, b, T, B, BATCH_FIRST, INDEX_64)
    active = within_length(lengths_ptr, t, b, exists)
    kept = keeps_state(reset_ptr, row, active)
    u_mask = u < H
    sums = _recurrent_product(
        state_ptr, weight_hh_ptr, recurrent_mask_ptr, d, b, kept, u, u_mask, B,
        G, H, R, INPUT_PRECISION, BLOCK_B, BLOCK_H, BLOCK_K,
    )  # fmt: skip

    active_tile = active[:, None] & u_mask[None, :]
    kept_tile = kept[:, None] & u_mask[None, :]
    exists_tile = exists[:, None] & u_mask[None, :]
    if offsets_ptr is not None:
        x_row = row * stride_xb
    elif INDEX_64:
        x_row = b.to(tl.int64) * stride_xb + t.to(tl.int64) * stride_xt
    else:
        x_row = b * stride_xb + t * stride_xt
    x_offsets = x_row[:, None] + (d * G * H + u)[None, :]
    x, r = (), ()
    for g in tl.static_range(G):
        x = x + (tl.load(x_ptr + x_offsets + g * H, mask=active_tile, other=0.0).to(tl.float32),)
        recurrent = sums[g]
        if bias_hh_ptr is not None:
            bias = tl.load(bias_hh_ptr + (d * G + g) * H + u, mask=u_mask, other=0.0)
            recurrent += bias.to(tl.float32)[None, :]
        r = r + (recurrent,)

    state_offsets = (d * B + b)[:, None] * R + u[None, :]
    unit_offsets = (d * B + b)[:, None] * H + u[None, :]
    row_offsets = row[:, None] * (D * H) + (d * H + u)[None, :]
    S: tl.constexpr = 1 if CELL > GRU else 4
    gate_offsets = row[:, None] * (D * S * H) + (d * S * H + u)[None, :]
    if CELL == LSTM:
        c_old = tl.load(c_n_ptr + unit_offsets, mask=kept_tile, other=0.0)
        i, f, o = x[0] + r[0], x[1] + r[1], x[3] + r[3]
        if peephole_ptr is not None:
            p = peephole_ptr + d * 3 * H + u
            i += tl.load(p, mask=u_mask, other=0.0).to(tl.float32)[None, :] * c_old
            f += tl.load(p + H, mask=u_mask, other=0.0).to(tl.float32)[None, :] * c_old
        i, f, g = sigmoid(i), sigmoid(f), tanh(x[2] + r[2])
        c_new = f * c_old + i * g
        if peephole_ptr is not None:
            o += tl.load(p + 2 * H, mask=u_mask, other=0.0).to(tl.float32)[None, :] * c_new
        o = sigmoid(o)
        new = o * tanh(c_new)
        c_new = zoned(c_new, c_old, zoneout_c_ptr, row_offsets, active_tile, zoneout_c, ZONEOUT_C)
        tl.store(c_n_ptr + unit_offsets, c_new, mask=active_tile)
        if cells_ptr is not None:
            tl.store(cells_ptr + row_offsets, tl.where(active_tile, c_new, 0.0), mask=exists_tile)
        saved = (i, f, g, o)
    elif CELL == GRU:
        old = tl.load(state_ptr + state_offsets, mask=kept_tile, other=0.0).to(tl.float32)
        reset_gate, z = sigmoid(x[0] + r[0]), sigmoid(x[1] + r[1])
        n = tanh(x[2] + reset_gate * r[2])
        new = (1 - z) * n + z * old
        saved = (reset_gate, z, n, r[2])
    elif CELL == RNN_TANH:
        new = tanh(x[0] + r[0])
        saved = (new,)
    else:
        total = x[0] + r[0]
        new = tl.where(total < 0, 0.0, total)
        saved = (new,)
    if gates_ptr is not None:
        for g in tl.static_range(S):
            value = tl.where(active_tile, saved[g], 0.0).to(dtype)
            tl.store(gates_ptr + gate_offsets + g * H, value, mask=exists_tile)

    if hidden_ptr is not None:
        tl.store(hidden_ptr + unit_offsets, new.to(dtype), mask=active_tile)
    else:
        _store_state(
            new, state_ptr, new_state_ptr, output_ptr, zoneout_h_ptr, row, exists, active, kept, d, b, u, B,
            zoneout_h, D, R, ZONEOUT_H,
        )  # fmt: skip


@triton.jit
def _store_state(
    new, state_ptr, new_state_ptr, output_ptr, zoneout_h_ptr, row, exists, active, kept, d, b, r, B, zoneout_h,
    D: tl.constexpr, R: tl.constexpr, ZONEOUT_H: tl.constexpr,
):  # fmt: skip
    """Columns r of h_t, after zoneout, to the output and the new state; rows not active keep theirs."""
    dtype: tl.constexpr = state_ptr.dtype.element_ty
    r_mask = (r < R)[None, :]
    batch_mask, active_tile = (b < B)[:, None] & r_mask, active[:, None] & r_mask
    offsets = (d * B + b)[:, None] * R + r[None, :]
    row_offsets = row[:, None] * (D * R) + (d * R + r)[None, :]
    state = tl.load(state_ptr + offsets, mask=batch_mask, other=0.0)
    old = tl.where(kept[:, None], state.to(tl.float32), 0.0)
    new = zoned(new, old, zoneout_h_ptr, row_offsets, active_tile, zoneout_h, ZONEOUT_H).to(dtype)
    tl.store(
        output_ptr + row_offsets,
        tl.where(active_tile, new, tl.zeros_like(new)),
        mask=exists[:, None] & r_mask,
    )
    tl.store(new_state_ptr + offsets, tl.where(active_tile, new, state), mask=batch_mask)


@triton.jit
def _projection_tile(
    hidden_ptr, weight_hr_ptr, state_ptr, new_state_ptr, output_ptr,
    offsets_ptr, lengths_ptr, reset_ptr, zoneout_h_ptr, step, d, b, r, T, B, zoneout_h,
    D: tl.constexpr, H: tl.constexpr, R: tl.constexpr, BATCH_FIRST: tl.constexpr, INDEX_64: tl.constexpr,
    ZONEOUT_H: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Columns r of h_t = W_hr h'."""
    t = step + d * (T - 1 - 2 * step)
    row, exists = rows_of(offsets_ptr, t, b, T, B, BATCH_FIRST, INDEX_64)
    active = within_length(lengths_ptr, t, b, exists)
    kept = keeps_state(reset_ptr, row, active)
    total = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    for start in range(0, H, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        k_mask = k < H
        h_offsets = (d * B + b)[:, None] * H + k[None, :]
        h = tl.load(hidden_ptr + h_offsets, mask=active[:, None] & k_mask[None, :], other=0.0)
        w_offsets = (d * R + r)[:, None] * H + k[None, :]
        w = tl.load(weight_hr_ptr + w_offsets, mask=(r < R)[:, None] & k_mask[None, :], other=0.0)
        total = tl.dot(h, tl.trans(w), total, input_precision=INPUT_PRECISION)
    _store_state(
        total, state_ptr, new_state_ptr, output_ptr, zoneout_h_ptr, row, exists, active, kept, d, b, r, B,
        zoneout_h, D, R, ZONEOUT_H,
    )  # fmt: skip


# STAGE 0 is the cell, 1 the projection, which needs the whole h' of a sequence.
@triton.jit(do_not_specialize=["step", "T", "B", "stride_xt"])
def rnn_forward_step_kernel(
    x_ptr, states_ptr, hidden_ptr, weight_hh_ptr, bias_hh_ptr, weight_hr_ptr, peephole_ptr,
    output_ptr, c_n_ptr, gates_ptr, cells_ptr,
    offsets_ptr, lengths_ptr, reset_ptr, recurrent_mask_ptr, zoneout_h_ptr, zoneout_c_ptr,
    step, T, B, stride_xt, stride_xb, zoneout_h, zoneout_c,
    CELL: tl.constexpr, G: tl.constexpr, D: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
    BATCH_FIRST: tl.constexpr, INDEX_64: tl.constexpr, ZONEOUT_H: tl.constexpr, ZONEOUT_C: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, STAGE: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """states: [2, D, B, R], read at step % 2 and written at the other."""
    d = tl.program_id(2)
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    u = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    state_ptr = states_ptr + step % 2 * (D * B * R)
    new_state_ptr = states_ptr + (step + 1) % 2 * (D * B * R)
    if STAGE == 0:
        _cell_tile(
            x_ptr, state_ptr, new_state_ptr, hidden_ptr, weight_hh_ptr, bias_hh_ptr, peephole_ptr,
            output_ptr, c_n_ptr, gates_ptr, cells_ptr,
            offsets_ptr, lengths_ptr, reset_ptr, recurrent_mask_ptr, zoneout_h_ptr, zoneout_c_ptr,
            step, d, b, u, T, B, stride_xt, stride_xb, zoneout_h, zoneout_c,
            CELL, G, D, H, R, BATCH_FIRST, INDEX_64, ZONEOUT_H, ZONEOUT_C, INPUT_PRECISION, BLOCK_B, BLOCK_H, BLOCK_K,
        )  # fmt: skip
    else:
        _projection_tile(
            hidden_ptr, weight_hr_ptr, state_ptr, new_state_ptr, output_ptr,
            offsets_ptr, lengths_ptr, reset_ptr, zoneout_h_ptr, step, d, b, u, T, B, zoneout_h,
            D, H, R, BATCH_FIRST, INDEX_64, ZONEOUT_H, INPUT_PRECISION, BLOCK_B, BLOCK_H, BLOCK_K,
        )  # fmt: skip


@triton.jit(do_not_specialize=["T", "B", "stride_xt"])
def rnn_forward_sequence_kernel(
    x_ptr, states_ptr, hidden_ptr, weight_hh_ptr, bias_hh_ptr, weight_hr_ptr, peephole_ptr,
    output_ptr, c_n_ptr, gates_ptr, cells_ptr,
    offsets_ptr, lengths_ptr, reset_ptr, recurrent_mask_ptr, zoneout_h_ptr, zoneout_c_ptr,
    T, B, stride_xt, stride_xb, zoneout_h, zoneout_c,
    CELL: tl.constexpr, G: tl.constexpr, D: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
    BATCH_FIRST: tl.constexpr, INDEX_64: tl.constexpr, ZONEOUT_H: tl.constexpr, ZONEOUT_C: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All steps. A program reads only states it wrote itself: a barrier of its own threads orders the steps."""
    d = tl.program_id(1)
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    for step in range(T):
        state_ptr = states_ptr + step % 2 * (D * B * R)
        new_state_ptr = states_ptr + (step + 1) % 2 * (D * B * R)
        for start in range(0, H, BLOCK_H):
            _cell_tile(
                x_ptr, state_ptr, new_state_ptr, hidden_ptr, weight_hh_ptr, bias_hh_ptr, peephole_ptr,
                output_ptr, c_n_ptr, gates_ptr, cells_ptr,
                offsets_ptr, lengths_ptr, reset_ptr, recurrent_mask_ptr, zoneout_h_ptr, zoneout_c_ptr,
                step, d, b, start + tl.arange(0, BLOCK_H), T, B, stride_xt, stride_xb, zoneout_h, zoneout_c,
                CELL, G, D, H, R, BATCH_FIRST, INDEX_64, ZONEOUT_H, ZONEOUT_C, INPUT_PRECISION,
                BLOCK_B, BLOCK_H, BLOCK_K,
            )  # fmt: skip
        tl.debug_barrier()
        if hidden_ptr is not None:
            for start in range(0, R, BLOCK_H):
                _projection_tile(
                    hidden_ptr, weight_hr_ptr, state_ptr, new_state_ptr, output_ptr,
                    offsets_ptr, lengths_ptr, reset_ptr, zoneout_h_ptr,
                    step, d, b, start + tl.arange(0, BLOCK_H), T, B, zoneout_h,
                    D, H, R, BATCH_FIRST, INDEX_64, ZONEOUT_H, INPUT_PRECISION, BLOCK_B, BLOCK_H, BLOCK_K,
                )  # fmt: skip
            tl.debug_barrier()
