"""Drop-in modules: torch.nn's signatures and state_dicts, fastdl's kernels."""

from .conv_relu_maxpool import ConvReLU2d, ConvReLUMaxPool2d

__all__ = ["ConvReLU2d", "ConvReLUMaxPool2d"]
