"""Times the cases of a family; the only loop that does. Wrong outputs are not timed.

    python benchmarks/run.py [family ...] [--cases TEXT ...] [--providers TEXT ...] [--quick] [--merge] [--out DIR]

Every provider's outputs are first compared with fp64. A case whose fastdl outputs disagree is refused (exit
status 1); another provider that disagrees is shown and left out. What remains takes turns in one process, and
medians are compared.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __package__ is None:  # run as a script
    sys.path[0] = str(ROOT)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import machine, memory, report  # noqa: E402
from benchmarks.goals import judge  # noqa: E402
from benchmarks.providers import Case, Prepared, Provider  # noqa: E402
from benchmarks.row import Row  # noqa: E402
from fastdl.testing.error_rule import MAX_FACTOR, WINOGRAD_RELATIVE_L2  # noqa: E402
from fastdl.testing.timer import CudaTurn, Turn, host_turn, samples  # noqa: E402

FAMILIES = {
    path.stem.removeprefix("bench_"): f"benchmarks.{path.parent.name}.{path.stem}"
    for path in sorted(ROOT.glob("benchmarks/*/bench_*.py"))
}


@dataclass(frozen=True)
class Effort:
    """How long a case is timed: at most `rounds`, at least `least_rounds`, and `seconds` in between."""

    rounds: int = 21
    least_rounds: int = 5
    seconds: float = 8.0
    least_seconds: float = 0.02


QUICK = Effort(rounds=3, least_rounds=2, seconds=1.0, least_seconds=0.005)


def errors(outputs: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative L2 error of each named output; infinite if one is missing, misshapen or not finite."""
    found = {}
    for name, expected in truth.items():
        ours = outputs.get(name)
        if ours is None or ours.shape != expected.shape:
            found[name] = float("inf")
            continue
        norm = expected.norm().item() or 1.0
        error = (ours.detach().to(expected.device).double() - expected).norm().item() / norm
        found[name] = error if error == error else float("inf")
    return found


def allowed(dtype: torch.dtype, device: str, eager: Mapping[str, float] | None) -> dict[str, float] | float:
    """The limit on each output's relative L2: twice eager's error, in fp32 at least Winograd's exception.

    Without eager's errors, the limit on eager itself: what rounding may do in a long recurrence (on GPUs fp32
    convolves in TF32). It finds a case set up wrongly, whose error is near 1; ours is held to eager's own.
    """
    least = WINOGRAD_RELATIVE_L2 if dtype is torch.float32 else 0.0
    if eager is None:
        if dtype is torch.float32:
            return 2.0**-10 if device == "cuda" else 1e-4
        return 4 * torch.finfo(dtype).eps
    return {name: max(MAX_FACTOR * error, least) for name, error in eager.items()}


def disagreement(found: Mapping[str, float], limit: Mapping[str, float] | float) -> str | None:
    """None, or which output is further from fp64 than its limit."""
    for name, error in found.items():
        most = limit if isinstance(limit, float) else limit[name]
        if not error <= most:
            return f"{name} has relative L2 error {error:.1e}, at most {most:.1e} is allowed"
    return None


@dataclass
class _Candidate:
    provider: Provider
    prepared: Prepared | None
    status: str
    error: float | None = None


def gate(
    case: Case, providers: Iterable[Provider], truth: Mapping[str, Tensor], device: str
) -> list[_Candidate]:
    """Prepare every provider and compare it with fp64; only what agrees has the status "timed"."""
    found: list[_Candidate] = []
    eager: dict[str, float] | None = None
    for provider in providers:
        begin = time.perf_counter()
        try:
            prepared = provider.prepare()
            error = errors(prepared.outputs(), truth)
        except ImportError as missing:
            found.append(_Candidate(provider, None, f"not installed: {missing.name}"))
            continue
        except Exception as failure:
            line = f"{type(failure).__name__}: {failure}".splitlines()[0][:160]
            found.append(_Candidate(provider, None, f"failed: {line}"))
            continue
        wrong = disagreement(error, allowed(case.dtype, device, eager))
        if eager is None and provider.name == "eager" and wrong is None:
            eager = error
        status = "timed" if wrong is None else f"wrong: {wrong}"
        worst = max(error.values())
        found.append(_Candidate(provider, prepared, status, worst if math.isfinite(worst) else None))
        if (spent := time.perf_counter() - begin) > 5:
            print(f"    {provider}: prepared in {spent:.0f} s", flush=True)
    return found


