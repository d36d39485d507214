from . import registration as registration
from .normalisation import Normalisation
from .op import conv2d, conv2d_batch_norm, one_operator

__all__ = ["Normalisation", "conv2d", "conv2d_batch_norm", "one_operator"]
