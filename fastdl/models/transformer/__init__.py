"""An encoder-decoder Transformer, and its decoding: greedy(model, source, length), beam(model, source, length, width)."""

from .decoding import beam, greedy
from .model import Transformer

__all__ = ["Transformer", "beam", "greedy"]
