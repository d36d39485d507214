"""The raw operators of this family. Changing a line asks for a rebuild of the shared objects.

`rows` names each sample's row of `table` on the device; without it, all samples use row `row`. `seed` is
int64 [2] on the device, (seed, offset) of the noise. `flags` are the bits below; `limit` is the clip range, or the
largest threshold.
"""

WANT_PREV, WANT_X0, WANT_VALUE = 1, 2, 4
GUIDED, CLIP, THRESHOLD = 8, 16, 32
NEED_SAMPLE, NEED_MODEL, NEED_HISTORY, NEED_NOISE = 64, 128, 256, 512

SCHEMAS = (
    "diffusion_step(Tensor sample, Tensor? model_output, Tensor? history, Tensor? noise, Tensor? seed, "
    "Tensor? rows, int row, Tensor table, int flags, float guidance, float rescale, float limit, float quantile) "
    "-> (Tensor, Tensor, Tensor)",
    "diffusion_step_backward(Tensor? grad_prev, Tensor? grad_x0, Tensor? sample, Tensor? model_output, "
    "Tensor? rows, int row, Tensor table, int flags, float guidance, float limit) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "normal_noise(Tensor like, Tensor seed) -> Tensor",
)
