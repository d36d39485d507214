"""fastdl.nn.functional.scaled_dot_product_attention against torch's."""

import pytest
import torch
import torch.nn.functional as F

import fastdl
from fastdl import _extension
from fastdl.nn.functional import scaled_dot_product_attention
from fastdl.testing import judge

SHAPES = {
    "four": ((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6)),
    "three": ((3, 5, 8), (3, 7, 8), (3, 7, 8)),
    "two": ((5, 8), (7, 8), (7, 8)),
    "five": ((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 8)),
    "broadcast batch": ((2, 4, 5, 8), (1, 4, 7, 8), (1, 4, 7, 8)),
    "broadcast heads": ((2, 4, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8)),
    "unequal ranks": ((2, 4, 5, 8), (4, 7, 8), (7, 8)),
    "no keys": ((2, 4, 5, 8), (2, 4, 0, 8), (2, 4, 0, 6)),
    "no batch": ((0, 4, 5, 8), (0, 4, 7, 8), (0, 4, 7, 8)),
}


def draw(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def both(inputs, **options):
    """(output, gradients) of ours and of torch's."""
    results = []
    for function in (scaled_dot_product_attention, F.scaled_dot_product_attention):
        output = function(*inputs, **options)
        watched = [t for t in (*inputs, options.get("attn_mask")) if t is not None and t.requires_grad]
        grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
        results.append((output, torch.autograd.grad(output, watched, grad_output)))
    return results


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
def test_output_and_gradients_are_torchs(shapes, options):
    ours, theirs = both(draw(*shapes), **options)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (4, 5, 7), (4, 1, 1), (2, 1, 5, 7), (2, 4, 5, 1)])
@pytest.mark.parametrize("kind", [torch.bool, torch.float64])
def test_masks_broadcast_as_torchs(shape, kind):
    inputs = draw(*SHAPES["four"])
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = mask > -0.5 if kind is torch.bool else mask.requires_grad_()
    ours, theirs = both(inputs, attn_mask=mask)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["three", "five", "broadcast heads"])
def test_a_mask_with_the_leading_dimensions(name):
    shapes = SHAPES[name]
    mask = torch.rand(*shapes[0][:-1], 7, generator=torch.Generator().manual_seed(1)) > 0.3
    ours, theirs = both(draw(*shapes), attn_mask=mask)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("lead", [(2,), (), (2, 3)])
def test_grouped_heads(lead):
    ours, theirs = both(draw((*lead, 4, 5, 8), (*lead, 2, 7, 8), (*lead, 2, 7, 8)), enable_gqa=True)
    torch.testing.assert_close(ours, theirs)


def test_a_float32_mask_serves_bfloat16():
    runs = []
    for seed in range(5):
        inputs = [t.detach() for t in draw(*SHAPES["four"], dtype=torch.bfloat16)]
        mask = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
        exact = F.scaled_dot_product_attention(*(t.double() for t in inputs), mask.double())
        eager = F.scaled_dot_product_attention(*inputs, mask)
        runs.append((scaled_dot_product_attention(*inputs, mask), exact, eager, exact))
    report = judge(runs, torch.bfloat16)
    assert report.within_rule, report


@pytest.mark.skipif(not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}")
def test_the_fused_kernels_serve_float32():
    inputs = draw(*SHAPES["five"], dtype=torch.float32)
    with fastdl.backend("cpu"):
        ours, theirs = both(inputs, is_causal=True)
    torch.testing.assert_close(ours, theirs)


def test_dropout_acts_in_every_call():
    q, k, v = draw((1, 2, 5, 8), (1, 2, 200, 8), (1, 2, 200, 8), dtype=torch.float32)
    torch.manual_seed(0)
    first = scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(0)
    assert torch.equal(first, scaled_dot_product_attention(q, k, v, dropout_p=0.5))
    assert not torch.equal(first, scaled_dot_product_attention(q, k, v))


def test_wrong_arguments_say_what_was_expected():
    q, k, v = (t.detach() for t in draw(*SHAPES["four"]))
    with pytest.raises(ValueError, match="attn_mask and is_causal=True"):
        scaled_dot_product_attention(q, k, v, torch.ones(5, 7, dtype=torch.bool), is_causal=True)
    with pytest.raises(ValueError, match=r"dropout_p must be at least 0 and below 1, got 1\.5"):
        scaled_dot_product_attention(q, k, v, dropout_p=1.5)
    with pytest.raises(ValueError, match="leading dimensions of query, key and value must broadcast"):
        scaled_dot_product_attention(q, k[:, :3], v[:, :3, None].flatten(0, 1))
    with pytest.raises(ValueError, match=r"query must have at least 2 dimensions, got \[8\]"):
        scaled_dot_product_attention(q[0, 0, 0], k, v)
    with pytest.raises(ValueError, match=r"mask must broadcast to \[B, H, L_q, L_k\] = \[2, 4, 5, 7\]"):
        scaled_dot_product_attention(q, k, v, torch.ones(5, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="attn_mask must broadcast to"):
        scaled_dot_product_attention(q[0], k[0], v[0], torch.ones(3, 5, 7, dtype=torch.bool))
    with pytest.raises(TypeError, match="k must have the dtype of q"):
        scaled_dot_product_attention(q, k.float(), v)


def test_nested_tensors_are_torchs():
    lengths = ((3, 5), (4, 6), (4, 6))
    q, k, v = (torch.nested.nested_tensor([torch.randn(2, n, 8) for n in each]) for each in lengths)
    ours, theirs = (
        f(q, k, v).unbind() for f in (scaled_dot_product_attention, F.scaled_dot_product_attention)
    )
    torch.testing.assert_close(ours, theirs)
    with fastdl.strict(), pytest.raises(fastdl.UnsupportedError, match="a tensor is nested"):
        scaled_dot_product_attention(q, k, v)
