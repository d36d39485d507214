"""The argument structs that tests read from headers are those the compiler lays out."""

from __future__ import annotations

import ctypes

import pytest

from tests.emulation import library
from tests.emulation.structs import structs


@pytest.mark.parametrize(
    ("family", "count"),
    [("conv2d", 2), ("conv_relu_maxpool", 6), ("linear", 4), ("rnn", 6), ("attention", 4)],
)
@pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))
def test_structs_have_the_compilers_size(family: str, count: int) -> None:
    built = library.load(family)
    read = structs(f"ops/{family}/{family}.h")
    sizes = {name: getattr(built, f"emulation_size_of_{name}") for name in read}
    assert len(sizes) == count
    for name, size in sizes.items():
        size.restype = ctypes.c_int64
        assert ctypes.sizeof(read[name]) == size(), name


def test_a_declaration_that_is_not_understood_raises(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(library, "CSRC", tmp_path)
    for declaration in ("std::vector<int> sizes;", "long scale;", "int64_t (*call)(int);"):
        (tmp_path / "a.h").write_text(f"struct A {{\n  {declaration}\n}};\n")
        with pytest.raises(ValueError, match="not understood"):
            structs("a.h")
