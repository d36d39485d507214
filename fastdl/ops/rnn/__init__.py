from . import registration as registration
from .cells import gru_cell, lstm_cell, rnn_cell
from .op import gru, lstm, rnn

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]
