"""The runner: what it refuses to time, what a row says, and one small run of the real thing."""

import csv
import importlib
import json
from dataclasses import dataclass, fields

import pytest
import torch
from torch import Tensor

from benchmarks import grid, machine, readme, report, run
from benchmarks.goals import judge
from benchmarks.ops import bench_conv_relu_maxpool as conv
from benchmarks.ops import grid_conv_relu_maxpool as conv_grid
from benchmarks.performance import main as write_performance
from benchmarks.providers import Case, Prepared, Provider, Workload
from benchmarks.row import Row

TINY = run.Effort(rounds=2, least_rounds=1, seconds=0.01, least_seconds=1e-5)
TRUTH = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(2, 3, 4)


def provider(name: str, output: Tensor | Exception) -> Provider:
    def prepare() -> Prepared:
        if isinstance(output, Exception):
            raise output
        return Prepared(lambda: None, lambda: {"output": output}, "some algorithm", 24)

    return Provider(name, "NCHW", prepare)


@dataclass(frozen=True)
class MadeCase(Case):
    providers: tuple[Provider, ...] = ()

    def workload(self, device: str) -> Workload:
        return Workload({"output": TRUTH}, self.providers)


def measured(**outputs: Tensor | Exception) -> dict[str, Row]:
    providers = tuple(provider(name.replace("_", " "), output) for name, output in outputs.items())
    case = MadeCase("made", "inference", torch.float32, 1e6, goal=1.0, saved_per=24, providers=providers)
    rows = run.measure("made", case, "cpu", machine.facts("cpu"), {"float32": 100.0}, TINY)
    return {row.provider.replace(" ", "_"): row for row in rows}


