"""What a language model must beat: character frequencies, and those after each character."""

from __future__ import annotations

import numpy as np
from torch import Tensor

PRIOR = 1.0
"""How many characters, spread as the unigram says, are added to those seen after each character."""


def unigram(train: Tensor, test: Tensor, vocabulary_size: int) -> float:
    """Mean loss of test[1:] by frequencies in `train`, one added to each count."""
    return float(-np.log(_frequencies(train.numpy(), vocabulary_size)[test.numpy()[1:]]).mean())


def bigram(train: Tensor, test: Tensor, vocabulary_size: int) -> float:
    """Mean loss of test[1:], each after the one before: p(b | a) = (n(a, b) + PRIOR p(b)) / (n(a) + PRIOR)."""
    train, test = train.numpy(), test.numpy()
    pairs, counts = np.unique(train[:-1] * vocabulary_size + train[1:], return_counts=True)
    before = np.bincount(train[:-1], minlength=vocabulary_size)
    asked = test[:-1] * vocabulary_size + test[1:]
    at = np.searchsorted(pairs, asked).clip(max=len(pairs) - 1)
    seen = np.where(pairs[at] == asked, counts[at], 0)
    prior = PRIOR * _frequencies(train, vocabulary_size)[test[1:]]
    return float(-np.log((seen + prior) / (before[test[:-1]] + PRIOR)).mean())


def _frequencies(tokens: np.ndarray, vocabulary_size: int) -> np.ndarray:
    counts = np.bincount(tokens, minlength=vocabulary_size) + 1
    return counts / counts.sum()
