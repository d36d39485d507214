"""The raw operators of this family: the recurrence of one layer. Changing a line asks for a rebuild.

x: [*rows, D * G * H] projected, else [*rows, I]. h_0: [D, B, R], c_0: [D, B, H], absent means zero; packed rows
need h_0. weights: `Structure.sequence_names()` of each direction. batch_sizes: [T] int64 on the CPU; lengths: [B]
int64. reset: [*rows] bool. recurrent_mask: [D, B, R], h_{t-1} is multiplied by it in the product with weight_hh.
zoneout_h: [*rows, D * R], zoneout_c: [*rows, D * H], bool, True keeps the old value; absent while zoneout is not 0:
the expectation. structure: `Structure.packed()`. zoneout: (h, c).

c_0, c_n, cells, rstd and grad_c_0 are float32 where x is a 16-bit type, else of x's dtype.
Forward gives output [*rows, D * R], h_n [D, B, R], c_n [D, B, H] (lstm, else empty) and, if `save`, gates
[*rows, D * saved_width * H], cells [*rows, D * H] (lstm: c_t) and rstd [*rows, D] (layer norm: of the product with
weight_hh); what is not asked for or does not exist is empty. Rows past a sequence's length: output 0, the rest 0.

Backward gives grad_gates, the gradient of projected x; grad_gates_hh [*rows, D * recurrent_grad_width * H], that of
the product with weight_hh where it differs (gru: its n part; layer norm: all of it, before the normalisation);
grad_h_0; grad_c_0 (lstm); grad_projected [*rows, D * R], that of weight_hr's product (projection); grad_norm_c
[*rows, D * H], that of the argument of tanh(c) (lstm with layer norm). Empty where there is none.

A step without variants, for inference: x [B, I], h [B, H], c [B, H]; weights: weight_ih, weight_hh, and bias_ih and
bias_hh if there are any; cell: its index in CELLS. It gives h' [B, H] and c' [B, H] (lstm, else empty).
"""

_CONTEXT = (
    "Tensor? batch_sizes, Tensor? lengths, Tensor? reset, Tensor? recurrent_mask, Tensor? zoneout_h, "
    "Tensor? zoneout_c, int[] structure, float[] zoneout"
)
FORWARD = (
    f"(Tensor x, Tensor? h_0, Tensor? c_0, Tensor[] weights, {_CONTEXT}, bool save) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
BACKWARD = (
    "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? h_0, Tensor? c_0, Tensor[] weights, "
    f"Tensor output, Tensor gates, Tensor cells, Tensor rstd, {_CONTEXT}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)

STEP = "(Tensor x, Tensor? h, Tensor? c, Tensor[] weights, int cell) -> (Tensor, Tensor)"

SEQUENCES = (f"rnn_sequence{FORWARD}", f"rnn_sequence_backward{BACKWARD}")
SCHEMAS = (*SEQUENCES, f"rnn_step{STEP}")
