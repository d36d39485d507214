"""An encoder-decoder Transformer; greedy(model, source, length) and beam(model, source, length, width) decode."""

from .decoding import beam, greedy
from .model import Transformer

__all__ = ["Transformer", "beam", "greedy"]
