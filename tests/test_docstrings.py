"""Every example in a docstring runs and gives what it says; every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import fastdl

OPTIONAL = {"triton", "tqdm", "matplotlib", "sklearn", "mlxtend", "PIL"}


def modules() -> list[str]:
    walked = pkgutil.walk_packages(fastdl.__path__, "fastdl.")
    return sorted(m.name for m in walked if not m.name.endswith(("__main__", "._native", "._C", "._cuda")))


@pytest.mark.parametrize("name", modules())
def test_examples(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if error.name.split(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


@pytest.mark.parametrize("namespace", [fastdl, fastdl.ops, fastdl.nn], ids=lambda m: m.__name__)
def test_public_names_are_documented(namespace):
    for name in namespace.__all__:
        thing = getattr(namespace, name)
        assert inspect.getdoc(thing), f"{namespace.__name__}.{name} has no docstring"


@pytest.mark.parametrize("namespace", [fastdl.ops, fastdl.nn], ids=lambda m: m.__name__)
def test_public_ops_and_modules_show_an_example_and_their_source(namespace):
    for name in namespace.__all__:
        text = inspect.getdoc(getattr(namespace, name))
        assert ">>>" in text, f"{name} has no example"
        assert "Source:" in text, f"{name} does not say where it comes from"
