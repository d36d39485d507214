"""diffusion: the goal table as cases: steps and noise on an image batch, and whole `step` calls on one latent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fastdl
from benchmarks.providers import Case, Prepared, Provider, Workload, compiled
from fastdl.ops.diffusion import Schedule, schedules, schema, steps
from fastdl.ops.diffusion.op import apply, make_options

IMAGES, LATENT = (64, 3, 64, 64), (1, 4, 64, 64)
T, STRIDE = 500, 20
SCHEDULERS = (
    "DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "FlowMatchEulerDiscrete", "DPMSolverMultistep",
)  # fmt: skip
# Their noise cannot be compared: their last step, which has none, is.
RANDOM = ("DDPM", "EulerAncestralDiscrete")
STEPS = 50
# Which tensors an op reads and writes, in units of the sample.
PASSES = {"ddim": 4, "cfg_ddim": 4, "ddpm": 4, "add_noise": 3, "ddpm_made_noise": 3}


def cases(device: str) -> list[Case]:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        word = str(dtype)[6:]
        for op, passes in PASSES.items():
            made = op == "ddpm_made_noise"
            count = torch.Size(IMAGES).numel()
            found.append(
                StepCase(
                    f"{op} {'x'.join(map(str, IMAGES))}", word, dtype, 8.0 * count,
                    goal=None if made else 1.15, goal_eager=4.0 if made else 3.0,
                    bytes=passes * count * dtype.itemsize, op=op,
                )
            )  # fmt: skip
    for scheduler in SCHEDULERS:
        found.append(
            LatentCase(
                f"{scheduler}.step 1x4x64x64",
                "latent",
                torch.float32,
                1.0,
                goal_eager=3.0,
                scheduler=scheduler,
            )
        )
    return found


@dataclass(frozen=True)
class StepCase(Case):
    """One op on an image batch; "eager" are diffusers' formulas with coefficients in fp32."""

    op: str = ""

    def workload(self, device: str) -> Workload:
        generator = torch.Generator().manual_seed(0)

        def draw(n: int = 1) -> Tensor:
            shape = (n * IMAGES[0], *IMAGES[1:])
            return torch.randn(shape, generator=generator).to(device, self.dtype)

        tensors = dict(x=draw(), m=draw(2 if self.op == "cfg_ddim" else 1), n=draw())
        t = torch.randint(0, 1000, IMAGES[:1], generator=generator).to(device)
        wide = {name: tensor.double() for name, tensor in tensors.items()}
        truth = {"output": eager(self.op, **wide, t=t)}
        options = make_options(schema.WANT_PREV, 7.5 if self.op == "cfg_ddim" else None, clip=1.0)

        def ours(x: Tensor, m: Tensor, n: Tensor | None, t: Tensor) -> Tensor:
            if self.op == "add_noise":
                return fastdl.ops.add_noise(x, t, SCHEDULE, noise=n)
            seed = torch.tensor([1, 2], device=device) if n is None else None
            n = n if TABLES[self.op].has_noise else None
            return apply(x, m, None, n, seed, T, TABLES[self.op], options)[0]

        def prepared(function: Callable[..., Tensor]) -> Prepared:
            made = {**tensors, "n": None} if self.op == "ddpm_made_noise" else tensors

            def call() -> Tensor:
                with torch.no_grad():
                    return function(**made, t=t)

            # random noise cannot be compared: the same function with noise given is
            return Prepared(call, lambda: {"output": function(**tensors, t=t)})

        def plain(**arguments: Tensor) -> Tensor:
            return eager(self.op, **arguments)

        providers = (
            Provider("eager", "NCHW", lambda: prepared(plain)),
            Provider("torch.compile", "NCHW", lambda: prepared(compiled(plain))),
            Provider("fastdl", "NCHW", lambda: prepared(ours)),
        )
        return Workload(truth, providers)


SCHEDULE = Schedule.from_betas(schedules.betas("linear", 1000))
_PREVIOUS = torch.arange(1000) - STRIDE
TABLES = {
    "ddim": steps.ddim(SCHEDULE, _PREVIOUS, "epsilon", eta=1.0),
    "cfg_ddim": steps.ddim(SCHEDULE, _PREVIOUS, "epsilon"),
    "ddpm": steps.ddpm(SCHEDULE, _PREVIOUS, "epsilon"),
    "ddpm_made_noise": steps.ddpm(SCHEDULE, _PREVIOUS, "epsilon"),
}
_ALPHA, _SIGMA = SCHEDULE.alpha.float(), SCHEDULE.sigma.float()


def eager(op: str, x: Tensor, m: Tensor, n: Tensor | None, t: Tensor) -> Tensor:
    """The op as diffusers writes it."""
    if n is None:
        n = torch.randn_like(x)
    if op == "add_noise":
        alpha, sigma = (v.to(x.device)[t].to(x.dtype).reshape(-1, 1, 1, 1) for v in (_ALPHA, _SIGMA))
        return alpha * x + sigma * n
    bar, before = SCHEDULE.alpha_bar[T].item(), SCHEDULE.alpha_bar[T - STRIDE].item()
    if op == "cfg_ddim":
        u, c = m.chunk(2)
        m = u + 7.5 * (c - u)
    x_0 = ((x - (1 - bar) ** 0.5 * m) / bar**0.5).clamp(-1, 1)
    beta = 1 - bar / before
    std = ((1 - before) / (1 - bar) * beta) ** 0.5
    if op.startswith("ddpm"):
        mean = before**0.5 * beta / (1 - bar) * x_0 + (1 - beta) ** 0.5 * (1 - before) / (1 - bar) * x
        return mean + std * n
    if op == "cfg_ddim":
        return before**0.5 * x_0 + (1 - before) ** 0.5 * m
    return before**0.5 * x_0 + (1 - before - std**2) ** 0.5 * m + std * n


@dataclass(frozen=True)
class LatentCase(Case):
    """The second `step` of a scheduler on one latent, as a pipeline calls it: overhead decides. Eager is diffusers."""

    scheduler: str = ""

    def workload(self, device: str) -> Workload:
        generator = torch.Generator().manual_seed(0)
        x, m = torch.randn(2, *LATENT, generator=generator).to(device, self.dtype)
        compared = STEPS - 1 if self.scheduler in RANDOM else 1

        def prepare(module: object) -> Prepared:
            scheduler = getattr(module, f"{self.scheduler}Scheduler")()
            scheduler.set_timesteps(STEPS, device=device)

            def step(index: int, t: Tensor) -> Tensor:
                if hasattr(scheduler, "_step_index"):
                    scheduler._step_index = index
                return scheduler.step(m, t, x, return_dict=False)[0]

            t, at = scheduler.timesteps[1], scheduler.timesteps[compared]
            if self.scheduler.startswith("Euler"):
                scheduler.scale_model_input(x, t)  # or every step warns
            return Prepared(lambda: step(1, t), lambda: {"output": step(compared, at)})

        scheduler = getattr(fastdl.diffusion, f"{self.scheduler}Scheduler")()
        scheduler.set_timesteps(STEPS)
        scheduler.set_begin_index(compared)
        with fastdl.backend("reference"):
            wide = scheduler.step(m.double().cpu(), scheduler.timesteps[compared], x.double().cpu())[0]

        def theirs() -> Prepared:
            import diffusers

            return prepare(diffusers)

        providers = (
            Provider("eager", "diffusers", theirs),
            Provider("fastdl", "NCHW", lambda: prepare(fastdl.diffusion)),
        )
        return Workload({"output": wide}, providers)
