"""The Triton kernels of diffusion against the definition, run by Triton's interpreter."""

import itertools

import pytest
import torch

import fastdl
from fastdl.ops.diffusion import registration
from fastdl.ops.normal import normals
from fastdl.testing.diffusion import SAMPLES, reports
from tests.ops.diffusion_calls import assert_same_bits, calls, table, threshold_calls, whole_sample_calls

step = torch.ops.fastdl.diffusion_step_triton.default
backward = torch.ops.fastdl.diffusion_step_backward_triton.default
noise = torch.ops.fastdl.normal_noise_triton.default


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_error_rule(sample, dtype):
    for name, report in reports(sample, "triton", dtype).items():
        assert report.within_rule, f"{name}: {report}"


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 1500), (4, 4)])
def test_every_part_of_a_step_is_the_definition(shape):
    for forward, backward_ in calls(shape):
        for ours, expected in zip(step(*forward), registration.diffusion_step(*forward), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
        expected = registration.diffusion_step_backward(*backward_)
        for ours, truth in zip(backward(*backward_), expected, strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1250), (3, 1)], ids=str)
def test_what_needs_a_whole_sample_is_the_definition(shape):
    for arguments in itertools.islice(whole_sample_calls(shape), 0, None, 5):
        for ours, expected in zip(step(*arguments), registration.diffusion_step(*arguments), strict=True):
            torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-5)


def test_a_threshold_is_the_quantile_to_the_last_bit():
    for arguments in threshold_calls(torch.float32, (0.0, 0.998, 1.0)):
        assert_same_bits(step(*arguments)[1], registration.diffusion_step(*arguments)[1])


@pytest.mark.parametrize("seed", [[0, 0], [-1, -1], [2**62 + 12345, 2**33 + 1]])
def test_noise_is_the_definition(seed):
    ours, expected = noise(torch.empty(5003), torch.tensor(seed)), normals(5003, torch.tensor(seed))
    assert ((ours - expected).abs() <= 4 * 2**-23 * expected.abs().clamp(min=0.01)).all()


def test_a_row_outside_the_table_is_nan():
    x = torch.ones(3, 9)
    found = step(x, x, None, None, None, torch.tensor([0, 7, -1]), 0, table(), 7, 1.0, 0.0, 1.0, 0.9)
    for t in found[:2]:
        assert torch.isfinite(t[0]).all()
        assert t[1:].isnan().all()
    assert found[2].isnan().tolist() == [False, True, True]


def test_this_backend_ran():
    x = torch.ones(2, 8).requires_grad_()
    with fastdl.backend("triton"):
        found = fastdl.ops.add_noise(
            x, 1, fastdl.ops.diffusion.Schedule.flow(torch.tensor([0.1, 0.5])), noise=x
        )
        found.sum().backward()
        with pytest.raises(fastdl.UnsupportedError, match="a gradient through"):
            fastdl.ops.predict_x0(
                x,
                x,
                0,
                fastdl.ops.diffusion.Schedule.flow(torch.tensor([0.1])),
                prediction_type="sample",
                threshold=(0.9, 1.0),
            )
    torch.testing.assert_close(x.grad, torch.ones(2, 8))
