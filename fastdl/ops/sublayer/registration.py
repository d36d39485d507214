"""The raw operators: schemas, the reference behind every device without a kernel, shapes for fake tensors."""

from __future__ import annotations

from torch import Tensor

from ..raw_operators import define
from . import reference, schema


def attention_sublayer(x: Tensor, *rest: Tensor | None | list[int] | float) -> Tensor:
    return reference.attention_sublayer(x, *rest).contiguous()


def packed_attention_sublayer(x: Tensor, *rest: Tensor | None | list[int] | float) -> Tensor:
    return reference.packed_attention_sublayer(x, *rest).contiguous()


def weighted_attention_sublayer(
    x: Tensor, *rest: Tensor | None | list[int] | float | bool
) -> tuple[Tensor, Tensor]:
    output, weights = reference.weighted_attention_sublayer(x, *rest)
    return output.contiguous(), weights.contiguous()


def cached_attention_sublayer(x: Tensor, *rest: Tensor | None | list[int] | int | float) -> Tensor:
    return reference.cached_attention_sublayer(x, *rest).contiguous()


def feed_forward_sublayer(x: Tensor, *rest: Tensor | None | int | float) -> Tensor:
    return reference.feed_forward_sublayer(x, *rest).contiguous()


fake_attention_sublayer = fake_packed_attention_sublayer = reference.empty_like_x
fake_cached_attention_sublayer = fake_feed_forward_sublayer = reference.empty_like_x
fake_weighted_attention_sublayer = reference.empty_with_weights

library = define(schema.SCHEMAS, globals())
