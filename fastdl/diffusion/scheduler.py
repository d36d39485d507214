"""What every scheduler has: a configuration, timesteps, and the way from a timestep to a row of its tables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..ops.diffusion import Table
from ..ops.diffusion.checks import random_seed
from ..ops.diffusion.copies import OnDevices, sent
from ..ops.diffusion.op import apply
from ..ops.diffusion.reference import Options
from . import config as configuration
from .config import Config

_T = TypeVar("_T", Table, tuple)
_known: dict[str, set[str]] = {}


class SchedulerOutput(NamedTuple):
    """What `step` returns; unpacks like diffusers' tuple."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class Scheduler:
    """Base class. `DEFAULTS` are the configuration's keys in the order of diffusers' constructor."""

    DEFAULTS: ClassVar[dict[str, object]] = {}
    order = 1

    def __init_subclass__(cls) -> None:
        _known[cls.__name__] = set(cls.DEFAULTS)

    def __init__(self, *args: object, **kwargs: object) -> None:
        if len(args) > len(self.DEFAULTS):
            raise TypeError(f"{type(self).__name__} takes at most {len(self.DEFAULTS)} positional arguments")
        given = dict(zip(self.DEFAULTS, args, strict=False))
        for key, value in kwargs.items():
            if key not in self.DEFAULTS:
                raise TypeError(f"{type(self).__name__} has no configuration key {key!r}; see from_config")
            if key in given:
                raise TypeError(f"{key} is given twice")
            given[key] = value
        self._configure({**self.DEFAULTS, **given})

    @classmethod
    def from_config(cls, config: object, **changes: object) -> Scheduler:
        """A scheduler with the configuration of a dict, or of another scheduler, fastdl's or diffusers'.

        Keys of other schedulers are kept; keys nobody knows are kept and warned about. `changes` replace keys.
        """
        merged = {**configuration.as_mapping(config), **changes}
        everyones = set().union(*_known.values())
        unknown = [key for key in merged if key not in everyones and not key.startswith("_")]
        configuration.warn_unknown(cls.__name__, unknown)
        scheduler = cls.__new__(cls)
        own = {key: value for key, value in merged.items() if not key.startswith("_")}
        scheduler._configure({**cls.DEFAULTS, **own})
        return scheduler

    def _configure(self, values: dict[str, object]) -> None:
        self.config = Config(values)
        checked = Config({key: self.config[key] for key in self.DEFAULTS})
        configuration.check(type(self).__name__, checked)
        self.num_inference_steps: int | None = None
        self._tables: dict[Hashable, object] = {}
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._build()

    def _build(self) -> None:
        """What depends on the configuration alone."""
        raise NotImplementedError

    def _alpha_bar(self, least: float = 0.0) -> Tensor:
        """alpha_bar of the training timesteps, fp64, its zero replaced by `least`; `betas` and `alphas_cumprod`."""
        betas = configuration.betas_of(type(self).__name__, self.config)
        alpha_bar = (1 - betas).cumprod(0)
        if self.config.rescale_betas_zero_snr:
            alpha_bar[-1] = least
        self.betas, self.alphas_cumprod = betas.float(), alpha_bar.float()
        return alpha_bar

    def save_config(self, save_directory: str | os.PathLike) -> None:
        """Writes scheduler_config.json, which diffusers' `from_pretrained` of any compatible scheduler reads."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / "scheduler_config.json.unfinished"
        unfinished.write_text(
            json.dumps({"_class_name": type(self).__name__, **self.config}, indent=2) + "\n"
        )
        unfinished.replace(folder / "scheduler_config.json")

    save_pretrained = save_config

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.config.items())})"

    @property
    def step_index(self) -> int | None:
        """The next step's place in `timesteps`; None before the first, or where only the device knows it."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Where the first step starts, if `set_begin_index` said so."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The first step's place in `timesteps`, for pipelines that start in the middle."""
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: object = None) -> Tensor:
        """The sample as the model wants it: unchanged here."""
        return sample

    def _start(self, timesteps: Tensor, steps: int, device: object = None) -> None:
        self._device = torch.device("cpu") if device is None else torch.empty(0, device=device).device
        self._at = OnDevices(timesteps)
        self.timesteps, self._count = self._at.on(self._device), len(timesteps)
        self.num_inference_steps = steps
        self._tables.clear()
        self._step_index = self._begin_index = None

    def _needs_timesteps(self) -> None:
        if self.num_inference_steps is None:
            raise ValueError(f"{type(self).__name__}: call set_timesteps first")

    def _table(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """What `make` gives, a table or a tuple of tables: made once, and sent to the device of `set_timesteps`."""
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = make()
            for table in (found,) if isinstance(found, Table) else found:
                table.on(self._device)
        return found


class IndexedScheduler(Scheduler):
    """Tables have a row for each step of the schedule, which moves on with every call of `step`.

    A number, or an element of `timesteps` itself, is found on the host; any other tensor is looked up on its device.
    """

    def _row(self, timestep: object) -> int | Tensor:
        if isinstance(timestep, Tensor) and timestep.dim() > 0 and timestep.numel() != 1:
            return self._rows_on_device(timestep)
        if self._step_index is None:
            self._step_index = self._begin_index if self._begin_index is not None else self._place(timestep)
        if self._step_index is None:
            return self._rows_on_device(timestep)
        if self._step_index >= self._count:  # len(tensor) takes as long as the step of a small latent
            raise IndexError(f"all {self._count} steps are done: call set_timesteps again")
        return self._step_index

    def _place(self, timestep: object) -> int | None:
        if isinstance(timestep, Tensor):
            if torch.compiler.is_compiling() or timestep.dtype != self.timesteps.dtype:
                return None
            place, rest = divmod(timestep.data_ptr() - self.timesteps.data_ptr(), timestep.element_size())
            return place if rest == 0 and 0 <= place < len(self.timesteps) else None
        if timestep not in self._listed:
            raise IndexError(f"timestep {timestep} is not in timesteps: pass one of scheduler.timesteps")
        return self._listed[timestep]

    def _rows_on_device(self, timesteps: Tensor) -> Tensor:
        equal = timesteps[..., None] == self._at.on(timesteps.device)
        return torch.where(equal.any(-1), equal.to(torch.int8).argmax(-1), -1)

    def _rows_of_noise(self, timesteps: object) -> int | Tensor:
        if self._begin_index is not None:
            return self._begin_index if self._step_index is None else self._step_index
        if isinstance(timesteps, Tensor):
            return self._rows_on_device(timesteps)
        return self._place(timesteps)

    def _start(self, timesteps: Tensor, steps: int, device: object = None) -> None:
        super()._start(timesteps, steps, device)
        # like diffusers, the second of two equal ones: started in the middle, no step is skipped
        self._listed: dict[float, int] = {}
        seen: set[float] = set()
        for place, t in enumerate(timesteps.tolist()):
            if t not in self._listed or t not in seen:
                if t in self._listed:
                    seen.add(t)
                self._listed[t] = place

    def _advance(self) -> None:
        if self._step_index is not None:
            self._step_index += 1


def run_step(
    model_output: Tensor,
    row: int | Tensor,
    sample: Tensor,
    table: Table,
    options: Options,
    *,
    history: Tensor | None = None,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
    generator: object = None,
) -> tuple[Tensor, Tensor]:
    """(prev_sample, x_0) by the fused step; different dtypes meet in the wider one."""
    if model_output.dtype is not sample.dtype:
        wider = torch.promote_types(model_output.dtype, sample.dtype)
        model_output, sample = model_output.to(wider), sample.to(wider)
    if not table.has_noise:
        noise = None
    elif noise is not None:
        if generator is not None:
            raise ValueError("pass a generator or a variance_noise, not both")
        noise = noise.to(sample.dtype)
    elif isinstance(generator, list | tuple):
        noise = each_with_its_generator(sample, generator)
    elif seed is None:
        seed = random_seed(sample, generator)
    result, x_0, _ = apply(sample, model_output, history, noise, seed, row, table, options)
    return result, x_0


def each_with_its_generator(sample: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Noise whose i-th sample comes from the i-th generator, as torch draws it."""
    if len(generators) != sample.shape[0]:
        raise ValueError(f"{len(generators)} generators for a batch of {sample.shape[0]}")
    drawn = [
        torch.randn(sample.shape[1:], generator=g, device=g.device, dtype=sample.dtype) for g in generators
    ]
    return torch.stack([n if n.device == sample.device else sent(n, sample.device) for n in drawn])
