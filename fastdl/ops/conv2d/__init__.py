from . import registration as registration
from .op import conv2d

__all__ = ["conv2d"]
