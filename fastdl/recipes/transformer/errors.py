"""How wrong predicted sequences are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..data.pairs import Word

Answer = Sequence[str]


class Errors(NamedTuple):
    """Counts: words, those answered wrong, symbols of the nearest right answers, edits from there."""

    words: int
    wrong: int
    symbols: int
    edits: int

    def rates(self) -> dict[str, float]:
        return {
            "word_error_rate": self.wrong / max(self.words, 1),
            "symbol_error_rate": self.edits / max(self.symbols, 1),
        }


def count(words: Sequence[Word], predicted: Sequence[Answer]) -> Errors:
    """Each prediction against the right answer that is nearest to it."""
    wrong = symbols = edits = 0
    for (_, answers), answer in zip(words, predicted, strict=True):
        fewest, length = min((distance(answer, right), len(right)) for right in answers)
        wrong, symbols, edits = wrong + (fewest > 0), symbols + length, edits + fewest
    return Errors(len(words), wrong, symbols, edits)


def distance(a: Answer, b: Answer) -> int:
    """The fewest insertions, deletions and substitutions that turn a into b. Source: Levenshtein 1966.

    >>> distance("kitten", "sitting")
    3
    """
    row = list(range(len(b) + 1))
    for i, symbol in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            best = min(row[j] + 1, row[j - 1] + 1, before + (symbol != other))
            before, row[j] = row[j], best
    return row[-1]
