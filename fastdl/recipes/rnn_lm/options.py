"""What `fastdl train rnn_lm` and `fastdl sample rnn_lm` take beyond the shared options."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import ClassVar

from ..option_types import non_negative_float, positive_int, probability
from ..options import Options, SampleOptions


@dataclass(frozen=True)
class RnnLmOptions(Options):
    data_may_be_file: ClassVar[bool] = True

    cell: str = "lstm"
    hidden_size: int = 256
    layers: int = 1
    embedding_size: int = 64
    dropout: float = 0.0
    tie_weights: bool = False
    sequence_length: int = 64

    @classmethod
    def add_own(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        shown = "(default %(default)s)"
        add(
            "--cell",
            choices=("lstm", "gru", "rnn"),
            default=cls.cell,
            help=f"kind of recurrent layer {shown}",
        )
        add("--hidden-size", type=positive_int, default=cls.hidden_size, help=f"units of a layer {shown}")
        add("--layers", type=positive_int, default=cls.layers, help=f"recurrent layers {shown}")
        add(
            "--embedding-size",
            type=positive_int,
            default=cls.embedding_size,
            help=f"size of a character's vector {shown}",
        )
        add("--dropout", type=probability, default=cls.dropout, help=f"while training {shown}")
        add("--tie-weights", action="store_true", help="the output uses the embedding's weight")
        add(
            "--sequence-length",
            type=positive_int,
            default=cls.sequence_length,
            help=f"characters a step sees of each row; the state goes on to the next step {shown}",
        )


@dataclass(frozen=True)
class RnnLmSampleOptions(SampleOptions):
    prompt: str = ""
    length: int = 400
    temperature: float = 0.8
    top_k: int | None = None

    @classmethod
    def add_own(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        shown = "(default %(default)s)"
        add("prompt", nargs="?", default=cls.prompt, help="what the text starts with (default: a new line)")
        add("--length", type=positive_int, default=cls.length, help=f"characters to add {shown}")
        add(
            "--temperature",
            type=non_negative_float,
            default=cls.temperature,
            help=f"below 1 safer, above 1 wilder, 0 always the likeliest {shown}",
        )
        add("--top-k", type=positive_int, help="draw among the k likeliest characters only (default: all)")
