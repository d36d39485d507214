"""Trains Transformer to pronounce words, and its plain-PyTorch twin beside it on request; lets it pronounce."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ... import dispatch
from ...models import Transformer
from ...models.transformer.reference import ReferenceTransformer
from .. import checkpoint, runner
from ..comparison import table
from ..console import Console
from ..data.pairs import LONGEST, load_pairs
from ..distributed import Group, processes
from ..experiment import Experiment, Rows
from ..printable import printable
from . import plots
from .options import TransformerOptions, TransformerSampleOptions
from .symbols import Symbols
from .task import Translation, answers, evaluate

MODEL_OPTIONS = {
    "d_model": int,
    "num_heads": int,
    "num_encoder_layers": int,
    "num_decoder_layers": int,
    "dim_feedforward": int,
    "dropout": float,
    "max_length": int,
}
"""Arguments of the model beyond the sizes of the vocabularies, as a checkpoint's identity holds them."""

EXAMPLES = 8
"""Words of the test whose answers are shown."""

MAX_LENGTH = 2 * LONGEST + 8
"""Tokens of a target, BEGIN and END counted, that a model has positions for."""


class Pronunciation(Experiment):
    name = "transformer"
    files = ("training.png", "attention.png")
    models = {"fastdl": Transformer, "reference": ReferenceTransformer}
    max_grad_norm = 1.0

    def __init__(self, options: TransformerOptions, group: Group, console: Console) -> None:
        super().__init__(options, group, console)
        pairs = self.pairs = load_pairs(options.data)
        self.letters = Symbols.of(word for word, _ in pairs.train)
        self.symbols = Symbols.of(answer for _, right in pairs.train for answer in right)
        self.maps: tuple[Tensor, str, list[str]] | None = None
        console.line(
            f"data: {pairs.source}: {len(pairs.train)} words to train, {len(pairs.validation)} to validate, "
            f"{len(pairs.test)} to test, {len(self.letters.known)} letters, {len(self.symbols.known)} symbols"
        )
        if pairs.skipped:
            console.line(f"skipped {pairs.skipped} lines that are no pair or longer than {LONGEST}")

    def data(self) -> dict[str, object]:
        pairs = self.pairs
        return {
            "source": pairs.source,
            "letters": len(self.letters.known),
            "symbols": len(self.symbols.known),
            "train": len(pairs.train),
            "validation": len(pairs.validation),
            "test": len(pairs.test),
            "skipped_lines": pairs.skipped,
        }

    def model_options(self) -> dict[str, object]:
        options = self.options
        return {
            "source_size": len(self.letters),
            "target_size": len(self.symbols),
            "d_model": options.d_model,
            "num_heads": options.heads,
            "num_encoder_layers": options.layers,
            "num_decoder_layers": options.layers,
            "dim_feedforward": options.feedforward,
            "dropout": options.dropout,
            "max_length": MAX_LENGTH,
        }

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=self.options.lr, fused=True)

    def task(self) -> Translation:
        options = self.options
        return Translation(
            self.pairs, self.letters, self.symbols, options.batch_size, options.seed, self.group
        )

    def identity(self) -> dict[str, object]:
        own = self.model_options()
        return {
            "data": self.pairs.digest(),
            **{name: own[name] for name in MODEL_OPTIONS},
            "letters": "".join(self.letters.known),
            "symbols": " ".join(self.symbols.known),
        }

    def example(self) -> tuple[Tensor, ...]:
        batch = self.task().batch(0, 0)
        return batch.source, batch.target[:, :-1]

    def test(self, model: nn.Module, name: str) -> dict[str, object]:
        options, line = self.options, self.console.line
        vocabularies = self.letters, self.symbols
        found: dict[str, object] = {}
        rows = []
        for kind, width in {"greedy": 1, f"beam of {options.beam}": options.beam}.items():
            errors = evaluate(model, self.pairs.test, *vocabularies, width, self.group)
            found["greedy" if kind == "greedy" else "beam"] = {**errors.rates(), **errors._asdict()}
            rows.append((kind, [f"{100 * rate:.2f}%" for rate in errors.rates().values()]))
        for text in table(["word error", "symbol error"], rows):
            line(text)
        words = [word for word, _ in self.pairs.test[:EXAMPLES]]
        predicted = answers(model, words, *vocabularies, options.beam, self.group.device)
        shown = [
            f"{printable(word)}: {' '.join(answer)}" for word, answer in zip(words, predicted, strict=True)
        ]
        for text in shown:
            line(f"  {text}")
        if name == "fastdl":
            self._map(model, words, predicted)
        return {**found, "beam_width": options.beam, "examples": shown}

    def _map(self, model: nn.Module, words: Sequence[str], predicted: Sequence[Sequence[str]]) -> None:
        """Keeps the attention of the longest example, to be plotted."""
        best = max(range(len(words)), key=lambda i: len(words[i]))
        source = self.letters.encode([words[best]], ends=False)[0]
        target = self.symbols.encode([predicted[best]], ends=True)[0, :-1]
        weights = plots.cross_attention(model, source.to(self.group.device), target.to(self.group.device))
        # position t attends in order to say symbol t: the last one says the end
        self.maps = weights, words[best], [*predicted[best], "end"]

    def compared(self, tests: Sequence[dict]) -> Rows:
        return [
            (f"test {kind}, {name.replace('_', ' ')}", [f"{100 * test[kind][name]:.2f}%" for test in tests])
            for kind in ("greedy", "beam")
            for name in ("word_error_rate", "symbol_error_rate")
        ]

    def plot(self, folder: Path, metrics: dict) -> None:
        plots.plot_training(folder / "training.png", metrics["runs"])
        plots.plot_attention(folder / "attention.png", *self.maps)


