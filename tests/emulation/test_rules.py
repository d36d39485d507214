"""What a CUDA source must keep to for the emulation to run it, and to stay readable without torch."""

from __future__ import annotations

import re

import pytest

from tests.emulation.library import CSRC

SOURCES = sorted([*CSRC.rglob("*.cu"), *CSRC.rglob("*.cuh")])
COMMON = CSRC / "common" / "cuda"
# What is forbidden, where it is allowed, and what to write instead.
RULES = {
    r"\basm\b|__cvta": (COMMON, "inline PTX belongs into an fd:: function of common/cuda"),
    r"__CUDA_ARCH__": (COMMON, "architecture branches belong into fd:: functions of common/cuda"),
    r"__shared__": (COMMON, "FD_SHARED or FD_DYNAMIC_SHARED"),
    r"<<<|cudaLaunch": (COMMON, "fd::launch"),
    r"#include <(torch|ATen|c10)": (None, "kernels know no torch"),
    r"#include <(thrust|cub)": (None, "the emulation has neither"),
    r"__activemask": (None, "it has no defined meaning"),
}


@pytest.mark.parametrize("pattern", RULES)
def test_cuda_sources_keep_the_rule(pattern: str) -> None:
    allowed, instead = RULES[pattern]
    assert len(SOURCES) >= 10
    for path in SOURCES:
        if allowed is not None and path.is_relative_to(allowed):
            continue
        code = "\n".join(line.split("//")[0] for line in path.read_text().splitlines())
        assert not re.search(pattern, code), f"{path.relative_to(CSRC)}: {instead}"
