"""Characters as tokens, and a corpus of them in three parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .text import REPLACEMENT, Text

MAX_CHARACTERS = 4096
"""Distinct characters that are told apart; rarer ones share token 0, as do those that training never saw."""

SHARES = (0.9, 0.05, 0.05)


class Vocabulary:
    """Token i is `characters[i]`; token 0 is U+FFFD and stands for every character that is not there.

    Raises:
        ValueError: `characters` does not start with U+FFFD or repeats one.
    """

    def __init__(self, characters: str) -> None:
        if characters[:1] != REPLACEMENT or len(set(characters)) != len(characters):
            raise ValueError("a vocabulary must be distinct characters, U+FFFD first")
        self.characters = characters
        self._tokens = np.zeros(0x110000, np.int64)
        self._tokens[_codes(characters)] = np.arange(len(characters))

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """The characters of `text`, in the order of their code points; of more than fit the most frequent."""
        codes, counts = np.unique(_codes(text), return_counts=True)
        known = codes != ord(REPLACEMENT)
        codes, counts = codes[known], counts[known]
        most = np.argsort(-counts, kind="stable")[: MAX_CHARACTERS - 1]
        return cls(REPLACEMENT + "".join(map(chr, np.sort(codes[most]))))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """[len(text)] int64."""
        return torch.from_numpy(self._tokens[_codes(text)])

    def decode(self, tokens: Tensor) -> str:
        return "".join(self.characters[token] for token in tokens.tolist())


@dataclass(frozen=True)
class Corpus:
    """Tokens of the first 90% of a text to train on, of the next 5% to validate, of the last 5% to test."""

    text: Text
    vocabulary: Vocabulary
    train: Tensor
    validation: Tensor
    test: Tensor

    @classmethod
    def of(cls, text: Text) -> Corpus:
        """ValueError if the text is too short to have three parts of two characters."""
        size = len(text.text)
        ends = round(SHARES[0] * size), round((SHARES[0] + SHARES[1]) * size)
        parts = text.text[: ends[0]], text.text[ends[0] : ends[1]], text.text[ends[1] :]
        if min(map(len, parts)) < 2:
            raise ValueError(f"{text.source}: {size} characters are too few to train on")
        vocabulary = Vocabulary.of(parts[0])
        return cls(text, vocabulary, *map(vocabulary.encode, parts))

    def digest(self) -> str:
        """SHA-256 of the vocabulary and all tokens: the same text gives the same digest."""
        digest = hashlib.sha256(self.vocabulary.characters.encode())
        for part in (self.train, self.validation, self.test):
            digest.update(f" {len(part)} ".encode())
            digest.update(part.numpy())
        return digest.hexdigest()


def _codes(text: str) -> np.ndarray:
    # Half surrogates stand for bytes that a command line could not decode: they are nobody's token.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
