"""What tests on a GPU share: memory is poisoned as everywhere; a broken context ends with the test that broke it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# cuBLAS repeats its bits only with a workspace of fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """As everywhere, but what torch cannot do deterministically on CUDA is a warning: it is the rival here."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def unbroken_context(request: pytest.FixtureRequest) -> Iterator[None]:
    """After an illegal access every later call fails: the process ends, and pytest-xdist starts another."""
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        message = f"{request.node.nodeid} broke the CUDA context: {error}"
        if "PYTEST_XDIST_WORKER" in os.environ:
            print(message, flush=True)
            os._exit(1)
        pytest.exit(message, returncode=1)