def measure(
    family: str,
    case: Case,
    device: str,
    facts: Mapping[str, str],
    limits: Mapping[str, float],
    effort: Effort,
    only: Sequence[str] = (),
    doubt: Callable[[list[Row]], Effort | None] | None = None,
) -> list[Row]:
    """The rows of one case: gate, then time what agrees. `doubt` may ask for a second timing, which then counts."""
    workload = case.workload(device)
    # eager is the yardstick of the gate and of a ratio: first, and never left out
    providers = [
        p for p in workload.providers if not only or p.name == "eager" or any(o in str(p) for o in only)
    ]
    providers.sort(key=lambda p: p.name != "eager")
    candidates = gate(case, providers, workload.truth, device)
    limit = limits.get(str(case.dtype)[6:])
    rows = [
        Row(
            family=family,
            case=case.name,
            group=case.group,
            dtype=str(case.dtype)[6:],
            provider=c.provider.name,
            layout=c.provider.layout,
            algorithm=c.prepared.algorithm if c.prepared else "",
            status=c.status,
            error=c.error,
            saved_bytes=_per(c.prepared.saved_bytes if c.prepared else None, case.saved_per),
            goal=case.goal if c.provider.ours else None,
            goal_eager=case.goal_eager if c.provider.ours else None,
            goal_float32=case.goal_float32 if c.provider.ours else None,
            goal_fraction=case.goal_fraction if c.provider.ours else None,
            limit_gflops=limit,
            **facts,
        )
        for c in candidates
    ]
    wrong = [row for row in rows if row.ours and row.status != "timed"]
    if wrong:
        for row in rows:
            row.status = (
                f"refused: fastdl {wrong[0].layout} {wrong[0].status}"
                if row.status == "timed"
                else row.status
            )
        return rows
    calls = {i: c.prepared.call for i, c in enumerate(candidates) if c.status == "timed"}
    turn = CudaTurn() if device == "cuda" else host_turn
    _time(rows, calls, case.flops, effort, turn)
    if doubt is not None and (effort := doubt(rows)) is not None:
        _time(rows, calls, case.flops, effort, turn)
    if case.bytes:
        _add_bandwidth(rows, case.bytes, limits["copy"])
    for i, call in calls.items():
        peak = memory.peak_bytes(call, device)
        rows[i].peak_mib = None if peak is None else peak / 2**20
    return rows


def _time(rows: list[Row], calls: Mapping[int, Callable], flops: float, effort: Effort, turn: Turn) -> None:
    times = samples(
        calls,
        rounds=effort.rounds,
        least_rounds=effort.least_rounds,
        budget_seconds=effort.seconds,
        least_seconds=effort.least_seconds,
        turn=turn,
    )
    for i, values in times.items():
        _add_times(rows[i], values, flops)
    add_ratios(rows)


def _per(count: int | None, elements: int) -> float | None:
    return None if count is None else count / elements


