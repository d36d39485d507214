from . import registration as registration
from .op import conv_relu_maxpool

__all__ = ["conv_relu_maxpool"]
