"""One provider's result in one case: what every table, file and plot of the benchmarks is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Row:
    """One provider in one case; the names are the CSV's columns. Ratios above 1 mean faster than."""

    family: str
    case: str
    group: str
    dtype: str
    provider: str
    layout: str
    algorithm: str
    status: str
    ms: float | None = None
    ms_p20: float | None = None
    ms_p80: float | None = None
    rounds: int | None = None
    over_eager: float | None = None
    over_best: float | None = None
    best_rival: str = ""
    goal: float | None = None
    goal_eager: float | None = None
    # of 16 bits against fastdl's own float32
    over_float32: float | None = None
    goal_float32: float | None = None
    goal_fraction: float | None = None
    goal_met: str = ""
    # flops of the direct computation over the time: Winograd, which does fewer, can exceed the limit
    gflops: float | None = None
    limit_gflops: float | None = None
    limit_fraction: float | None = None
    # bytes a case has to move over the time, and that over the copy bandwidth of the machine
    gbytes: float | None = None
    copy_fraction: float | None = None
    # relative L2 against fp64, the worst of outputs and gradients
    error: float | None = None
    # bytes kept for backward per element of an op's output, per sample of a model
    saved_bytes: float | None = None
    # added to the resident process at the peak of one call
    peak_mib: float | None = None
    machine: str = ""
    device: str = ""
    cores: str = ""
    threads: str = ""
    isa: str = ""
    torch: str = ""
    torch_isa: str = ""
    commit: str = ""
    date: str = ""
    load: str = ""

    @property
    def ours(self) -> bool:
        return self.provider.split()[0] == "fastdl"
