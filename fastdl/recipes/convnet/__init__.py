"""ConvNet on digits."""

from .recipe import train

__all__ = ["train"]
