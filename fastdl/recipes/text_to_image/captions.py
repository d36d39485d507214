"""Texts about classes of images, and their words as tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

PADDING, START = 0, 1
FIGURES = dict(
    zip(
        "0123456789",
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        strict=True,
    )
)
OF_DIGITS = ("{}", "a {}", "the digit {}", "a handwritten {}")
OF_ANYTHING = ("{}", "a {}", "the {}", "a picture of a {}")


class Captions:
    """Each class in several wordings; the last one is the most explicit.

    >>> captions = Captions(["0", "7"])
    >>> captions.explicit(1)
    'a handwritten seven'
    >>> captions.encode(["7", "the digit zero"])
    tensor([[1, 5, 0, 0],
            [1, 6, 3, 7]])
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.names = [" ".join(_words(name)) for name in classes]
        if nameless := [name for name, words in zip(classes, self.names, strict=True) if not words]:
            raise ValueError(f"a class must have a letter or figure in its name, got {nameless[0]!r}")
        self.wordings = OF_DIGITS if all(name in FIGURES for name in classes) else OF_ANYTHING
        texts = [_words(wording.format(name)) for wording in self.wordings for name in self.names]
        self.words = sorted(set().union(*texts))
        self.length = 1 + max(map(len, texts))
        self._tokens = {word: START + 1 + i for i, word in enumerate(self.words)}
        # [wordings, classes, length]
        self.all = self.encode([" ".join(text) for text in texts]).view(len(self.wordings), len(classes), -1)

    @property
    def vocabulary_size(self) -> int:
        return START + 1 + len(self.words)

    @property
    def nothing(self) -> Tensor:
        """[length], the text of no words."""
        return self.encode([""])[0]

    def explicit(self, label: int) -> str:
        return self.wordings[-1].format(self.names[label])

    def encode(self, texts: Sequence[str]) -> Tensor:
        """[len(texts), length]: a start token, the words, padding. Figures count as words.

        Raises:
            ValueError: a word no caption has, or too many words.
        """
        tokens = torch.full((len(texts), self.length), PADDING)
        tokens[:, 0] = START
        for row, text in zip(tokens, texts, strict=True):
            words = _words(text)
            if unknown := [word for word in words if word not in self._tokens]:
                raise ValueError(f"the model knows no {unknown[0]!r}; it knows: {', '.join(self.words)}")
            if len(words) >= self.length:
                raise ValueError(f"a text must have at most {self.length - 1} words, got {len(words)}")
            for place, word in enumerate(words, 1):
                row[place] = self._tokens[word]
        return tokens


def _words(text: str) -> list[str]:
    return [FIGURES.get(word, word) for word in re.findall(r"\w+", text.lower())]
