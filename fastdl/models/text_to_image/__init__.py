from .model import TextToImage
from .sampling import sample

__all__ = ["TextToImage", "sample"]
