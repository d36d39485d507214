"""The raw operators of this family. Changing a line asks for a rebuild of the shared objects.

`geometry` is packed as in conv_relu_maxpool/geometry.py, without a pool.
"""

SCHEMAS = (
    "conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? residual, int activation, int[] geometry, "
    "int algorithm, bool training) -> Tensor",
    "conv2d_batch_norm(Tensor x, Tensor weight, Tensor? bias, Tensor running_mean, Tensor running_var, "
    "Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor? residual, int activation, int[] geometry, "
    "int algorithm) -> Tensor",
    "conv2d_backward(Tensor grad_output, Tensor x, Tensor weight, int[] geometry, int algorithm, "
    "bool need_input, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)",
    "conv2d_epilogue(Tensor(a!) y, Tensor? bias, Tensor? scale, Tensor? residual, int activation) -> ()",
    "weight_fingerprint(Tensor weight) -> int",
)
