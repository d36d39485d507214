// The recurrence of one layer (fastdl/ops/rnn/schema.py): what every backend is given and what it must fill
// in.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace fastdl {

// Codes shared with fastdl/ops/rnn/structure.py.
enum class Cell : int { kLstm = 0, kGru = 1, kRnnTanh = 2, kRnnRelu = 3 };

// Gates in the order of the rows of weight_hh: i f g o, r z n, or one.
constexpr int num_gates(Cell cell) { return cell == Cell::kLstm ? 4 : cell == Cell::kGru ? 3 : 1; }

// G = num_gates(cell). One direction's parameters, contiguous, of the call's dtype; null where absent.
struct RnnWeights {
  const void* weight_ih;        // [G * H, I]; projected: null
  const void* bias_ih;          // [G * H]; projected: null
  const void* weight_hh;        // [G * H, R]
  const void* bias_hh;          // [G * H]
  const void* weight_hr;        // [R, H]
  const void* weight_peephole;  // [3 * H], of i, f, o
  const void* weight_norm_hh;   // [G * H]
  const void* weight_norm_c;    // [H]
  const void* bias_norm_c;      // [H]
};

struct RnnStructure {
  Cell cell;
  int64_t directions;  // 1 or 2; direction 1 takes the steps from the last to the first
  bool batch_first, has_bias, has_projection, layer_norm, peephole;
  bool projected;  // x holds W_ih x + b_ih of every direction
};

// Row (t, b) of a per-row tensor [*rows, width] is row t * row_t + b * row_b of it: [T, B] or [B, T]. Packed,
// it is row row_offset[t] + b, for b < batch_sizes[t]. Rows are contiguous, one after another, but for x's.
struct RnnRows {
  int64_t T, B;                // B: of the widest step
  int64_t count;               // rows in all
  int64_t row_t, row_b;        // in rows
  const int64_t* batch_sizes;  // [T] on the host, not increasing; null: dense
  const int64_t* row_offset;   // [T] on the host; null: dense
};

// What forward and backward share. Accumulate dtype: float for 16-bit types, else the dtype.
struct RnnSequence {
  RnnStructure s;
  RnnRows rows;
  int64_t I, H, R;  // R = H without a projection
  DType dtype;
  RnnWeights weights[2];       // by direction
  const void* h_0;             // [D, B, R] or null: zero
  const void* c_0;             // [D, B, H], accumulate dtype, or null: zero
  const int64_t* lengths;      // [B], memory of the device, untrusted; or null
  const uint8_t* reset;        // [*rows] or null: state is zeroed before the step
  const void* recurrent_mask;  // [D, B, R] or null
  const uint8_t* zoneout_h;    // [*rows, D * R] or null; not 0 keeps the old value
  const uint8_t* zoneout_c;    // [*rows, D * H] or null
  double zoneout[2];           // of h and c: the expectation, where there is no mask
};

struct RnnForward {
  RnnSequence q;
  const void* x;         // [*rows, D * G * H] projected, else [*rows, I]
  int64_t x_row_stride;  // in elements, between consecutive rows; the last dimension is contiguous
  void* output;          // [*rows, D * R]
  void* h_n;             // [D, B, R]
  void* c_n;             // [D, B, H], accumulate dtype; lstm, else null
  void* gates;           // [*rows, D * S * H], S = saved_width; null: nothing is saved
  void* cells;           // [*rows, D * H], accumulate dtype; lstm and saving, else null
  void* rstd;            // [*rows, D], accumulate dtype; layer norm and saving, else null
};

struct RnnBackward {
  RnnSequence q;            // weight_ih and bias_ih are null
  const void* grad_output;  // [*rows, D * R] or null: zero
  const void* grad_h_n;     // [D, B, R] or null
  const void* grad_c_n;     // [D, B, H], accumulate dtype, or null
  const void* output;       // what forward gave
  const void* gates;
  const void* cells;
  const void* rstd;
  void* grad_gates;      // [*rows, D * G * H]
  void* grad_gates_hh;   // [*rows, D * W * H], W = recurrent_grad_width; null where W is 0
  void* grad_h_0;        // [D, B, R]
  void* grad_c_0;        // [D, B, H], accumulate dtype; lstm, else null
  void* grad_projected;  // [*rows, D * R]; projection, else null
  void* grad_norm_c;     // [*rows, D * H]; lstm with layer norm, else null
};

}  // namespace fastdl
