"""The recipes by name.

A recipe's folder has `options.py` where it takes options of its own, and `recipe.py`, which is imported only when
it is used. That module offers `train(options) -> metrics`, the metrics being None in a process that does not lead,
and where there are `sample_options` also `sample(options)`, which yields the pieces of text to print.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from .options import Defaults, Options, SampleOptions
from .rnn_lm.options import RnnLmOptions, RnnLmSampleOptions
from .text_to_image.options import TextToImageOptions, TextToImageSampleOptions
from .transformer.options import TransformerOptions, TransformerSampleOptions


@dataclass(frozen=True)
class Recipe:
    name: str
    summary: str
    defaults: Defaults
    options: type[Options] = Options
    sample_options: type[SampleOptions] | None = None

    def load(self) -> ModuleType:
        """The recipe's module."""
        return importlib.import_module(f"{__package__}.{self.name}.recipe")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "convnet",
            "classify handwritten digits, or any folder of images, with ConvNet",
            Defaults(epochs=5, batch_size=64, lr=1e-3),
        ),
        Recipe(
            "rnn_lm",
            "model a text character by character with an LSTM, GRU or RNN, and let it write",
            Defaults(epochs=2, batch_size=64, lr=8e-3),
            RnnLmOptions,
            RnnLmSampleOptions,
        ),
        Recipe(
            "text_to_image",
            "draw images of classes by their names, with a diffusion model trained on captioned digits",
            Defaults(epochs=30, batch_size=64, lr=2e-3),
            TextToImageOptions,
            TextToImageSampleOptions,
        ),
        Recipe(
            "transformer",
            "pronounce words, or turn any sequences into others, with an encoder-decoder Transformer",
            Defaults(epochs=3, batch_size=256, lr=1e-3),
            TransformerOptions,
            TransformerSampleOptions,
        ),
    )
}
