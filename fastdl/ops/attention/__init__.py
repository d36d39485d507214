from . import registration as registration
from .op import attention

__all__ = ["attention"]