WRONG = {
    "slightly": TRUTH.float() * (1 + 2e-5),
    "one element": TRUTH.float().index_fill(2, torch.tensor(0), 0.5),
    "nan": TRUTH.float().index_fill(2, torch.tensor(0), torch.nan),
    "infinite": TRUTH.float().index_fill(2, torch.tensor(0), torch.inf),
    "shape": TRUTH.float()[:1],
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses_to_time_wrong_outputs(name):
    rows = measured(eager=TRUTH.float(), fastdl=WRONG[name], other=TRUTH.float())
    assert all(row.ms is None for row in rows.values())
    assert rows["fastdl"].status.startswith("wrong: output has relative L2 error")
    assert rows["eager"].status.startswith("refused: fastdl")
    assert rows["other"].status.startswith("refused: fastdl")


def test_a_missing_output_is_wrong():
    assert run.errors({}, {"output": TRUTH})["output"] == float("inf")


def test_times_what_agrees():
    rows = measured(eager=TRUTH.float(), fastdl=TRUTH.float() * (1 + 5e-6), other=TRUTH.float())
    assert all(row.status == "timed" and row.ms > 0 for row in rows.values())
    assert rows["fastdl"].error == pytest.approx(5e-6, rel=0.05)
    assert rows["fastdl"].saved_bytes == 1.0
    assert rows["fastdl"].gflops == pytest.approx(1e6 / rows["fastdl"].ms / 1e6)
    assert rows["fastdl"].limit_fraction == pytest.approx(rows["fastdl"].gflops / 100)


def test_a_wrong_rival_is_shown_and_left_out():
    rows = measured(eager=TRUTH.float(), other=WRONG["nan"], fastdl=TRUTH.float())
    assert rows["other"].ms is None
    assert rows["other"].status.startswith("wrong")
    assert rows["fastdl"].best_rival == "eager NCHW"


def test_a_failing_rival_is_a_row_and_ours_refuses_the_case():
    failure = ValueError("no such layer")
    rows = measured(eager=TRUTH.float(), failing=failure, absent=ImportError("", name="engine"))
    assert rows["failing"].status == "failed: ValueError: no such layer"
    assert rows["absent"].status == "not installed: engine"
    assert rows["eager"].status == "timed"
    rows = measured(eager=TRUTH.float(), fastdl=failure)
    assert rows["fastdl"].status == "failed: ValueError: no such layer"
    assert rows["eager"].status == "refused: fastdl NCHW failed: ValueError: no such layer"


def test_the_gate_in_half_precision_is_twice_the_error_of_eager():
    eager = {"output": 1e-3}
    assert run.allowed(torch.bfloat16, "cpu", eager) == {"output": 2e-3}
    assert run.disagreement({"output": 1.9e-3}, {"output": 2e-3}) is None
    assert "output" in run.disagreement({"output": 2.1e-3}, {"output": 2e-3})


def test_ratios_and_goals():
    def row(name: str, ms: float, goal: float | None = None) -> Row:
        return Row(
            "f",
            "c",
            "g",
            "float32",
            name,
            "NCHW",
            "",
            "timed",
            ms=ms,
            goal=goal,
            goal_eager=5.0 if goal else None,
        )

    rows = [
        row("eager", 12.0),
        row("engine", 4.0),
        row("fastdl", 2.0, goal=2.0),
        row("fastdl", 2.5, goal=1.5),
    ]
    run.add_ratios(rows)
    judge(rows)
    assert [r.over_eager for r in rows] == [1.0, 3.0, 6.0, 4.8]
    assert [r.over_best for r in rows] == [4.0 / 12.0, 1.0, 2.0, 1.6]
    assert [r.goal_met for r in rows] == ["", "", "yes", "no"]
    assert rows[2].best_rival == "engine NCHW"


@pytest.mark.parametrize(("ms", "met"), [(1.0, "yes"), (1.5, "no")])
def test_16_bits_are_judged_by_our_own_float32(ms, met):
    def row(group: str, provider: str, ms: float, goal: float | None = None) -> Row:
        return Row("f", "c", group, "", provider, "TBI", "", "timed", ms=ms, goal_float32=goal)

    ours = row("bf16 inference", "fastdl", ms, 1.4)
    judge(
        [
            row("inference", "eager", 9.0),
            row("inference", "fastdl", 2.0),
            row("training", "fastdl", 8.0),
            ours,
        ]
    )
    assert ours.over_float32 == 2.0 / ms
    assert ours.goal_met == met


def test_csv_and_json(tmp_path):
    rows = list(measured(eager=TRUTH.float(), fastdl=TRUTH.float()).values())
    report.write(rows, {"float32": 100.0}, tmp_path / "made")
    with open(tmp_path / "made.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == [field.name for field in fields(Row)]
    assert len(written) == 2
    for name in ("machine", "device", "cores", "threads", "isa", "torch", "torch_isa", "commit", "date"):
        assert all(row[name] for row in written), name
    assert report.read(tmp_path / "made.json") == (rows, {"float32": 100.0})
    assert report.read_csv(tmp_path / "made.csv") == rows


def test_a_table_measured_in_pieces(tmp_path):
    def rows(*names: str, ms: float) -> list[Row]:
        return [Row("f", name, "g", "float32", "fastdl", "NCHW", "", "timed", ms=ms) for name in names]

    stem, order = tmp_path / "f-here", ["g/a", "g/b", "g/c"]
    assert report.merged(stem, rows("c", ms=1.0), order) == rows("c", ms=1.0)
    report.write(rows("c", "b", "gone", ms=1.0), {}, stem, plot=False)
    assert report.merged(stem, rows("a", "b", ms=2.0), order) == rows("a", "b", ms=2.0) + rows("c", ms=1.0)


def test_performance_page_shows_losses(tmp_path):
    slow = Row(
        "f", "c", "g", "float32", "fastdl", "NCHW", "cpu direct", "timed", ms=2.0, goal=2.0, error=1e-7,
        limit_fraction=0.4,
    )  # fmt: skip
    fast = Row("f", "c", "g", "float32", "eager", "NCHW", "", "timed", ms=1.0, error=1e-7)
    absent = Row("f", "c", "g", "float32", "engine", "NCHW", "", "not installed: engine")
    run.add_ratios([slow, fast])
    judge([slow, fast])
    report.write([slow, fast, absent], {"float32": 100.0, "copy": 1.0}, tmp_path / "f-here", plot=False)
    report.write([slow, fast], {}, tmp_path / "grid-f-here", plot=False)
    (tmp_path / "grid-f-here.json").unlink()
    tables = tmp_path / "readme.md"
    tables.write_text("before\n<!-- results: f-here -->\nold\n<!-- end of results -->\nafter\n")
    arguments = ["--results", tmp_path, "--out", tmp_path / "page.md", "--readme", tables]
    assert write_performance([*map(str, arguments)]) == 0
    page = (tmp_path / "page.md").read_text()
    assert "- slower than eager NCHW: g c NCHW, 0.50x" in page
    assert "- goal missed: g c NCHW, 0.50x best, 0.50x eager, 0.40 of peak" in page
    assert "(goal 2x best; the peak would give 1.25x best)" in page
    assert "- engine NCHW, g: c: not installed: engine" in page
    assert "1 cases, 1 slower than eager by more than 5% or 3 us" in page
    before, *lines, end, after = tables.read_text().splitlines()
    assert (before, end, after) == ("before", "<!-- end of results -->", "after")
    assert "| g c | 2.00 | 1.00 | 1.00 (eager NCHW) | 0.50 | 0.50 |" in lines
    assert lines[-1] == "Slower than the best rival: g c NCHW."


@pytest.mark.parametrize(
    ("refused", "line"),
    [
        (["fastdl NHWC"], "| g c | 2.00 / wrong | 1.00 | 1.00 (eager NCHW) | 0.50 / - | 0.50 / - |"),
        (["fastdl NCHW"], "| g c | wrong / 2.00 | 1.00 | 1.00 (eager NCHW) | - / 0.50 | - / 0.50 |"),
        (["fastdl NCHW", "fastdl NHWC"], "| g c | wrong / wrong |  |  |  |  |"),
        (["eager NCHW", "engine NCHW"], "| g c | 2.00 / 2.00 | - | - (none) | - / - | - / - |"),
    ],
    ids=str,
)
def test_the_readme_shows_what_was_refused(tmp_path, refused, line):
    times = {"fastdl NCHW": 2.0, "fastdl NHWC": 2.0, "eager NCHW": 1.0, "engine NCHW": 4.0}
    rows = [
        Row("f", "c", "g", "float32", *name.split(), "", "wrong" if name in refused else "timed",
            ms=None if name in refused else ms)
        for name, ms in times.items()
    ]  # fmt: skip
    run.add_ratios([row for row in rows if row.ms is not None])
    report.write(rows, {}, tmp_path / "f-here", plot=False)
    text = "<!-- results: f-here -->\n<!-- end of results -->\n"
    assert line in readme.filled(text, tmp_path).splitlines()


def test_the_readme_shows_what_the_what_the_results_give():
    """Else: python -m benchmarks.performance."""
    text = (run.ROOT / "README.md").read_text()
    assert text.count("<!-- results: ") == len(readme.BLOCK.findall(text)) > 0
    assert readme.filled(text, run.ROOT / "benchmarks/results") == text


def test_grid_rule():
    def row(ms: float) -> Row:
        return Row("f", "c", "g", "float32", "eager", "NCHW", "", "timed", ms=ms)

    assert not grid.slower_than_allowed(row(1.049), row(1.0))
    assert grid.slower_than_allowed(row(1.051), row(1.0))
    assert not grid.slower_than_allowed(row(0.0129), row(0.01))
    assert grid.slower_than_allowed(row(0.0131), row(0.01))


def test_grid_covers():
    samples = [case.sample for case in conv_grid.cases(("inference",))]
    assert len({case.name for case in conv_grid.cases(("inference",))}) == len(samples) >= 60
    assert {s.K[0] for s in samples if s.K[0] == s.K[1]} == {1, 2, 3, 4, 5, 6, 7}
    assert {s.N for s in samples} >= {1, 256}
    assert {s.channels_last for s in samples} == {False, True}
    for name in ("stride", "groups", "dilation", "ceil_mode", "pool_dilation", "pool_padding"):
        assert any(name in s.kwargs for s in samples), name
    goals = {(c.sample.N, c.sample.C, c.sample.H, c.sample.C_out) for c in conv.cases("cpu")}
    assert not goals & {(s.N, s.C, s.H, s.C_out) for s in samples}


@pytest.mark.long
def test_quick_run_of_the_goal_table(tmp_path, capsys):
    arguments = ["conv_relu_maxpool", "--quick", "--providers", "fastdl", "--out", str(tmp_path), "--exact"]
    assert run.main([*arguments, "--cases", "inference/1x32x48x48-to64-pool2"]) == 0
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [(row["provider"], row["layout"]) for row in rows] == [
        ("eager", "NCHW"), ("eager", "NHWC"), ("fastdl", "NCHW"), ("fastdl", "NHWC"),
    ]  # fmt: skip
    assert all(row["status"] == "timed" for row in rows)
    assert "1x32x48x48-to64-pool2" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.skipif(not machine.has_avx2(), reason="the CPU has no AVX2")
def test_limited_cases_run_in_their_own_process(tmp_path):
    arguments = ["conv_relu_maxpool", "--quick", "--providers", "fastdl", "--out", str(tmp_path), "--exact"]
    assert run.main([*arguments, "--cases", "AVX2 inference/1x32x48x48-to64-pool2"]) == 0
    rows, _ = report.read(next(tmp_path.glob("*.json")))
    assert {row.torch_isa for row in rows} == {"AVX2"}
    assert {row.isa for row in rows} <= {"avx2", "no CPU kernels"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_cases_have_names_of_their_own(device):
    for module in run.FAMILIES.values():
        cases = importlib.import_module(module).cases(device)
        assert len({(case.group, case.name) for case in cases}) == len(cases) > 0
        assert all(case.flops > 0 for case in cases)


def test_unknown_family_and_no_case(capsys):
    with pytest.raises(SystemExit):
        run.parse(["nonsense"])
    assert run.main(["conv_relu_maxpool", "--cases", "nonsense"]) == 2
    assert "no case matches" in capsys.readouterr().err
