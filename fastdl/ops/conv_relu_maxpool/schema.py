"""The raw operators of this family. Changing a line asks for a rebuild of the shared objects.

`geometry` and `pool` are packed (see geometry.py): one list costs a call 1.5 us, nine lists 9 us.
"""

FORWARD = (
    "(Tensor x, Tensor weight, Tensor? bias, int[] geometry, int algorithm, bool save_record) "
    "-> (Tensor, Tensor)"
)
BACKWARD = (
    "(Tensor grad_output, Tensor x, Tensor weight, Tensor saved, int[] geometry, int algorithm, "
    "bool need_input, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)"
)

SCHEMAS = (
    f"conv_relu_maxpool{FORWARD}",
    f"conv_relu_maxpool_backward{BACKWARD}",
    "bias_relu_maxpool(Tensor conv, Tensor? bias, int[] pool, bool save_record) -> (Tensor, Tensor)",
    "bias_relu_maxpool_backward(Tensor grad_output, Tensor saved, SymInt CH, SymInt CW, int[] pool) "
    "-> (Tensor, Tensor)",
)
