"""What every test shares: poisoned memory, hypothesis profiles, markers, and an honest account of what did not run.

Markers: `long` takes seconds (a compiler, several processes), `slow` minutes, `nightly` longer still. Without -m,
slow and nightly are left out; `make test-fast` leaves out long as well. What is marked `early` starts first.
"""

from __future__ import annotations

import collections
import os
import sys

import hypothesis
import pytest
import torch

from fastdl import _extension, dispatch

MARKERS = {
    "long": "seconds: a compiler or other processes; not part of `make test-fast`",
    "slow": "minutes; not part of `make test`",
    "nightly": "longer still",
    "early": "a minute or more that one worker would be left alone with at the end",
    "isa": "run again in a process of its own for every CPU instruction set, and without compiled kernels",
}

hypothesis.settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile(
    "nightly",
    max_examples=10_000,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    if not config.option.markexpr:
        config.option.markexpr = "not slow and not nightly"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("early") is None)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Every torch.empty starts as NaN or the largest integer: what a kernel forgets to write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Workers share the cores. What several threads change is tested with several, by the fixture `threads`."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def untouched_settings():
    """A test that leaves a setting or the thread count changed fails itself, not a later test."""
    threads, usual = torch.get_num_threads(), (_extension.environment_backend(), False, "default")
    yield
    settings = dispatch.settings
    left, threads_left = (settings.backend, settings.strict, settings.precision), torch.get_num_threads()
    for name, value in zip(("backend", "strict", "precision"), usual, strict=True):
        settings.change(name, value)
    torch.set_num_threads(threads)
    assert left == usual, "a setting was left changed"
    assert threads_left == threads, "the number of threads was left changed"


@pytest.fixture
def dynamo():
    """torch.compile starts and ends without compiled code of other tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def threads():
    """Call it with a thread count; undone at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def instruction_sets() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(those the CPU kernels can use here, those they cannot)."""
    if not _extension.cpu.loaded:
        return (), _extension.CPU_ISAS
    best = torch.ops.fastdl._best_cpu_isa()
    return _extension.CPU_ISAS[: best + 1], _extension.CPU_ISAS[best + 1 :]


def machine() -> list[str]:
    here, missing = instruction_sets()
    lines = [f"python {sys.version.split()[0]}, torch {torch.__version__}, {os.cpu_count()} cores"]
    if here:
        lines.append(f"cpu: loaded, in use {_extension.cpu_isa()}, can run {' '.join(here)}")
        if missing:
            lines.append(f"cpu: NOT on this machine: {' '.join(missing)}")
    else:
        lines.append(f"cpu: NO COMPILED KERNELS: {_extension.cpu.error}")
    lines.append(f"cuda: {'loaded' if _extension.cuda.loaded else 'NOT LOADED: ' + _extension.cuda.error}")
    lines.append(f"gpu: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'NONE'}")
    return lines


def pytest_report_header() -> list[str]:
    return machine()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A green run without a GPU or without AMX says so."""
    skipped = collections.Counter(
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else "unknown"
        for report in terminalreporter.stats.get("skipped", [])
    )
    terminalreporter.section("what this machine ran and skipped")
    for line in machine():
        terminalreporter.line(line)
    for reason, count in skipped.most_common():
        terminalreporter.line(f"{count:5} skipped: {reason}")
    terminalreporter.line(f"      selected by -m '{config.option.markexpr}'")
