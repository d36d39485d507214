"""Whether float32 products may be rounded to TF32 on a GPU, as torch's settings have it."""

from __future__ import annotations

import torch


def allowed(operator: str) -> bool:
    """Of cuDNN's "conv" or "rnn". The older setting, `allow_tf32`, cannot be read once the newer one was used."""
    return getattr(torch.backends.cudnn, operator).fp32_precision == "tf32"


# What torch.compiler.assume_constant_result does, which imports the whole compiler: Dynamo cannot trace the setting.
allowed._dynamo_marked_constant = True
