"""The raw operators of this family. Changing a line asks for a rebuild of the shared objects.

`seed`: one int64, or None without dropout. `activation`: the codes of activations.py.
"""

# On the CPU alone.
PRODUCT = "linear_product(Tensor left, Tensor right, Tensor? bias) -> Tensor"
SCHEMAS = (
    "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? seed, int activation, float dropout_p, bool save) "
    "-> (Tensor, Tensor)",
    PRODUCT,
    "linear_activation(Tensor pre, Tensor? seed, int activation, float dropout_p) -> Tensor",
    "linear_activation_inplace(Tensor(a!) values, Tensor? seed, int activation, float dropout_p) -> ()",
    "linear_activation_backward(Tensor grad_output, Tensor saved, Tensor? seed, int activation, float dropout_p, "
    "bool need_bias) -> (Tensor, Tensor)",
)