train = partial(runner.train, Pronunciation)


def sample(options: TransformerSampleOptions) -> Iterator[str]:
    """A line for each word: the word and its symbols.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint is damaged or another recipe's, or a word is empty or too long.
        UnsupportedError: `options.backend` cannot serve the model here.
    """
    for word in options.words:
        if not 0 < len(word) <= LONGEST:
            raise ValueError(f"a word must have 1 to {LONGEST} letters, got {len(word)}")
    forced = dispatch.backend(options.backend) if options.backend else nullcontext()
    with processes(options.device) as group, forced:
        model, letters, symbols = load(options.checkpoint)
        model.to(group.device)
        predicted = answers(model, list(options.words), letters, symbols, options.beam, group.device)
        for word, answer in zip(options.words, predicted, strict=True):
            yield f"{printable(word)}  {printable(' '.join(answer))}\n"


def load(path: Path) -> tuple[Transformer, Symbols, Symbols]:
    """The model of a checkpoint of this recipe, ours or the twin's, its letters and symbols."""
    state = checkpoint.load(path)
    identity = state.get("identity")
    if not isinstance(identity, dict) or identity.get("recipe") != Pronunciation.name:
        raise ValueError(f"{printable(path)}: is not a checkpoint of {Pronunciation.name}")
    kinds = {"letters": str, "symbols": str, **MODEL_OPTIONS}
    if wrong := [name for name, kind in kinds.items() if not isinstance(identity.get(name), kind)]:
        raise ValueError(f"{printable(path)}: says nothing usable about {', '.join(wrong)}")
    try:
        letters, symbols = Symbols(identity["letters"]), Symbols(identity["symbols"].split(" "))
        arguments = {
            "source_size": len(letters),
            "target_size": len(symbols),
            **{name: identity[name] for name in MODEL_OPTIONS},
        }
        with torch.device("meta"):  # sizes are compared with the file's before memory is taken for them
            shape = Transformer(**arguments)
    except (ValueError, RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"{printable(path)}: describes no model: {error}") from error
    checkpoint.check_model(path, shape, state.get("model"))
    model = Transformer(**arguments)
    checkpoint.restore_model(path, model, state["model"])
    return model, letters, symbols
