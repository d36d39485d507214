"""Small whole networks made of fastdl.nn, each beside its plain torch.nn twin in `reference.py`."""

from . import text_to_image, transformer
from .convnet import ConvNet
from .rnn_lm import RecurrentLanguageModel
from .text_to_image import TextToImage
from .transformer import Transformer

__all__ = [
    "ConvNet",
    "RecurrentLanguageModel",
    "TextToImage",
    "Transformer",
    "text_to_image",
    "transformer",
]
