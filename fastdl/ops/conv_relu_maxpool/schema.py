"""The raw operators of this family. Changing a line asks for a rebuild of the shared objects."""

_CONV = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"
_POOL = (
    "SymInt[] pool_size, SymInt[] pool_stride, SymInt[] pool_padding, SymInt[] pool_dilation, bool ceil_mode"
)

FORWARD = (
    f"(Tensor x, Tensor weight, Tensor? bias, {_CONV}, {_POOL}, int algorithm, bool save_record) "
    "-> (Tensor, Tensor)"
)
BACKWARD = (
    f"(Tensor grad_output, Tensor x, Tensor weight, Tensor saved, {_CONV}, {_POOL}, int algorithm, "
    "bool need_input, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)"
)

SCHEMAS = (
    f"conv_relu_maxpool{FORWARD}",
    f"conv_relu_maxpool_backward{BACKWARD}",
    f"bias_relu_maxpool(Tensor conv, Tensor? bias, {_POOL}, bool save_record) -> (Tensor, Tensor)",
    f"bias_relu_maxpool_backward(Tensor grad_output, Tensor saved, SymInt CH, SymInt CW, {_POOL}) -> (Tensor, Tensor)",
)
