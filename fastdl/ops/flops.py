"""Importing this module teaches torch.utils.flop_counter every fused op: import it before the counter is made.

`import fastdl` does it if the flop counter is already imported. Where fastdl comes first, fused ops count 0 without
`import fastdl.ops.flops`: the counter imports triton, which takes 0.2 to 0.7 s, longer than all of fastdl.
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
