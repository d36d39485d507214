"""What `fastdl train transformer` and `fastdl sample transformer` take beyond the shared options."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import ClassVar

from ..option_types import positive_int, probability
from ..options import Options, SampleOptions

_SHOWN = "(default %(default)s)"
_BEAM = f"sequences kept while decoding; 1 is greedy {_SHOWN}"


@dataclass(frozen=True)
class TransformerOptions(Options):
    data_may_be_file: ClassVar[bool] = True

    d_model: int = 128
    heads: int = 4
    layers: int = 2
    feedforward: int = 512
    dropout: float = 0.1
    beam: int = 4

    @classmethod
    def add_own(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--d-model", type=positive_int, default=cls.d_model, help=f"size of a token's vector {_SHOWN}")
        add("--heads", type=positive_int, default=cls.heads, help=f"attention heads {_SHOWN}")
        add("--layers", type=positive_int, default=cls.layers, help=f"of encoder and of decoder {_SHOWN}")
        add(
            "--feedforward",
            type=positive_int,
            default=cls.feedforward,
            help=f"units between the linear layers {_SHOWN}",
        )
        add("--dropout", type=probability, default=cls.dropout, help=f"while training {_SHOWN}")
        add("--beam", type=positive_int, default=cls.beam, help=f"of the test: {_BEAM}")


@dataclass(frozen=True)
class TransformerSampleOptions(SampleOptions):
    words: tuple[str, ...] = ()
    beam: int = 4

    @classmethod
    def add_own(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("words", nargs="+", metavar="WORD", help="what to pronounce")
        add("--beam", type=positive_int, default=cls.beam, help=_BEAM)
