"""Small whole networks made of fastdl.nn, each beside its plain torch.nn twin in `reference.py`."""

from .convnet import ConvNet
from .rnn_lm import RecurrentLanguageModel

__all__ = ["ConvNet", "RecurrentLanguageModel"]
