"""Ways to change a weight that neither its pointer nor its version counter tells: every next call must see it.

The kernels may keep packed weights; a kept one that no longer agrees with the weight is a silent wrong answer.
"""

from __future__ import annotations

import copy
import socket

import numpy
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from conv_relu_maxpool_plans import KERNELS, eager, forced
from torch.testing import assert_close

from fastdl.nn import ConvReLUMaxPool2d
from fastdl.ops import conv_relu_maxpool

BLOCK = dict(padding=1, pool_size=2)


def evaluated(C: int = 16, calls: int = 3):
    """A module in eval mode, without gradients, called often enough that whatever is cached is cached."""
    torch.manual_seed(0)
    module = ConvReLUMaxPool2d(C, 16, 3, **BLOCK).eval()
    x = torch.randn(2, C, 12, 12)
    with torch.no_grad():
        before = [module(x) for _ in range(calls)][-1].clone()
    return module, x, before


def assert_new_weights_are_used(module, x, before):
    with torch.no_grad():
        output = module(x)
        expected = eager(x, module.weight, module.bias, **BLOCK)
    assert (expected - before).abs().max() > 1e-2, "the change proves nothing"
    assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=KERNELS, ids=str)
def plan(request):
    with forced(request.param):
        yield request.param


def test_fused_adamw_step_then_eval(plan):
    """Fused optimizers write the memory without raising the version counter."""
    module, x, before = evaluated()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    module.train()
    module(x).square().sum().backward()
    optimizer.step()
    module.eval()
    assert_new_weights_are_used(module, x, before)


def test_an_edit_of_data(plan):
    module, x, before = evaluated()
    module.weight.data[3] += 1.0
    assert_new_weights_are_used(module, x, before)


def test_one_element_of_data(plan):
    """The comparison must look at every byte."""
    module, x, before = evaluated()
    for element in (0, module.weight.numel() // 2, module.weight.numel() - 1):
        module.weight.data.view(-1)[element] += 3.0
        assert_new_weights_are_used(module, x, before)
        with torch.no_grad():
            before = module(x).clone()


def test_a_write_through_numpy(plan):
    module, x, before = evaluated()
    array = module.weight.detach().numpy()
    numpy.multiply(array, -1, out=array)
    assert_new_weights_are_used(module, x, before)


def test_load_state_dict(plan):
    module, x, before = evaluated()
    state = {name: -2 * value for name, value in copy.deepcopy(module.state_dict()).items()}
    module.load_state_dict(state)
    assert_new_weights_are_used(module, x, before)
    module.load_state_dict({name: value / 3 for name, value in state.items()}, assign=True)
    assert_new_weights_are_used(module, x, before)


def test_copy_without_grad(plan):
    module, x, before = evaluated()
    with torch.no_grad():
        module.weight.copy_(torch.randn_like(module.weight))
    assert_new_weights_are_used(module, x, before)


def test_data_swapped_and_swapped_back(plan):
    """An allocator gives the same address to other numbers."""
    module, x, before = evaluated()
    kept = module.weight.data
    for _ in range(5):
        module.weight.data = torch.randn_like(kept)
        assert_new_weights_are_used(module, x, before)
    module.weight.data = kept
    with torch.no_grad():
        assert_close(module(x), before, rtol=0, atol=0)


def test_two_modules_in_turn(plan):
    one, x, _ = evaluated()
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.weight.neg_()
        for _ in range(3):
            for module in (one, other):
                assert_close(module(x), eager(x, module.weight, module.bias, **BLOCK), rtol=1e-4, atol=1e-4)


def test_a_weight_seen_through_other_strides(plan):
    """channels_last weights: the same memory order of other numbers."""
    module, x, before = evaluated()
    permuted = module.weight.data.permute(0, 2, 3, 1).contiguous().view(16, 16, 3, 3)
    module.weight.data = permuted
    assert_new_weights_are_used(module, x, before)


def test_the_same_bytes_in_another_memory_format(plan):
    """One weight is contiguous, the other channels_last, and their memory is the same."""
    module, x, _ = evaluated()
    plain = module.weight.data
    last = plain.view(16, 3, 3, 16).permute(0, 3, 1, 2)
    assert last.data_ptr() == plain.data_ptr()
    for weight in (plain, last, plain, last):
        with torch.no_grad():
            output = conv_relu_maxpool(x, weight, module.bias, **BLOCK)
        assert_close(output, eager(x, weight, module.bias, **BLOCK), rtol=1e-4, atol=1e-4)


def test_the_same_bytes_in_another_dtype(plan):
    """A float16 weight and a bfloat16 weight of equal bytes are other numbers."""
    plan.skip_unless_it_takes(torch.float16)
    _, x, _ = evaluated()
    half = torch.randn(16, 16, 3, 3).half() / 8
    brain = half.view(torch.bfloat16).nan_to_num(0, 0, 0).clamp(-1, 1)
    half = brain.view(torch.float16)
    module = ConvReLUMaxPool2d(16, 16, 3, **BLOCK)
    for weight in (half, brain, half, brain):
        module.weight.data, module.bias.data = weight, torch.zeros(16, dtype=weight.dtype)
        with torch.no_grad():
            output = module(x.to(weight.dtype)).float()
        truth = eager(x.to(weight.dtype).double(), weight.double(), **BLOCK)
        assert ((output - truth).norm() / truth.norm()) < 1e-2


def _broadcasting(rank: int, port: int, errors) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        for plan in KERNELS:
            with forced(plan):
                module, x, before = evaluated()
                with torch.no_grad():
                    if rank == 0:
                        module.weight.mul_(-1)
                    dist.broadcast(module.weight.data, src=0)
                assert_new_weights_are_used(module, x, before)
        dist.destroy_process_group()
        errors.put((rank, None))
    except BaseException as error:  # noqa: BLE001, the parent raises it
        errors.put((rank, repr(error)))


@pytest.mark.long
def test_broadcast_between_two_processes():
    if KERNELS and (reason := KERNELS[0].skip_reason()):
        pytest.skip(reason)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    errors = context.Queue()
    processes = [context.Process(target=_broadcasting, args=(rank, port, errors)) for rank in (0, 1)]
    for process in processes:
        process.start()
    try:
        answers = dict(errors.get(timeout=120) for _ in processes)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    assert answers == {0: None, 1: None}
