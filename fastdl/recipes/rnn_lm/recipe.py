"""Trains RecurrentLanguageModel on a text, and its plain-PyTorch twin beside it on request; lets it write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ... import dispatch
from ...models import RecurrentLanguageModel
from ...models.rnn_lm.reference import ReferenceRecurrentLanguageModel
from .. import checkpoint, random_state, runner
from ..comparison import table
from ..console import Console
from ..data import skipped
from ..data.characters import Corpus, Vocabulary
from ..data.text import MAX_BYTES, load_text
from ..distributed import Group, processes
from ..experiment import Experiment, Rows
from ..printable import printable
from . import baselines, plots
from .options import RnnLmOptions, RnnLmSampleOptions
from .sampling import draw, shown
from .task import LanguageModelling, evaluate, score

MODEL_OPTIONS = {
    "embedding_size": int,
    "hidden_size": int,
    "num_layers": int,
    "cell": str,
    "dropout": float,
    "tie_weights": bool,
}
"""Arguments of the model beyond the size of the vocabulary, as a checkpoint's identity holds them."""

SAMPLE_LENGTH = 400


class CharacterModelling(Experiment):
    name = "rnn_lm"
    files = ("training.png",)
    models = {"fastdl": RecurrentLanguageModel, "reference": ReferenceRecurrentLanguageModel}
    max_grad_norm = 1.0

    def __init__(self, options: RnnLmOptions, group: Group, console: Console) -> None:
        super().__init__(options, group, console)
        text = load_text(options.data)
        corpus = self.corpus = Corpus.of(text)
        console.line(
            f"data: {text.source}: {len(corpus.train)} characters to train, {len(corpus.validation)} to validate, "
            f"{len(corpus.test)} to test, {len(corpus.vocabulary)} distinct"
        )
        if text.replaced:
            console.line(f"replaced {text.replaced} byte sequences that are not UTF-8")
        if text.cut:
            console.line(f"read the first {MAX_BYTES / 1e6:.0f} MB")
        for line in skipped.lines(text.skipped):
            console.line(line)
        parts = corpus.train, corpus.test, len(corpus.vocabulary)
        self.baselines = {
            "unigram": score(baselines.unigram(*parts)),
            "bigram": score(baselines.bigram(*parts)),
        }

    def data(self) -> dict[str, object]:
        corpus, text = self.corpus, self.corpus.text
        return {
            "source": text.source,
            "vocabulary": len(corpus.vocabulary),
            "train": len(corpus.train),
            "validation": len(corpus.validation),
            "test": len(corpus.test),
            "replaced": text.replaced,
            "cut": text.cut,
            **skipped.entries(text.skipped),
            "baselines": self.baselines,
        }

    def model_options(self) -> dict[str, object]:
        options = self.options
        return {
            "vocabulary_size": len(self.corpus.vocabulary),
            "embedding_size": options.embedding_size,
            "hidden_size": options.hidden_size,
            "num_layers": options.layers,
            "cell": options.cell,
            "dropout": options.dropout,
            "tie_weights": options.tie_weights,
        }

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=self.options.lr, fused=True)

    def task(self) -> LanguageModelling:
        return LanguageModelling(
            self.corpus, self.options.batch_size, self.options.sequence_length, self.group
        )

    def identity(self) -> dict[str, object]:
        own = self.model_options()
        return {
            "data": self.corpus.digest(),
            **{name: own[name] for name in MODEL_OPTIONS},
            "vocabulary": self.corpus.vocabulary.characters,
            "sequence_length": self.options.sequence_length,
        }

    def example(self) -> tuple[Tensor, ...]:
        shape = self.options.batch_size // self.group.size, self.options.sequence_length
        return (torch.zeros(shape, dtype=torch.int64, device=self.group.device),)

    def test(self, model: nn.Module, name: str) -> dict[str, object]:
        options, line = self.options, self.console.line
        tested = score(
            evaluate(model, self.corpus.test, options.batch_size, options.sequence_length, self.group)
        )
        every = {**self.baselines, name: tested}
        rows = [
            ("test perplexity", [f"{scores['perplexity']:.3f}" for scores in every.values()]),
            ("bits per character", [f"{scores['bits_per_character']:.3f}" for scores in every.values()]),
        ]
        for text in table(list(every), rows):
            line(text)
        if tested["loss"] >= min(scores["loss"] for scores in self.baselines.values()):
            line("the model does not beat both baselines: train longer")
        if name != "fastdl" or not self.group.leads:
            return tested
        generator = random_state.generator(options.seed)
        written = draw(model, self.corpus.vocabulary, "", SAMPLE_LENGTH, 0.8, None, generator)
        sample = "".join(written)
        line(f"\nit writes:\n{sample}")
        return {**tested, "sample": sample}

    def compared(self, tests: Sequence[dict]) -> Rows:
        return [
            ("test perplexity", [f"{test['perplexity']:.3f}" for test in tests]),
            ("bits per character", [f"{test['bits_per_character']:.3f}" for test in tests]),
        ]

    def plot(self, folder: Path, metrics: dict) -> None:
        plots.plot_training(folder / "training.png", metrics["runs"], self.baselines)


train = partial(runner.train, CharacterModelling)


def sample(options: RnnLmSampleOptions) -> Iterator[str]:
    """The prompt and what a trained model adds to it, piece by piece.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint is damaged or another recipe's; the message names it.
        UnsupportedError: `options.backend` cannot serve the model here.
    """
    forced = dispatch.backend(options.backend) if options.backend else nullcontext()
    with processes(options.device) as group, forced:
        model, vocabulary = load(options.checkpoint)
        generator = random_state.generator(options.seed)
        yield shown(options.prompt)
        yield from draw(
            model.to(group.device),
            vocabulary,
            options.prompt,
            options.length,
            options.temperature,
            options.top_k,
            generator,
        )
        yield "\n"


def load(path: Path) -> tuple[RecurrentLanguageModel, Vocabulary]:
    """The model of a checkpoint of this recipe, ours or the twin's, and its vocabulary."""
    state = checkpoint.load(path)
    identity = state.get("identity")
    if not isinstance(identity, dict) or identity.get("recipe") != CharacterModelling.name:
        raise ValueError(f"{printable(path)}: is not a checkpoint of {CharacterModelling.name}")
    kinds = {"vocabulary": str, **MODEL_OPTIONS}
    if wrong := [name for name, kind in kinds.items() if not isinstance(identity.get(name), kind)]:
        raise ValueError(f"{printable(path)}: says nothing usable about {', '.join(wrong)}")
    arguments = {name: identity[name] for name in MODEL_OPTIONS}
    try:
        vocabulary = Vocabulary(identity["vocabulary"])
        with torch.device("meta"):  # sizes are compared with the file's before memory is taken for them
            shape = RecurrentLanguageModel(len(vocabulary), **arguments)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{printable(path)}: describes no model: {error}") from error
    checkpoint.check_model(path, shape, state.get("model"))
    model = RecurrentLanguageModel(len(vocabulary), **arguments)
    checkpoint.restore_model(path, model, state["model"])
    return model, vocabulary
