from . import registration as registration
from .op import linear

__all__ = ["linear"]
