"""What one writes without fastdl for an LSTM with layer norm and zoneout: a loop over steps, scripted or not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdl.ops.rnn.masks import zoneout_mask


def loop(
    gx: Tensor, weight_hh: Tensor, norm_hh: Tensor, bias_hh: Tensor, norm_c: Tensor, shift_c: Tensor, keep_h: Tensor,
    keep_c: Tensor,
) -> Tensor:  # fmt: skip
    """Output of all steps; `keep_h` and `keep_c` are the zoneout masks."""
    T, B, H = gx.shape[0], gx.shape[1], weight_hh.shape[1]
    h, c = gx.new_zeros(B, H), gx.new_zeros(B, H)
    outputs: list[Tensor] = []
    for t in range(T):
        u = F.layer_norm(torch.mm(h, weight_hh.t()), [4 * H], norm_hh, bias_hh)
        i, f, g, o = (gx[t] + u).chunk(4, 1)
        new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        new_h = torch.sigmoid(o) * torch.tanh(F.layer_norm(new_c, [H], norm_c, shift_c))
        h, c = torch.where(keep_h[t], h, new_h), torch.where(keep_c[t], c, new_c)
        outputs.append(h)
    return torch.stack(outputs)


class Loop(nn.Module):
    """A fastdl.nn.LSTM of one layer with layer norm and zoneout, with its parameters, step by step."""

    def __init__(self, module: nn.Module, scripted: bool) -> None:
        super().__init__()
        self.inner = module
        self.loop = torch.jit.script(loop) if scripted else loop

    def forward(self, x: Tensor) -> Tensor:
        w = {name.removesuffix("_l0"): p for name, p in self.inner.named_parameters()}
        rows = (*x.shape[:2], self.inner.hidden_size)
        masks = [zoneout_mask(x, rows, p) for p in self.inner.zoneout]  # the same ones, as fast
        gx = F.layer_norm(
            F.linear(x, w["weight_ih"]), w["weight_ih"].shape[:1], w["weight_norm_ih"], w["bias_ih"]
        )
        return self.loop(
            gx,
            w["weight_hh"],
            w["weight_norm_hh"],
            w["bias_hh"],
            w["weight_norm_c"],
            w["bias_norm_c"],
            *masks,
        )
