"""Transformer: a decoding step after 16 to 1024 tokens, against plain torch with a cache and its twin without one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.providers import Case, Prepared, Provider, Workload
from fastdl.models import Transformer
from fastdl.models.transformer.decoding import Decoder
from fastdl.models.transformer.reference import ReferenceTransformer
from fastdl.models.transformer.tokens import FIRST

VOCABULARY, E, H, LAYERS, FF, SOURCE = 100, 256, 4, 3, 1024, 32
DECODED = (16, 64, 256, 1024)


def cases(device: str) -> list[Case]:
    return [
        DecodeCase(
            f"token-{decoded}-batch{batch}",
            "decoding",
            torch.float32,
            2.0 * batch * (_macs() + 2 * LAYERS * E * (decoded + SOURCE)),
            batch=batch,
            decoded=decoded,
        )
        for batch in (1, 16)
        for decoded in DECODED
    ]


def _macs() -> int:
    """Multiply-adds of one token but for those of attention."""
    return LAYERS * (4 * E * E + 2 * E * E + 2 * E * FF) + E * VOCABULARY


@dataclass(frozen=True)
class DecodeCase(Case):
    """The logits after `decoded` tokens, of which the earlier ones are in the cache of those that have one."""

    batch: int = 1
    decoded: int = 16

    @torch.no_grad()
    def workload(self, device: str) -> Workload:
        torch.manual_seed(0)
        source = torch.randint(FIRST, VOCABULARY, (self.batch, SOURCE), device=device)
        target = torch.randint(FIRST, VOCABULARY, (self.batch, self.decoded), device=device)
        plain = self._model(ReferenceTransformer).to(device)
        model = self._model(Transformer).to(device)
        model.load_state_dict(plain.state_dict())
        exact = self._model(ReferenceTransformer).to(device, torch.float64)
        exact.load_state_dict(plain.state_dict())
        truth = {"output": exact(source, target)[:, -1]}
        providers = [
            Provider("eager", "NTE", lambda: _stepping(PlainDecoder(plain, source, self.decoded), target)),
            Provider("fastdl", "NTE", lambda: _stepping(Decoder(model, source, self.decoded), target)),
        ]
        if self.batch == 1:
            providers.append(Provider("eager without a cache", "NTE", lambda: _whole(plain, source, target)))
        return Workload(truth, tuple(providers))

    def _model(self, kind: type[nn.Module]) -> nn.Module:
        sizes = (VOCABULARY, VOCABULARY, E, H, LAYERS, LAYERS, FF)
        return kind(*sizes, max_length=max(DECODED)).eval()


@torch.no_grad()
def _stepping(decoder: Decoder | PlainDecoder, target: Tensor) -> Prepared:
    """The last token of the target, again and again at its place."""
    *earlier, last = target.unbind(1)
    for tokens in earlier:
        decoder.step(tokens)

    def step() -> Tensor:
        decoder.length = len(earlier)
        with torch.no_grad():
            return decoder.step(last)

    return Prepared(step, lambda: {"output": step()})


def _whole(model: ReferenceTransformer, source: Tensor, target: Tensor) -> Prepared:
    """The decoder on all tokens; the source is encoded beforehand, as for the others."""
    remembered = PlainDecoder(model, source, 0).encoded

    def decode() -> Tensor:
        with torch.no_grad():
            x = model._embed(model.target_embedding, target)
            future = torch.ones(
                target.shape[1], target.shape[1], dtype=torch.bool, device=target.device
            ).triu(1)
            for layer in model.decoder:
                x = layer(x, remembered, tgt_mask=future, tgt_is_causal=True)
            return model.output(model.decoder_norm(x[:, -1]))

    return Prepared(decode, lambda: {"output": decode()})


class PlainDecoder:
    """What `fastdl.models.transformer.decoding.Decoder` does, in plain torch; the sources have no padding."""

    @torch.no_grad()
    def __init__(self, model: ReferenceTransformer, source: Tensor, length: int) -> None:
        self.model, self.length = model, 0
        x = model._embed(model.source_embedding, source)
        for layer in model.encoder:
            x = layer(x)
        self.encoded = model.encoder_norm(x)
        self.memory = [self._project(layer.multihead_attn, self.encoded, 1, 3) for layer in model.decoder]
        self.kept = [
            [self.encoded.new_empty(len(source), H, length, E // H) for _ in range(2)] for _ in model.decoder
        ]

    def step(self, tokens: Tensor) -> Tensor:
        """[N] tokens -> [N, V] logits."""
        model, t = self.model, self.length
        x = model.target_embedding(tokens[:, None]) * E**0.5 + model.positions[t : t + 1]
        for layer, kept, memory in zip(model.decoder, self.kept, self.memory, strict=True):
            q, *parts = self._project(layer.self_attn, layer.norm1(x), 0, 3)
            for cache, part in zip(kept, parts, strict=True):
                cache[:, :, t : t + 1] = part
            x = x + self._attend(layer.self_attn, q, *(cache[:, :, : t + 1] for cache in kept))
            (q,) = self._project(layer.multihead_attn, layer.norm2(x), 0, 1)
            x = x + self._attend(layer.multihead_attn, q, *memory)
            x = x + layer._ff_block(layer.norm3(x))
        self.length += 1
        return model.output(model.decoder_norm(x))[:, 0]

    def _project(self, attention: nn.MultiheadAttention, x: Tensor, begin: int, end: int) -> list[Tensor]:
        """Those of (query, key, value), each [N, H, L, D]."""
        rows = slice(begin * E, end * E)
        projected = F.linear(x, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
        parts = projected.unflatten(-1, (end - begin, H, E // H)).unbind(2)
        return [part.transpose(1, 2) for part in parts]

    def _attend(self, attention: nn.MultiheadAttention, *heads: Tensor) -> Tensor:
        return attention.out_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
