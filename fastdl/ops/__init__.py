"""The functional ops, one folder a family."""

import sys

from .conv_relu_maxpool import conv_relu_maxpool
from .linear import linear
from .rnn import gru, gru_cell, lstm, lstm_cell, rnn, rnn_cell

if "torch.utils.flop_counter" in sys.modules:
    from . import flops as flops

__all__ = ["conv_relu_maxpool", "gru", "gru_cell", "linear", "lstm", "lstm_cell", "rnn", "rnn_cell"]
