"""Philox in plain PyTorch and in C++: the published answers, and each other's."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastdl.ops.philox import draw_seed, dropout_threshold, philox, uniform

ROOT = Path(__file__).parents[1]
ONES, PI = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
KNOWN = [  # Random123's known answers: counter, key, words
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


def signed(key: tuple[int, int]) -> int:
    value = key[0] | key[1] << 32
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    found = philox(counter, torch.tensor([signed(key)]))
    assert tuple(int(word) for word in found) == words


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_kernels_draw_the_same(tmp_path):
    source = tmp_path / "philox.cpp"
    source.write_text(
        '#include "common/philox.h"\n'
        'extern "C" void draw(const uint32_t* c, uint64_t seed, uint32_t* out) {\n'
        "  const auto w = fastdl::philox({{c[0], c[1], c[2], c[3]}}, seed);\n"
        "  for (int i = 0; i < 4; ++i) out[i] = w.word[i];\n}\n"
        'extern "C" uint32_t threshold(double p) { return fastdl::dropout_threshold(p); }\n'
        'extern "C" float number(uint32_t word) { return fastdl::uniform(word); }\n'
    )
    shared = tmp_path / "philox.so"
    subprocess.run(["g++", "-O2", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}", source, "-o", shared], check=True)
    library = ctypes.CDLL(str(shared))
    library.number.restype, library.threshold.restype = ctypes.c_float, ctypes.c_uint32
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(0, 2**32, (64, 4), generator=generator)
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator)
    ours = torch.stack(philox(tuple(counters.unbind(1)), seed), 1)
    for counter, expected in zip(counters.tolist(), ours.tolist(), strict=True):
        out = (ctypes.c_uint32 * 4)()
        library.draw((ctypes.c_uint32 * 4)(*counter), ctypes.c_uint64(int(seed) % 2**64), out)
        assert list(out) == expected
        assert library.number(out[0]) == uniform(torch.tensor(out[0])).item()
    for p in (0.0, 0.1, 0.5, 0.999, 1 - 2**-32):
        assert library.threshold(ctypes.c_double(p)) == dropout_threshold(p)


def test_seeds_follow_torch():
    torch.manual_seed(3)
    first = draw_seed(torch.device("cpu"))
    assert draw_seed(torch.device("cpu")) != first
    torch.manual_seed(3)
    assert draw_seed(torch.device("cpu")) == first


def test_keeps_as_many_as_it_should():
    n, p = 1 << 18, 0.3
    words = torch.stack(philox((torch.arange(n), 0, 0, 0), torch.tensor([5])))
    kept = (words >= dropout_threshold(p)).double()
    assert abs(kept.mean().item() - (1 - p)) < 5 * (p * (1 - p) / kept.numel()) ** 0.5
    uniform_mean = uniform(words).double().mean().item()
    assert abs(uniform_mean - 0.5) < 5 * (1 / 12 / words.numel()) ** 0.5
