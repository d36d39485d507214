from .model import RecurrentLanguageModel

__all__ = ["RecurrentLanguageModel"]
