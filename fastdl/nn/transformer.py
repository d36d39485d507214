"""TransformerEncoder, TransformerDecoder and Transformer: torch.nn's signatures, parameters and state_dicts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .leaf import Leaf
from .transformer_layers import TransformerDecoderLayer, TransformerEncoderLayer


class TransformerEncoder(Leaf, nn.TransformerEncoder):
    """Encoder layers one after the other, then `norm`.

    Constructor, forward, parameters and state_dict are nn.TransformerEncoder's; the layers are copies of
    `encoder_layer`, of whatever class. Padding is hidden by masks in every mode: nothing is turned into a nested
    tensor, so `enable_nested_tensor` and `mask_check` change nothing, and the rows of padding, which
    nn.TransformerEncoder makes zeros in eval mode where it uses nested tensors, hold what the layers give.
    A mask is looked at to see whether it is causal unless `is_causal` is given, but not under torch.compile.

    Args:
        encoder_layer: an encoder layer, for one `fastdl.nn.TransformerEncoderLayer`.
        num_layers: how many copies.
        norm: a module for the output; default none.

    It is called with src [S, N, E], or [N, S, E] with batch_first, mask [S, S] or [N H, S, S] and
    src_key_padding_mask [N, S], each bool, True is hidden, or added to the scores; it returns the shape of src.
    Errors are those of the layers. Source: torch.nn.TransformerEncoder; Vaswani et al. 2017.

    >>> import fastdl, torch
    >>> layer = fastdl.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> fastdl.nn.TransformerEncoder(layer, 2)(torch.ones(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        encoder_layer: nn.Module,
        num_layers: int,
        norm: nn.Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        super().__init__(encoder_layer, num_layers, norm, enable_nested_tensor=False, mask_check=mask_check)
        self.enable_nested_tensor = enable_nested_tensor

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        if not isinstance(src, Tensor):
            node = self._node(src, mask, src_key_padding_mask, is_causal)
            if node is not None:
                return node
        options = {
            "src_mask": mask,
            "src_key_padding_mask": src_key_padding_mask,
            "is_causal": _is_causal(mask, is_causal),
        }
        for layer in self.layers:
            src = layer(src, **options)
        return src if self.norm is None else self.norm(src)


class TransformerDecoder(Leaf, nn.TransformerDecoder):
    """Decoder layers one after the other, then `norm`.

    Constructor, forward, parameters and state_dict are nn.TransformerDecoder's; the layers are copies of
    `decoder_layer`, of whatever class. A tgt_mask is looked at to see whether it is causal unless `tgt_is_causal` is
    given, but not under torch.compile.

    Args:
        decoder_layer: a decoder layer, for one `fastdl.nn.TransformerDecoderLayer`.
        num_layers: how many copies.
        norm: a module for the output; default none.

    It is called with tgt [T, N, E] and memory [S, N, E], or [N, T, E] and [N, S, E] with batch_first; masks
    are as in `fastdl.nn.TransformerEncoder`, memory_mask is [T, S] or [N H, T, S]. It returns the shape of tgt.
    Errors are those of the layers. Source: torch.nn.TransformerDecoder; Vaswani et al. 2017.

    >>> import fastdl, torch
    >>> layer = fastdl.nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    >>> fastdl.nn.TransformerDecoder(layer, 2)(torch.ones(2, 5, 8), torch.ones(2, 7, 8)).shape
    torch.Size([2, 5, 8])
    """

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        if not isinstance(tgt, Tensor):
            paddings = (tgt_key_padding_mask, memory_key_padding_mask)
            masks = (tgt_mask, memory_mask, *paddings, tgt_is_causal, memory_is_causal)
            node = self._node(tgt, memory, *masks)
            if node is not None:
                return node
        options = {
            "tgt_mask": tgt_mask,
            "memory_mask": memory_mask,
            "tgt_key_padding_mask": tgt_key_padding_mask,
            "memory_key_padding_mask": memory_key_padding_mask,
            "tgt_is_causal": _is_causal(tgt_mask, tgt_is_causal),
            "memory_is_causal": memory_is_causal,
        }
        for layer in self.layers:
            tgt = layer(tgt, memory, **options)
        return tgt if self.norm is None else self.norm(tgt)


class Transformer(Leaf, nn.Transformer):
    """Encoder and decoder, each with a layer norm at its end.

    Constructor, forward, parameters, their initialisation and state_dict are nn.Transformer's; the encoder is a
    `fastdl.nn.TransformerEncoder`, the decoder a `fastdl.nn.TransformerDecoder`, unless a `custom_encoder` or
    `custom_decoder` is given. Errors are nn.Transformer's and those of the layers.
    Source: torch.nn.Transformer; Vaswani et al. 2017.

    >>> import fastdl, torch
    >>> model = fastdl.nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    >>> model(torch.ones(2, 7, 8), torch.ones(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        custom_encoder: nn.Module | None = None,
        custom_decoder: nn.Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps)
        where = {"device": device, "dtype": dtype}

        def stack(container: type, layer: type, count: int) -> nn.Module:
            one = layer(*sizes, batch_first, norm_first, bias, **where)
            return container(one, count, nn.LayerNorm(d_model, eps=layer_norm_eps, bias=bias, **where))

        if custom_encoder is None:
            custom_encoder = stack(TransformerEncoder, TransformerEncoderLayer, num_encoder_layers)
        if custom_decoder is None:
            custom_decoder = stack(TransformerDecoder, TransformerDecoderLayer, num_decoder_layers)
        super().__init__(
            d_model, nhead, custom_encoder=custom_encoder, custom_decoder=custom_decoder, batch_first=batch_first
        )  # fmt: skip

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        masks = (
            src_mask, tgt_mask, memory_mask, src_key_padding_mask, tgt_key_padding_mask, memory_key_padding_mask,
            src_is_causal, tgt_is_causal, memory_is_causal,
        )  # fmt: skip
        if not isinstance(src, Tensor) and (node := self._node(src, tgt, *masks)) is not None:
            return node
        return super().forward(src, tgt, *masks)


def _is_causal(mask: Tensor | None, hint: bool | None) -> bool:
    """The hint, or whether the mask hides exactly what comes after each token."""
    if hint is not None or mask is None or torch.compiler.is_compiling():
        return bool(hint)
    if mask.dim() != 2 or mask.shape[0] != mask.shape[1]:
        return False
    future = torch.ones_like(mask, dtype=torch.bool).triu(1)
    if mask.dtype != torch.bool:
        return torch.equal(mask, torch.zeros_like(mask).masked_fill(future, -torch.inf))
    return torch.equal(mask, future)
