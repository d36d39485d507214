"""The recipes by name, without importing them.

A recipe's module offers `train(options) -> metrics`, the metrics being None in a process that does not lead, and
where `samples` is set also `sample(arguments) -> exit code`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from .options import Defaults


@dataclass(frozen=True)
class Recipe:
    name: str
    summary: str
    defaults: Defaults
    samples: bool = False

    def load(self) -> ModuleType:
        """The recipe's module."""
        return importlib.import_module(f"{__package__}.{self.name}")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "convnet",
            "classify handwritten digits, or any folder of images, with ConvNet",
            Defaults(epochs=5, batch_size=64, lr=1e-3),
        ),
    )
}
