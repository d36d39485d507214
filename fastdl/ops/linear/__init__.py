from . import registration as registration
from .dropout import dropout
from .op import linear

__all__ = ["dropout", "linear"]
