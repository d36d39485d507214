from .model import ConvNet

__all__ = ["ConvNet"]
