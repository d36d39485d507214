"""Shapes and options of diffusion outside the goal table; benchmarks/grid.py says how they are judged.

python -m benchmarks.ops.grid_diffusion [--mode inference|training|both] [--cases TEXT] [--out DIR]

Eager are, for the ops, diffusers' formulas with fp32 coefficients, a timestep for each sample; for a scheduler's
`step`, diffusers' own, guidance before it as pipelines have it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import fastdl
from benchmarks.grid import AGAIN, run_grid
from benchmarks.ops.bench_diffusion import RANDOM, SCHEDULE, SCHEDULERS, STEPS
from benchmarks.providers import Case, Prepared, Provider, Workload

SHAPES = ((1, 4, 8, 8), (1, 3, 32, 32), (1, 4, 64, 64), (7, 3, 33, 17), (16, 3, 32, 32), (2, 16, 128, 128))
SHAPES += ((256, 1, 28, 28), (8, 3, 128, 128))
LATENTS = ((1, 4, 8, 8), (1, 4, 64, 64), (3, 5, 17, 9), (8, 4, 64, 64), (4, 3, 256, 256))
GUIDED = (("DDIM", 0.0), ("DDIM", 0.7), ("EulerDiscrete", 0.0), ("DPMSolverMultistep", 0.0))
_ALPHA, _SIGMA = SCHEDULE.alpha.float(), SCHEDULE.sigma.float()


def _levels(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = (v.to(x.device)[t].to(x.dtype).reshape(-1, 1, 1, 1) for v in (_ALPHA, _SIGMA))
    return alpha, sigma


def _add_noise(x: Tensor, n: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = _levels(x, t)
    return alpha * x + sigma * n


def _velocity(x: Tensor, n: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = _levels(x, t)
    return alpha * n - sigma * x


def _predict_x0(x: Tensor, n: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = _levels(x, t)
    return (x - sigma * n) / alpha


def _training_target(x: Tensor, n: Tensor, t: Tensor) -> Tensor:
    return torch.stack((_add_noise(x, n, t), _velocity(x, n, t)))


def _fused_training_target(x: Tensor, n: Tensor, t: Tensor) -> Tensor:
    return torch.stack(
        fastdl.ops.training_target(x, t, SCHEDULE, prediction_type="v_prediction", noise=n)[:2]
    )


# Eager, and the op.
OPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "add_noise": (_add_noise, lambda x, n, t: fastdl.ops.add_noise(x, t, SCHEDULE, noise=n)),
    "velocity": (_velocity, lambda x, n, t: fastdl.ops.velocity(x, n, t, SCHEDULE)),
    "predict_x0": (_predict_x0, lambda x, n, t: fastdl.ops.predict_x0(x, n, t, SCHEDULE)),
    "training_target": (_training_target, _fused_training_target),
}


@dataclass(frozen=True)
class OpCase(Case):
    """One op; with training also its gradients."""

    op: str = ""
    shape: tuple[int, ...] = ()

    def workload(self, device: str) -> Workload:
        generator = torch.Generator().manual_seed(0)
        x, n, g = torch.randn(3, *self.shape, generator=generator).to(device, self.dtype)
        if self.op == "training_target":
            g = torch.stack((g, g))
        t = torch.randint(0, 600, self.shape[:1], generator=generator).to(device)
        training = self.group == "training"

        def outputs(function: Callable[..., Tensor], x: Tensor, n: Tensor, g: Tensor) -> dict[str, Tensor]:
            if not training:
                with torch.no_grad():
                    return {"output": function(x, n, t)}
            x, n = x.detach().requires_grad_(), n.detach().requires_grad_()
            result = function(x, n, t)
            grad_x, grad_n = torch.autograd.grad(result, (x, n), g)
            return {"output": result, "grad_x": grad_x, "grad_noise": grad_n}

        def prepare(function: Callable[..., Tensor]) -> Prepared:
            return Prepared(lambda: outputs(function, x, n, g), lambda: outputs(function, x, n, g))

        eager, ours = OPS[self.op]
        truth = outputs(eager, *(v.double() for v in (x, n, g)))
        return Workload({k: v.detach() for k, v in truth.items()}, _providers(prepare, eager, ours, "NCHW"))


@dataclass(frozen=True)
class StepCase(Case):
    """The second `step` of a scheduler, `guidance_rescale` None without guidance."""

    scheduler: str = ""
    shape: tuple[int, ...] = ()
    guidance_rescale: float | None = None
    thresholding: bool = False

    def workload(self, device: str) -> Workload:
        import diffusers

        generator = torch.Generator().manual_seed(0)
        x, u, c = torch.randn(3, *self.shape, generator=generator).to(device, self.dtype)
        guided = self.guidance_rescale is not None
        m = torch.cat((u, c)) if guided else u
        config = {"thresholding": True} if self.thresholding else {}
        compared = STEPS - 1 if self.scheduler in RANDOM else 1
        keywords = dict(guidance_scale=7.5, guidance_rescale=self.guidance_rescale) if guided else {}

        def prepare(module: object) -> Prepared:
            scheduler = getattr(module, f"{self.scheduler}Scheduler")(**config)
            scheduler.set_timesteps(STEPS, device=device)

            def step(index: int, t: Tensor) -> Tensor:
                if hasattr(scheduler, "_step_index"):
                    scheduler._step_index = index
                if module is fastdl.diffusion:
                    return scheduler.step(m, t, x, return_dict=False, **keywords)[0]
                found = guidance(m, self.guidance_rescale) if guided else m
                return scheduler.step(found, t, x, return_dict=False)[0]

            t, at = scheduler.timesteps[1], scheduler.timesteps[compared]
            if self.scheduler.startswith("Euler"):
                scheduler.scale_model_input(x, t)  # or every step warns
            return Prepared(lambda: step(1, t), lambda: {"output": step(compared, at)})

        scheduler = getattr(fastdl.diffusion, f"{self.scheduler}Scheduler")(**config)
        scheduler.set_timesteps(STEPS)
        scheduler.set_begin_index(compared)
        with fastdl.backend("reference"):
            t = scheduler.timesteps[compared]
            wide = scheduler.step(m.double().cpu(), t, x.double().cpu(), **keywords)[0]
        return Workload({"output": wide}, _providers(prepare, diffusers, fastdl.diffusion, "diffusers"))


def guidance(m: Tensor, rescale: float) -> Tensor:
    """Classifier-free guidance as diffusers' pipelines write it."""
    u, c = m.chunk(2)
    m = u + 7.5 * (c - u)
    if rescale == 0:
        return m
    dims = tuple(range(1, m.dim()))
    rescaled = m * (c.std(dims, keepdim=True) / m.std(dims, keepdim=True))
    return rescale * rescaled + (1 - rescale) * m


