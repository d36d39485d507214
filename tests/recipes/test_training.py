"""The loop: a resumed run equals an uninterrupted one bit for bit; signals, damage and divergence."""

import copy
import io
import os
import signal
import threading

import pytest
import torch
from torch import nn

from fastdl.recipes import checkpoint, loop, random_state
from fastdl.recipes.console import Console
from fastdl.recipes.distributed import Group
from fastdl.recipes.interrupt import Interrupted, StopRequest
from fastdl.recipes.training import Task, Training

GROUP = Group(0, 1, torch.device("cpu"), None)
QUIET = Console(io.StringIO(), enabled=False)


class Regression(Task):
    """Learns y = 0 from drawn x; `scale` above 1e30 makes the loss infinite."""

    metrics = ("loss", "size")
    steps = 4
    scale = 1.0

    def batch(self, epoch, step):
        return torch.rand(8, 6, generator=random_state.generator(epoch, step)) * self.scale

    def loss(self, model, batch):
        squares = model(batch).square()
        sums = torch.stack([squares.detach().sum(), batch.sum(), torch.tensor(float(squares.numel()))])
        return squares.mean(), sums.double()


class StopAfter:
    """Asks to stop when the loop has asked `steps` times."""

    def __init__(self, steps):
        self.left = steps

    @property
    def signal_number(self):
        self.left -= 1
        return signal.SIGTERM if self.left < 0 else 0


def training(path, seed=0, task=None, **identity):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    return Training(model, optimizer, task or Regression(), GROUP, path, {"recipe": "test", **identity})


def without_times(history):
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "step_ms")} for row in history
    ]


def assert_same(a, b):
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[name]), name
    for x, y in zip(a.optimizer.state.values(), b.optimizer.state.values(), strict=True):
        assert all(torch.equal(x[name], y[name]) for name in x)
    assert a.losses == b.losses
    assert without_times(a.history) == without_times(b.history)


@pytest.mark.parametrize("stop_after", [0, 1, 3, 4, 6, 11])
def test_resume_equals_uninterrupted_bitwise(tmp_path, stop_after):
    whole = training(tmp_path / "whole.pt")
    loop.run(whole, 3, StopRequest(), QUIET)
    assert (whole.epoch, whole.step, len(whole.losses)) == (3, 0, 12)

    first = training(tmp_path / "c.pt")
    with pytest.raises(Interrupted) as stopped:
        loop.run(first, 3, StopAfter(stop_after), QUIET)
    assert stopped.value.signal_number == signal.SIGTERM
    second = training(tmp_path / "c.pt", seed=99)
    second.resume(tmp_path / "c.pt")
    assert 4 * second.epoch + second.step == stop_after
    loop.run(second, 3, StopRequest(), QUIET)
    assert_same(second, whole)


def test_dropout_makes_the_test_above_sharp(tmp_path):
    """Without the random state a resumed run differs."""
    first = training(tmp_path / "c.pt")
    with pytest.raises(Interrupted):
        loop.run(first, 2, StopAfter(3), QUIET)
    runs = []
    for forget in (False, True):
        again = training(tmp_path / "again.pt", seed=99)
        again.resume(tmp_path / "c.pt")
        if forget:
            torch.manual_seed(5)
        loop.run(again, 2, StopRequest(), QUIET)
        runs.append(again)
    assert runs[0].losses[:3] == runs[1].losses[:3]
    assert runs[0].losses[3:] != runs[1].losses[3:]


def test_more_epochs_continue_a_finished_run(tmp_path):
    whole = training(tmp_path / "whole.pt")
    loop.run(whole, 3, StopRequest(), QUIET)
    short = training(tmp_path / "c.pt")
    loop.run(short, 2, StopRequest(), QUIET)
    longer = training(tmp_path / "c.pt", seed=99)
    longer.resume(tmp_path / "c.pt")
    loop.run(longer, 3, StopRequest(), QUIET)
    assert_same(longer, whole)


def test_history_holds_the_means(tmp_path):
    run = training(tmp_path / "c.pt")
    loop.run(run, 2, StopRequest(), QUIET)
    for epoch, row in enumerate(run.history):
        assert row["epoch"] == epoch + 1
        # every step has as many samples, so the epoch's loss is the mean of its steps'
        assert row["loss"] == pytest.approx(sum(run.losses[4 * epoch : 4 * epoch + 4]) / 4, rel=1e-6)
        assert row["step_ms"] > 0


def test_identity_must_agree(tmp_path):
    run = training(tmp_path / "c.pt", lr=0.1)
    run.save()
    with pytest.raises(ValueError, match=r"c\.pt: made with lr = 0\.1, this run has 0\.2"):
        training(tmp_path / "c.pt", lr=0.2).resume(tmp_path / "c.pt")


def test_incomplete_state_is_refused(tmp_path):
    run = training(tmp_path / "c.pt")
    run.save()
    state = checkpoint.load(tmp_path / "c.pt")
    for missing in state:
        broken = {name: value for name, value in state.items() if name != missing}
        checkpoint.save(tmp_path / "broken.pt", broken)
        with pytest.raises(ValueError, match=r"broken\.pt"):
            training(tmp_path / "c.pt").resume(tmp_path / "broken.pt")
    for name, wrong in [
        ("random", []),
        ("random", [torch.zeros(3)]),
        ("losses", 3),
        ("sums", torch.zeros(9)),
    ]:
        checkpoint.save(tmp_path / "broken.pt", {**state, name: wrong})
        with pytest.raises(ValueError, match=r"broken\.pt"):
            training(tmp_path / "c.pt").resume(tmp_path / "broken.pt")


def test_infinite_loss_stops_before_it_spoils_the_weights(tmp_path):
    task = Regression()
    run = training(tmp_path / "c.pt", task=task)
    loop.run(run, 1, StopRequest(), QUIET)
    before = copy.deepcopy(run.model.state_dict())
    task.scale = 1e38
    with pytest.raises(FloatingPointError, match="the loss is inf at epoch 2, step 1"):
        loop.run(run, 2, StopRequest(), QUIET)
    assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())
    assert checkpoint.load(tmp_path / "c.pt")["epoch"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_becomes_a_request_once(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal_number == 0
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
        os.kill(os.getpid(), number)  # the echo of a launcher
        assert stop.signal_number == number
    assert signal.getsignal(number) is before


def test_a_late_second_signal_acts_as_usual(monkeypatch):
    # a background shell job starts with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(stop, "_since", stop._since - 3)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_no_handlers():
    seen = []

    def enter():
        with StopRequest() as stop:
            seen.append(stop.signal_number)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [0]


def test_stopping_says_signal_and_file(tmp_path):
    stream = io.StringIO()
    with pytest.raises(Interrupted) as stopped:
        loop.run(training(tmp_path / "c.pt"), 1, StopAfter(2), Console(stream))
    assert stopped.value.checkpoint == tmp_path / "c.pt"
    assert stream.getvalue() == f"stopped by SIGTERM; saved {tmp_path / 'c.pt'}; continue with --resume\n"


def test_console_is_silent_unless_enabled():
    stream = io.StringIO()
    Console(stream, enabled=False).line("a")
    Console(stream).line("b")
    assert stream.getvalue() == "b\n"
