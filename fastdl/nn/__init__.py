"""Drop-in modules: torch.nn's signatures and state_dicts, fastdl's kernels."""

from . import functional as functional
from .conv2d import Conv2d
from .conv_relu_maxpool import ConvReLU2d, ConvReLUMaxPool2d
from .dropout import Dropout
from .linear import Linear, LinearGELU, LinearReLU, LinearSigmoid, LinearSiLU, LinearTanh
from .multihead_attention import MultiheadAttention
from .rnn import GRU, LSTM, RNN
from .rnn_cells import GRUCell, LSTMCell, RNNCell
from .transformer import Transformer, TransformerDecoder, TransformerEncoder
from .transformer_layers import TransformerDecoderLayer, TransformerEncoderLayer

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Conv2d",
    "ConvReLU2d",
    "ConvReLUMaxPool2d",
    "Dropout",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "LinearGELU",
    "LinearReLU",
    "LinearSiLU",
    "LinearSigmoid",
    "LinearTanh",
    "MultiheadAttention",
    "RNNCell",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]