def _add_times(row: Row, seconds: list[float], flops: float) -> None:
    milliseconds = sorted(1e3 * s for s in seconds)
    row.ms = statistics.median(milliseconds)
    row.ms_p20 = milliseconds[len(milliseconds) // 5]
    row.ms_p80 = milliseconds[-1 - len(milliseconds) // 5]
    row.rounds = len(milliseconds)
    row.gflops = flops / row.ms / 1e6
    if row.limit_gflops:
        row.limit_fraction = row.gflops / row.limit_gflops


def _add_bandwidth(rows: list[Row], count: float, copy: float) -> None:
    for row in rows:
        if row.ms is not None:
            row.gbytes = count / row.ms / 1e6
            row.copy_fraction = row.gbytes / copy


def add_ratios(rows: list[Row]) -> None:
    """Ratios of medians within one case: against eager in the first layout, and against the fastest other."""
    timed = [row for row in rows if row.ms is not None]
    rivals = [row for row in timed if not row.ours]
    eager = next((row for row in timed if row.provider == "eager"), None)
    best = min(rivals, key=lambda row: row.ms, default=None)
    for row in timed:
        row.over_eager = eager.ms / row.ms if eager else None
        if best:
            row.best_rival, row.over_best = f"{best.provider} {best.layout}", best.ms / row.ms


def in_environment(family: str, cases: list[Case], arguments: argparse.Namespace) -> list[Row]:
    """The cases in a process of its own, started with the environment they ask for."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, family, "--out", folder, "--exact", "--no-plot"]
        command += ["--device", arguments.device, "--threads", str(torch.get_num_threads())]
        command += ["--quick"] if arguments.quick else []
        command += ["--seconds", str(arguments.seconds)] if arguments.seconds else []
        command += ["--providers", *arguments.providers] if arguments.providers else []
        command += ["--cases", *(f"{case.group}/{case.name}" for case in cases)]
        # Inductor's cache does not know of every such setting, and would serve code for other vectors.
        cache = Path(tempfile.gettempdir(), "fastdl-inductor", *cases[0].environment.values())
        environment = {**os.environ, **cases[0].environment, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        finished = subprocess.run(command, env=environment, timeout=900)
        results = list(Path(folder).glob("*.json"))
        if not results:
            raise RuntimeError(f"{' '.join(command)} ended with status {finished.returncode} and no results")
        return [Row(**row) for row in json.loads(results[0].read_text())["rows"]]


def run_family(family: str, arguments: argparse.Namespace) -> list[Row]:
    """All chosen cases of one family, printed and written."""
    every = importlib.import_module(FAMILIES[family]).cases(arguments.device)
    cases = [case for case in every if _chosen(case, arguments)]
    if not cases:
        return []
    dtypes = {str(case.dtype)[6:] for case in cases if case.environment_set}
    facts, limits = machine.facts(arguments.device), machine.limits(arguments.device, dtypes)
    effort = QUICK if arguments.quick else Effort()
    if arguments.seconds:
        effort = Effort(seconds=arguments.seconds)
    print(f"{family}: {report.describe(facts, limits)}", flush=True)
    stem = arguments.out / f"{family}-{facts['machine']}"
    order = [f"{case.group}/{case.name}" for case in every]

    def write(rows: list[Row], plot: bool) -> None:
        together = report.merged(stem, rows, order) if arguments.merge else rows
        judge(together)
        report.write(together, limits, stem, plot=plot)

    rows: list[Row] = []
    elsewhere: dict[tuple, list[Case]] = {}
    begin = time.perf_counter()
    for i, case in enumerate(cases):
        if not case.environment_set:
            elsewhere.setdefault(tuple(case.environment.items()), []).append(case)
            continue
        print(
            f"[{i + 1}/{len(cases)}, {time.perf_counter() - begin:.0f} s] {case.group}/{case.name}",
            flush=True,
        )
        measured = measure(family, case, arguments.device, facts, limits, effort, arguments.providers)
        print(report.case_lines(measured), flush=True)
        rows += measured
        # a run that is stopped leaves what it has
        write(rows, plot=False)
    for apart in elsewhere.values():
        words = " ".join(f"{name}={value}" for name, value in apart[0].environment.items())
        print(f"[{len(apart)} cases, {time.perf_counter() - begin:.0f} s] with {words}", flush=True)
        rows += in_environment(family, apart, arguments)
    write(rows, plot=arguments.plot)
    print(
        f"\n{report.table(rows)}\n\n{family}: {time.perf_counter() - begin:.0f} s, written to {stem}.*",
        flush=True,
    )
    return rows


def _chosen(case: Case, arguments: argparse.Namespace) -> bool:
    name = f"{case.group}/{case.name}"
    if arguments.exact:
        return name in arguments.cases
    return not arguments.cases or any(text in name for text in arguments.cases)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="*", help=f"of {', '.join(FAMILIES)}; default all")
    parser.add_argument("--cases", nargs="+", default=[], metavar="TEXT", help="parts of group/name")
    parser.add_argument(
        "--providers", nargs="+", default=[], metavar="TEXT", help="parts of names; eager stays"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, help="timing of one case, default 8")
    parser.add_argument("--quick", action="store_true", help="few rounds, no torch.compile: does it work?")
    parser.add_argument("--out", type=Path, help="default benchmarks/results, for part of a run runs/bench")
    parser.add_argument("--merge", action="store_true", help="keep other cases' rows of the last results")
    parser.add_argument("--exact", action="store_true", help="--cases are whole names")
    parser.add_argument("--no-plot", dest="plot", action="store_false")
    arguments = parser.parse_args(argv)
    for family in arguments.family:
        if family not in FAMILIES:
            parser.error(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no GPU")
    partial = arguments.quick or arguments.cases or arguments.providers
    whole = arguments.merge or not partial
    arguments.out = arguments.out or ROOT / ("benchmarks/results" if whole else "runs/bench")
    if arguments.quick and not arguments.providers:
        arguments.providers = ["fastdl", "eager", "ONNX Runtime", "OpenVINO"]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    rows = [row for family in arguments.family or FAMILIES for row in run_family(family, arguments)]
    if not rows:
        print(f"no case matches {arguments.cases}", file=sys.stderr)
        return 2
    refused = sorted(
        {f"{row.group}/{row.case}: {row.status}" for row in rows if row.status.startswith("refused")}
    )
    for line in refused:
        print(line, file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
