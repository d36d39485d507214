"""The raw operators of this family, float32 without gradient. Changing a line asks for a rebuild.

around: 0: f(x); 1, pre-norm: x + f(norm(x)); 2, post-norm: norm(x + f(x)). norm_weight, norm_bias: [E], of a layer
norm; a norm without bias has norm_weight alone.

attention_sublayer: x [B, L, E] or [L, B, E]; memory, of keys and values, the same with S, absent: what f is given.
in_proj_weight [3 E, E], out_proj_weight [E, E]. mask (bool, True is seen) and bias broadcast to [B, H, L, S].
structure: num_heads, batch_first, around, causal (as in attention), decode (few queries, nothing is packed).
packed_attention_sublayer: x [1, total, E], sequence b has its rows cu_seqlens[b] .. cu_seqlens[b + 1]; cu_seqlens
[B + 1] int64 on the CPU, from 0 to total.
weighted_attention_sublayer: as attention_sublayer, and the softmax's weights [B, H, L, S], `averaged` over the heads
[B, L, S].
cached_attention_sublayer: x [B, L, E]; keys, values [B, H, length, D], contiguous. past: so many tokens are in them,
those of x are put after them and see what is before and themselves; -1: all are there, as of a memory. mask
broadcasts to [B, H, L, past + L] or [B, H, L, length].
feed_forward_sublayer: x [..., E], weight_1 [F, E], weight_2 [E, F]; activation: the codes of linear/activations.py.
"""

AROUND = {None: 0, "pre": 1, "post": 2}

_ATTENTION = (
    "Tensor x, Tensor? memory, Tensor in_proj_weight, Tensor? in_proj_bias, Tensor out_proj_weight, "
    "Tensor? out_proj_bias, Tensor? norm_weight, Tensor? norm_bias, Tensor? mask, Tensor? bias, int[] structure, "
    "float eps"
)
SCHEMAS = (
    f"attention_sublayer({_ATTENTION}) -> Tensor",
    "packed_attention_sublayer(Tensor x, Tensor cu_seqlens, Tensor in_proj_weight, Tensor? in_proj_bias, "
    "Tensor out_proj_weight, Tensor? out_proj_bias, Tensor? norm_weight, Tensor? norm_bias, int[] structure, "
    "float eps) -> Tensor",
    f"weighted_attention_sublayer({_ATTENTION}, bool averaged) -> (Tensor, Tensor)",
    "cached_attention_sublayer(Tensor x, Tensor(a!) keys, Tensor(b!) values, int past, Tensor in_proj_weight, "
    "Tensor? in_proj_bias, Tensor out_proj_weight, Tensor? out_proj_bias, Tensor? norm_weight, Tensor? norm_bias, "
    "Tensor? mask, int[] structure, float eps) -> Tensor",
    "feed_forward_sublayer(Tensor x, Tensor weight_1, Tensor? bias_1, Tensor weight_2, Tensor? bias_2, "
    "Tensor? norm_weight, Tensor? norm_bias, int activation, int around, float eps) -> Tensor",
)
