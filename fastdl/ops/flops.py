"""Importing this module teaches torch.utils.flop_counter every fused op.

`import fastdl` does it if the flop counter is already imported; importing the counter itself would add 0.7 s (it
imports triton).
"""

from .attention import flops as attention_flops
from .conv2d import flops as conv2d_flops
from .conv_relu_maxpool import flops as conv_relu_maxpool_flops
from .linear import flops as linear_flops
from .rnn import flops as rnn_flops
from .sublayer import flops as sublayer_flops

__all__ = [
    "attention_flops",
    "conv2d_flops",
    "conv_relu_maxpool_flops",
    "linear_flops",
    "rnn_flops",
    "sublayer_flops",
]
