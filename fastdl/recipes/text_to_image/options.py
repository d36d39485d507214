"""What `fastdl train text_to_image` and `fastdl sample text_to_image` take beyond the shared options."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ..option_types import non_negative_float, positive_int
from ..options import Options, SampleOptions

PREDICTIONS = ("epsilon", "sample", "v_prediction")
SCHEDULERS = ("ddpm", "ddim", "dpm_solver", "euler", "euler_ancestral", "flow_match")


@dataclass(frozen=True)
class TextToImageOptions(Options):
    prediction: str = "v_prediction"
    width: int = 48

    @classmethod
    def add_own(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        shown = "(default %(default)s)"
        add(
            "--prediction",
            choices=PREDICTIONS,
            default=cls.prediction,
            help=f"what the denoiser predicts: the noise, the image, or v {shown}",
        )
        add("--width", type=positive_int, default=cls.width, help=f"channels at the first level {shown}")


@dataclass(frozen=True)
class TextToImageSampleOptions(SampleOptions):
    prompt: tuple[str, ...] = ()
    scheduler: str = "ddim"
    steps: int = 50
    guidance: float = 3.0
    count: int = 8
    out: Path = Path("runs/text_to_image/sample.png")

    @classmethod
    def add_own(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        shown = "(default %(default)s)"
        add("prompt", nargs="*", help="texts, one row of images each (default: one for every class)")
        add("--scheduler", choices=SCHEDULERS, default=cls.scheduler, help=f"how noise is removed {shown}")
        add("--steps", type=positive_int, default=cls.steps, help=f"reverse steps {shown}")
        add(
            "--guidance",
            type=non_negative_float,
            default=cls.guidance,
            help=f"how much the text counts; 1 is no guidance, 0 ignores the text {shown}",
        )
        add("--count", type=positive_int, default=cls.count, help=f"images of each text {shown}")
        add("--out", type=Path, default=cls.out, metavar="FILE", help=f"the grid as PNG {shown}")
