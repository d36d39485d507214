"""The command line: fastdl info | check | bench | train | sample.

Exit codes: 0 done; 1 it failed (one line says why); 2 wrong options (one line); 128 + n stopped by signal n, saved.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from . import UnsupportedError, __version__
from .info import info
from .recipes import RECIPES
from .recipes.extras import MissingExtraError
from .recipes.interrupt import Interrupted
from .recipes.options import add_options, add_sample_options, from_arguments, sample_from_arguments


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without repeating the usage; takes no abbreviated options."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and parsed.command != "bench":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        return parsed.run(parsed, rest)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Interrupted as stopped:
        return 128 + stopped.signal_number
    except (ValueError, OSError, FloatingPointError, UnsupportedError, MissingExtraError) as error:
        print(f"fastdl: {_one_line(error)}", file=sys.stderr)
        return 1


def _parser() -> Parser:
    parser = Parser(prog="fastdl", description="Fused kernels for the classic layers of deep learning.")
    parser.add_argument("--version", action="version", version=f"fastdl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    facts = commands.add_parser("info", help="what was built and loaded, and what this machine offers")
    facts.add_argument("--json", action="store_true", help="print JSON")
    facts.set_defaults(run=_info)

    check = commands.add_parser("check", help="hold every op to its error rule on this machine")
    check.set_defaults(run=_check)

    bench = commands.add_parser("bench", help="run the benchmarks of a source tree", add_help=False)
    bench.set_defaults(run=_bench)

    train = commands.add_parser("train", help="train a model on real data")
    recipes = train.add_subparsers(dest="recipe", required=True, metavar="RECIPE", parser_class=Parser)
    for recipe in RECIPES.values():
        options = recipes.add_parser(recipe.name, help=recipe.summary)
        add_options(options, recipe.name, recipe.defaults, recipe.options)
        options.set_defaults(run=_train, parser=options)

    sample = commands.add_parser("sample", help="let a trained generative model speak or draw")
    recipes = sample.add_subparsers(dest="recipe", required=True, metavar="RECIPE", parser_class=Parser)
    for recipe in RECIPES.values():
        options = recipes.add_parser(recipe.name, help=recipe.summary)
        if recipe.sample_options:
            add_sample_options(options, recipe.name, recipe.sample_options)
        options.set_defaults(run=_sample, parser=options)
    return parser


def _info(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    facts = info()
    if parsed.json:
        print(json.dumps(facts, indent=1))
        return 0
    for section, entries in facts.items():
        print(section)
        for name, value in entries.items():
            print(f"  {name:<18}{_shown(value)}")
    return 0


def _check(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    import torch

    from . import testing

    failed = 0
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for result in itertools.chain.from_iterable(map(testing.check, devices)):
        failed += not result.ok
        where = f"{result.op} {result.backend} ({result.algorithm}) {result.dtype} {result.quantity}"
        print(f"{'ok    ' if result.ok else 'FAILED'}  {where}: {result.report}, worst at {result.sample}")
    print("every op keeps its error rule here" if not failed else f"{failed} results break the error rule")
    return 1 if failed else 0


def _bench(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    script = Path(__file__).parent.parent / "benchmarks" / "run.py"
    if not script.is_file():
        print(
            "fastdl: the benchmarks are in the source tree, not in the package: run it there", file=sys.stderr
        )
        return 1
    return subprocess.run([sys.executable, str(script), *rest]).returncode


def _train(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    try:
        options = from_arguments(parsed, RECIPES[parsed.recipe].options)
    except argparse.ArgumentTypeError as error:
        parsed.parser.error(str(error))
    metrics = RECIPES[parsed.recipe].load().train(options)
    if options.json and metrics is not None:
        print(json.dumps(metrics, indent=1))
    return 0


def _sample(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    able = [name for name, recipe in RECIPES.items() if recipe.sample_options]
    if parsed.recipe not in able:
        parsed.parser.error(
            f"{parsed.recipe} does not generate anything; recipes that do: {', '.join(able) or 'none yet'}"
        )
    recipe = RECIPES[parsed.recipe]
    for piece in recipe.load().sample(sample_from_arguments(parsed, recipe.sample_options)):
        print(piece, end="", flush=True)
    return 0


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name}: {_shown(entry)}" for name, entry in value.items() if entry is not None)
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return "-" if value is None else str(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
