"""Steps make no table and copy nothing between host and device: set_timesteps did. The device here is "meta"."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastdl
from fastdl.ops.diffusion import Table
from tests.diffusion.trajectories import NAMES

CASES = [
    *((name, {}, {}) for name in NAMES),
    ("DDPM", dict(variance_type="learned_range"), {}),
    ("DDPM", dict(variance_type="learned"), {}),
    ("DDIM", {}, dict(eta=0.5)),
    ("EulerDiscrete", {}, dict(s_churn=1.0)),
    ("FlowMatchEulerDiscrete", dict(stochastic_sampling=True), {}),
    ("DPMSolverMultistep", dict(algorithm_type="sde-dpmsolver++"), {}),
]


class NoCopies(TorchDispatchMode):
    """Refuses every copy from one device to another, and every read of a device's value."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        if name == "_to_copy":
            assert kwargs.get("device") in (None, args[0].device), f"a copy to {kwargs['device']}"
        if name in ("copy_", "_local_scalar_dense"):
            assert all(t.device == args[0].device for t in args if isinstance(t, Tensor))
            assert name == "copy_" or args[0].device.type == "cpu", "a read of the device's value"
        return function(*args, **kwargs)


def everything(scheduler: object, x: Tensor, t: Tensor, **keywords: object) -> None:
    """Whatever a sampling or training loop calls."""
    output = scheduler.scale_model_input(x, t)
    if scheduler.config.get("variance_type") in ("learned", "learned_range"):
        output = torch.cat((output, output), 1)
    scheduler.step(output, t, x, **keywords)
    at = scheduler.timesteps[:2].to(x.device)
    scheduler.add_noise(x, torch.zeros_like(x), at)
    scheduler.add_noise(x, None, at)
    if hasattr(scheduler, "get_velocity"):
        scheduler.get_velocity(x, x, at)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join([c[0], *map(str, {**c[1], **c[2]}.values())]))
def test_a_second_step(case, device):
    name, config, keywords = case
    scheduler = getattr(fastdl.diffusion, f"{name}Scheduler")(**config)
    scheduler.set_timesteps(4, device=device)
    x = torch.zeros(2, 3, 4, 4, device=device)
    everything(scheduler, x, scheduler.timesteps[0], **keywords)
    with NoCopies(), mock.patch.object(Table, "__init__", side_effect=AssertionError("a table was made")):
        everything(scheduler, x, scheduler.timesteps[1], **keywords)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_step(name):
    scheduler = getattr(fastdl.diffusion, f"{name}Scheduler")()
    scheduler.set_timesteps(4, device="meta")
    x, t = torch.zeros(2, 3, 4, 4, device="meta"), scheduler.timesteps[0]
    with NoCopies(), mock.patch.object(Table, "__init__", side_effect=AssertionError("a table was made")):
        scheduler.step(scheduler.scale_model_input(x, t), t, x)


@pytest.mark.parametrize("name", NAMES)
def test_timesteps_on_the_host_for_a_sample_on_the_device(name):
    scheduler = getattr(fastdl.diffusion, f"{name}Scheduler")()
    scheduler.set_timesteps(4)
    x = torch.zeros(2, 3, 4, 4, device="meta")
    for t in scheduler.timesteps[:2]:
        scheduler.step(scheduler.scale_model_input(x, t), t, x)
    with NoCopies():
        for t in scheduler.timesteps[2:]:
            scheduler.step(scheduler.scale_model_input(x, t), t, x)


def test_the_guard_sees_a_copy_and_a_table():
    with NoCopies(), pytest.raises(AssertionError, match="a copy to meta"):
        torch.zeros(1).to("meta")
    with mock.patch.object(Table, "__init__", side_effect=AssertionError("a table was made")):
        pytest.raises(AssertionError, Table, 1)


class Event:
    """A stand-in for torch.cuda.Event: done when told so."""

    def __init__(self) -> None:
        self.done, self.waited_for_by = False, []

    def query(self) -> bool:
        return self.done

    def wait(self, stream: object) -> None:
        self.waited_for_by.append(stream)


def test_another_stream_waits_for_the_copy_until_it_is_there():
    table, device, event = Table(2, SAMPLE=1.0), torch.device("cuda", 0), Event()
    stream, capturing = mock.Mock(), mock.Mock(return_value=False)
    stream.record_event.return_value = event
    with (
        mock.patch("fastdl.ops.diffusion.copies.sent", side_effect=lambda values, _: values.clone()) as sent,
        mock.patch("torch.cuda.current_stream", return_value=stream),
        mock.patch("torch.cuda.is_current_stream_capturing", capturing),
    ):
        first = table.on(device)
        assert table.on(device) is first
        assert event.waited_for_by == [stream]
        capturing.return_value = True  # torch has synchronised, and a capture cannot ask
        assert table.on(device) is first
        capturing.return_value, event.done = False, True
        for _ in range(2):
            assert table.on(device) is first
    assert event.waited_for_by == [stream]
    assert sent.call_count == stream.record_event.call_count == 1


def test_a_capture_refuses_a_copy_from_the_host():
    with (
        mock.patch("torch.cuda.is_current_stream_capturing", return_value=True),
        pytest.raises(RuntimeError, match="once before capture"),
    ):
        Table(2, SAMPLE=1.0).on(torch.device("cuda", 0))
