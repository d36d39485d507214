"""The functional ops, one folder a family."""

import sys

from .attention import attention
from .conv2d import conv2d
from .conv_relu_maxpool import conv_relu_maxpool
from .diffusion import add_noise, diffusion_step, predict_x0, training_target, velocity
from .linear import dropout, linear
from .rnn import gru, gru_cell, lstm, lstm_cell, rnn, rnn_cell

if "torch.utils.flop_counter" in sys.modules:
    from . import flops as flops

__all__ = [
    "add_noise",
    "attention",
    "conv2d",
    "conv_relu_maxpool",
    "diffusion_step",
    "dropout",
    "gru",
    "gru_cell",
    "linear",
    "lstm",
    "lstm_cell",
    "predict_x0",
    "rnn",
    "rnn_cell",
    "training_target",
    "velocity",
]
