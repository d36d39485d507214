"""The raw operators of this family. Changing a line asks for a rebuild of the shared objects.

Dense: q [B, H, L_q, D], k [B, H_kv, L_k, D], v [B, H_kv, L_k, D_v]; output [B, H, L_q, D_v], lse [B, H, L_q].
Packed (both cu_seqlens, [B + 1] int32 or int64): q [total_q, H, D], k [total_k, H_kv, D], v [total_k, H_kv, D_v];
output [total_q, H, D_v], lse [H, total_q]; mask and bias are absent.
mask: bool, True sees; bias: added to the scores, dtype of q; both have 4 dimensions, of [B, H, L_q, L_k] or 1, and
any strides. alibi_slopes: [H] or [B, H] float32. sink: [H] float32, one more score in the softmax. seed: [1] int64,
of the dropout (dropout.py). integers: `Call.packed_integers()`; numbers: `packed_numbers()`. lse and grad_lse are
float64: backward subtracts lse from scores, and one float32 of it would cost the powers two digits.

Backward gives the gradients of q, k, v (their shapes), of bias (its shape, summed over what was broadcast; empty if
not needed) and of sink ([H], empty if not needed), all contiguous.
"""

_CONTEXT = (
    "Tensor? mask, Tensor? bias, Tensor? alibi_slopes, Tensor? sink, Tensor? seed, Tensor? cu_seqlens_q, "
    "Tensor? cu_seqlens_k, int[] integers, float[] numbers"
)
FORWARD = f"(Tensor q, Tensor k, Tensor v, {_CONTEXT}) -> (Tensor, Tensor)"
BACKWARD = (
    "(Tensor grad_output, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor output, Tensor lse, "
    f"{_CONTEXT}, bool need_bias, bool need_sink) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)

SCHEMAS = (f"attention{FORWARD}", f"attention_backward{BACKWARD}")
