"""The functional ops, one folder a family."""

from .conv_relu_maxpool import conv_relu_maxpool

__all__ = ["conv_relu_maxpool"]
