"""The emulation itself: its feature kernels are right in every schedule, and their seeded bugs are caught."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulation import library, seeded_bugs

if library.missing() is not None:
    pytest.skip(library.missing(), allow_module_level=True)

from tests.emulation.driver import compile_driver, run_driver

SCHEDULES = range(8)
PLAIN_BUGS = [
    (kernel, bug)
    for kernel, bugs in seeded_bugs.FEATURES.items()
    for bug in bugs
    if bug not in seeded_bugs.ONLY_SANITIZERS
]


@pytest.fixture(scope="module")
def features() -> Path:
    return compile_driver("features", "plain")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_feature_kernels_are_right(features: Path, schedule: int) -> None:
    assert run_driver(features, schedule) is None


@pytest.mark.parametrize(("kernel", "bug"), PLAIN_BUGS)
def test_a_seeded_bug_is_caught(features: Path, kernel: str, bug: int) -> None:
    arguments = ("--kernel", kernel, "--bug", bug)
    assert any(run_driver(features, schedule, *arguments) for schedule in SCHEDULES)


def test_every_mutation_still_applies() -> None:
    for mutation in seeded_bugs.MUTATIONS:
        text = (library.CSRC / mutation.file).read_text()
        assert text.count(mutation.old) == 1, mutation