def _providers(
    prepare: Callable[[object], Prepared], eager: object, ours: object, layout: str
) -> tuple[Provider, ...]:
    pairs = (("eager", eager), ("fastdl", ours), (AGAIN, eager))
    return tuple(Provider(name, layout, lambda f=f: prepare(f)) for name, f in pairs)


def cases(modes: Sequence[str]) -> list[Case]:
    found: list[Case] = []
    for mode in modes:
        for op in OPS:
            for shape in SHAPES:
                for dtype in (torch.float32, torch.bfloat16) if shape in SHAPES[::3] else (torch.float32,):
                    name = f"{op} {'x'.join(map(str, shape))} {str(dtype)[6:]}"
                    found.append(OpCase(name, mode, dtype, 1.0, op=op, shape=shape))
    if "inference" not in modes:
        return found
    for shape in LATENTS:
        word = "x".join(map(str, shape))
        for scheduler in SCHEDULERS:
            found.append(
                StepCase(f"{scheduler} {word}", "step", torch.float32, 1.0, scheduler=scheduler, shape=shape)
            )
        for scheduler, rescale in GUIDED:
            found.append(
                StepCase(
                    f"{scheduler} {word} guided rescale={rescale}", "step", torch.float32, 1.0,
                    scheduler=scheduler, shape=shape, guidance_rescale=rescale,
                )
            )  # fmt: skip
        for scheduler in ("DDIM", "DDPM"):
            found.append(
                StepCase(
                    f"{scheduler} {word} thresholding", "step", torch.float32, 1.0,
                    scheduler=scheduler, shape=shape, thresholding=True,
                )
            )  # fmt: skip
    return found


if __name__ == "__main__":
    sys.exit(run_grid("diffusion", cases))
