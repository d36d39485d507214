"""Packages that only the recipes need: imported when used, with a message that says how to get them."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """An optional package is not installed; the message names the command that installs it."""


def require(module: str, package: str) -> ModuleType:
    """The module, or MissingExtraError naming `package` (its name on PyPI) and the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"this needs {package} ({error}): pip install fastdl[demo]") from error
