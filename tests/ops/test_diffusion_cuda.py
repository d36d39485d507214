"""The CUDA kernels of diffusion, executed on the CPU by emulation (csrc/emulation). Backend: cuda."""

import pytest
import torch

from fastdl.ops.diffusion import registration, schema
from fastdl.ops.normal import normals
from tests.emulation import library
from tests.ops.diffusion_calls import assert_same_bits, calls, table, threshold_calls, whole_sample_calls

if library.missing() is not None:
    pytest.skip(library.missing(), allow_module_level=True)

from tests.emulation.diffusion import Emulated

TOLERANCES = {
    torch.float64: 1e-6,  # noise made in fp32 is an ulp apart
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


def wide(arguments: tuple) -> tuple:
    """Floating tensors in fp64; the table stays what it is."""
    return tuple(
        a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() and i != 7 else a
        for i, a in enumerate(arguments)
    )


def wide_backward(arguments: tuple) -> tuple:
    return tuple(a.double() if isinstance(a, torch.Tensor) and i < 4 else a for i, a in enumerate(arguments))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 1500), (4, 16)], ids=str)
def test_every_part_of_a_step_is_the_definition(shape, dtype):
    emulated, tolerance = Emulated(), TOLERANCES[dtype]
    for step, backward in calls(shape, dtype):
        expected = registration.diffusion_step(*wide(step))
        for ours, truth in zip(emulated.step(*step), expected, strict=True):
            torch.testing.assert_close(ours.double(), truth.double(), rtol=tolerance, atol=tolerance)
        expected = registration.diffusion_step_backward(*wide_backward(backward))
        for ours, truth in zip(emulated.backward(*backward), expected, strict=True):
            torch.testing.assert_close(ours.double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("seed", [[0, 0], [-1, -1], [2**62 + 12345, 2**33 + 1]])
@pytest.mark.parametrize("count", [1, 3, 5003])
def test_noise_is_the_definition(seed, count):
    seed = torch.tensor(seed)
    ours, expected = Emulated(7).noise(torch.empty(count), seed), normals(count, seed)
    assert ((ours - expected).abs() <= 4 * 2**-23 * expected.abs().clamp(min=0.01)).all()
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        other = Emulated().noise(torch.empty(count, dtype=dtype), seed)
        assert torch.equal(other, ours.to(dtype))


def test_a_row_outside_the_table_is_nan():
    x = torch.ones(3, 9)
    rows = torch.tensor([0, 7, -1])
    found = Emulated().step(x, x, None, None, None, rows, 0, table(), 7, 1.0, 0.0, 1.0, 0.9)
    for t in found[:2]:
        assert torch.isfinite(t[0]).all()
        assert t[1:].isnan().all()
    assert found[2].isnan().tolist() == [False, True, True]


def test_empty_and_unwanted():
    x = torch.ones(2, 0)
    found = Emulated().step(x, x, None, None, None, None, 3, table(), 7, 1.0, 0.0, 1.0, 0.9)
    assert found[2].item() == table()[3, 8]
    x = torch.ones(2, 8)
    prev, x_0, value = Emulated().step(x, x, None, None, None, None, 3, table(), 2, 1.0, 0.0, 1.0, 0.9)
    assert (prev.numel(), value.numel()) == (0, 0)
    assert x_0.isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    ("shape", "largest_cluster"),
    [((3, 5, 7), 16), ((2, 4, 1250), 16), ((2, 4, 1250), 1), ((3, 1), 16)],
    ids=str,
)
def test_what_needs_a_whole_sample_is_the_definition(shape, largest_cluster, dtype):
    """Samples that one block has, and that a cluster of blocks shares."""
    emulated, tolerance = Emulated(largest_cluster=largest_cluster), TOLERANCES[dtype]
    for arguments in whole_sample_calls(shape, dtype):
        expected = registration.diffusion_step(*wide(arguments))
        for ours, truth in zip(emulated.step(*arguments), expected, strict=True):
            torch.testing.assert_close(ours.double(), truth.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_threshold_is_the_quantile_to_the_last_bit(dtype):
    for arguments in threshold_calls(dtype, (0.0, 0.1234, 0.5, 0.998, 1.0)):
        assert_same_bits(Emulated().step(*arguments)[1], registration.diffusion_step(*arguments)[1])


def test_a_sample_without_deviation_is_not_rescaled_and_nan_stays():
    x, model = torch.ones(3, 9), torch.ones(6, 9)
    model[4, 3], model[1, 0] = torch.nan, 5
    arguments = (x, model, None, None, None, None, 2, table(), 3 | schema.GUIDED, 2.0, 0.7, 1.0, 0.9)
    ours, expected = Emulated().step(*arguments), registration.diffusion_step(*arguments)
    for mine, truth in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, truth, equal_nan=True)
    assert ours[0][[0, 2]].isfinite().all()
    assert ours[0][1].isnan().all()
