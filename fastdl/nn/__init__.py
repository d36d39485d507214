"""Drop-in modules: torch.nn's signatures and state_dicts, fastdl's kernels."""

from .conv_relu_maxpool import ConvReLU2d, ConvReLUMaxPool2d
from .linear import Linear, LinearGELU, LinearReLU, LinearSigmoid, LinearSiLU, LinearTanh
from .rnn import GRU, LSTM, RNN
from .rnn_cells import GRUCell, LSTMCell, RNNCell

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "ConvReLU2d",
    "ConvReLUMaxPool2d",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "LinearGELU",
    "LinearReLU",
    "LinearSiLU",
    "LinearSigmoid",
    "LinearTanh",
    "RNNCell",
]
