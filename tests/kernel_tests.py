"""How Python is called, in a process of its own, to run what is marked `isa`: the tests of the kernels themselves."""

from __future__ import annotations

KERNEL_TESTS = (
    *("-m", "pytest", "-q", "-p", "no:cacheprovider"),
    *("-m", "isa and not slow and not nightly and not long"),
)
