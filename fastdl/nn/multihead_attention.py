"""MultiheadAttention: torch.nn's signature, parameters, masks and state_dict, over fastdl's attention and linear."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import dispatch
from ..ops import attention, linear
from ..ops.attention.weights import attention_and_weights
from . import sublayers
from .attention_masks import merged
from .leaf import Leaf


class MultiheadAttention(Leaf, nn.MultiheadAttention):
    """Projected queries attend to projected keys and values, `num_heads` times side by side.

    Constructor, forward, parameters and state_dict are nn.MultiheadAttention's. Three answers differ: a query all
    of whose keys are hidden gives the output projection's bias and weights 0, where torch may give NaN; float and
    bool masks may be mixed; with `is_causal` and `add_bias_kv` or `add_zero_attn` the added keys are always seen.
    Self-attention projects query, key and value in one product. `need_weights=True`, torch's default, takes memory
    L S and plain PyTorch; pass False where the weights are not used.

    Raises:
        TypeError: a mask is neither bool nor floating point, or dtypes differ.
        ValueError: shapes do not fit, `is_causal` without attn_mask, or dropout is not in [0, 1).
        UnsupportedError: `need_weights` under `fastdl.strict()`.

    Source: torch.nn.MultiheadAttention; Vaswani et al. 2017.

    >>> import fastdl, torch
    >>> x = torch.ones(2, 5, 8)
    >>> output, weights = fastdl.nn.MultiheadAttention(8, 2, batch_first=True)(x, x, x)
    >>> output.shape, weights.shape
    (torch.Size([2, 5, 8]), torch.Size([2, 5, 5]))
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if not isinstance(query, Tensor):
            options = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
            if (node := self._node(query, key, value, *options)) is not None:
                return node
        if query.is_nested or key.is_nested or value.is_nested:
            dispatch.require_reference("attention", "a tensor is nested")
            masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "is_causal": is_causal}
            weights = {"need_weights": need_weights, "average_attn_weights": average_attn_weights}
            return super().forward(query, key, value, **masks, **weights)
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True needs the causal attn_mask it is a hint of")
        self._check(query, key, value)
        if key is value:
            causal = is_causal and not need_weights
            averaged = bool(average_attn_weights) if need_weights else None
            inferred = self._inferred(query, key, attn_mask, key_padding_mask, causal, averaged)
            if inferred is not None:
                return (inferred, None) if averaged is None else inferred
        batched = query.dim() == 3
        if not batched:
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask[None]
            query, key, value = _batch_of_one(query, key, value, self._batch_axis)
        q, k, v = self._heads(query, key, value)  # [B, H, L, D], [B, H, S, D]
        k, v, added = self._add_keys(k, v)
        causal = is_causal and not need_weights and not added
        sizes = (*q.shape[:3], k.shape[2] - added)
        mask, bias = merged(key_padding_mask, None if causal else attn_mask, sizes, added, q.dtype)
        dropout_p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            output, weights = attention_and_weights(q, k, v, mask=mask, bias=bias, dropout_p=dropout_p)
            weights = weights.mean(1) if average_attn_weights else weights
            output = self._joined(output)
        else:
            options = {"causal": "top_left" if causal else False, "dropout_p": dropout_p}
            output = self.attend(q, k, v, mask=mask, bias=bias, **options)
        if not batched:
            output = output.squeeze(self._batch_axis)
            weights = None if weights is None else weights.squeeze(0)
        return output, weights

    def _inferred(self, query: Tensor, key: Tensor, *masks: Tensor | bool | None) -> Tensor | None:
        """The output by one operator; None: projections and attention must be called."""
        memory = () if key is query else (key,)
        if not sublayers.may_serve(query, *memory):
            return None
        attention = sublayers.attention_of(self, MultiheadAttention, sublayers.Norm())
        return None if attention is None else attention.infer(query, *(memory or (None,)), *masks)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        """The output for projected heads [B, H, L, D], in the layout of `query`; options of `fastdl.ops.attention`."""
        return self._joined(attention(q, k, v, **options))

    def project_all(self, x: Tensor) -> list[Tensor]:
        """The heads of queries, keys and values that are one tensor, each [B, H, L, D], in one product."""
        return self._split(linear(x, self.in_proj_weight, self.in_proj_bias), 3)

    def project_query(self, query: Tensor) -> Tensor:
        """The heads of `query`, [B, H, L, D]; query, key and value of one width."""
        bias, E = self.in_proj_bias, self.embed_dim
        return self._split(linear(query, self.in_proj_weight[:E], None if bias is None else bias[:E]), 1)[0]

    def project_memory(self, key: Tensor) -> list[Tensor]:
        """The heads of keys and of values that are one tensor, each [B, H, S, D]; all of one width."""
        bias, E = self.in_proj_bias, self.embed_dim
        return self._split(linear(key, self.in_proj_weight[E:], None if bias is None else bias[E:]), 2)

    def _joined(self, output: Tensor) -> Tensor:
        """The output projection of [B, H, L, D]: the heads of a token side by side."""
        output = output.permute(0, 2, 1, 3) if self.batch_first else output.permute(2, 0, 1, 3)
        return linear(output.flatten(2), self.out_proj.weight, self.out_proj.bias)

    @property
    def _batch_axis(self) -> int:
        return 0 if self.batch_first else 1

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """The projections, each [B, H, L, D]; those of one tensor in one product."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if weight is not None and query is key is value:
            return tuple(self.project_all(query))
        if weight is not None and key is value:
            return self.project_query(query), *self.project_memory(key)
        weights = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if weight is None
            else weight.chunk(3)
        )
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        each = zip((query, key, value), weights, biases, strict=True)
        return tuple(self._split(linear(*one), 1)[0] for one in each)

    def _split(self, projected: Tensor, count: int) -> list[Tensor]:
        """`count` projections side by side, each as [B, H, L, D]. The gradient is one stack."""
        parts = projected.unflatten(-1, (count, self.num_heads, self.head_dim)).unbind(2)
        order = (0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3)
        return [part.permute(order) for part in parts]

    def _add_keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """(k, v, how many keys were added): bias_k and bias_v, then zeros."""
        B, H, _, D = k.shape
        added = []
        if self.bias_k is not None:
            added.append([t.view(1, H, 1, D).expand(B, H, 1, D) for t in (self.bias_k, self.bias_v)])
        if self.add_zero_attn:
            added.append([k.new_zeros(B, H, 1, D)] * 2)
        if added:
            k, v = (
                torch.cat([t, *more], 2) for t, more in zip((k, v), zip(*added, strict=True), strict=True)
            )
        return k, v, len(added)

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        if query.dim() not in (2, 3):
            raise ValueError(f"query must have 2 or 3 dimensions, got {list(query.shape)}")
        widths = (("query", self.embed_dim, query), ("key", self.kdim, key), ("value", self.vdim, value))
        for name, width, t in widths:
            if t.dim() != query.dim() or t.shape[-1] != width:
                raise ValueError(
                    f"{name} must have {query.dim()} dimensions and last size {width}, got {list(t.shape)}"
                )
        if key is not value and key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"key and value must be equally long, got {list(key.shape)}, {list(value.shape)}"
            )
        axis = self._batch_axis
        if query.dim() == 3 and query.shape[axis] != key.shape[axis]:
            raise ValueError(
                f"query and key must have one batch size, got {list(query.shape)}, {list(key.shape)}"
            )


def _batch_of_one(query: Tensor, key: Tensor, value: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each with a batch axis; one tensor stays one tensor."""
    first = query.unsqueeze(axis)
    second = first if key is query else key.unsqueeze(axis)
    return first, second, second if value is key else value.unsqueeze(axis)
