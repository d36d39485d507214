"""oneDNN's convolution in inference: its own layout of a weight is kept, scale and residual are fused by it.

Torch's convolution brings a plain weight into that layout in each call, half of the time for one image. What is kept
is used only while the weight, and the scale it was multiplied by, have the fingerprint they were made from.
"""

from __future__ import annotations

import threading
import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from ..conv_relu_maxpool.geometry import Geometry
from . import registration  # noqa: F401, the operator below must be defined
from .activations import activate_
from .epilogue import Epilogue, scaled

MOST_BYTES = 512 * 2**20
# A kept weight that was not asked for in so many lookups makes room: no network has as many convolutions.
STALE_LOOKUPS = 1024
MOST_SEEN = 4096

_fingerprint = torch.ops.fastdl.weight_fingerprint.default


def _found(name: str) -> torch._ops.OpOverloadPacket | None:
    # torch.compile's own operators: not promised, so looked for
    return getattr(torch.ops.mkldnn, name, None) if torch.backends.mkldnn.is_available() else None


_pointwise, _reorder = _found("_convolution_pointwise"), _found("_reorder_convolution_weight")
AVAILABLE = _pointwise is not None and hasattr(_pointwise, "binary") and _reorder is not None


class Kept(NamedTuple):
    """A weight as oneDNN wants it, and what it was made from."""

    packed: Tensor
    fingerprint: int
    scale: Tensor | None
    nbytes: int
    lookup: int  # the last one
    owner: weakref.ref  # what is kept goes with the Parameter


class PackedWeights:
    """The kept weights of a process. Any thread may ask."""

    def __init__(self) -> None:
        self._kept: dict[tuple, Kept] = {}
        self._seen: set[tuple] = set()
        self._bytes = self._lookups = 0
        self._lock = threading.RLock()  # an owner may die while it is held

    def of(self, weight: Tensor, scale: Tensor | None, x: Tensor, g: Geometry) -> Tensor | None:
        """scale weight, packed for images like x.

        None where that is not worth it: there is no room, or it is the first time; or wrong: an infinite scale must
        meet whole sums.
        """
        # the layout depends on the sizes and the number of threads
        key = (
            weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, x.shape, g, torch.get_num_threads()
        )  # fmt: skip
        with self._lock:
            self._lookups += 1
            kept = self._kept.get(key)
            if kept is None and not (self._is_seen_again(key) and self._make_room(weight.nbytes)):
                return None
        fingerprint = _fingerprint(weight)
        if kept is not None and kept.fingerprint == fingerprint and _same(kept.scale, scale):
            with self._lock:
                if self._kept.get(key) is kept:
                    self._kept[key] = kept._replace(lookup=self._lookups)
            return kept.packed
        if scale is not None and not scale.isfinite().all():
            return None
        packed = _packed(weight, scale, x, g)
        own = None if scale is None else scale.clone()
        with self._lock:
            self._drop(key)
            if self._make_room(weight.nbytes):
                owner = weakref.ref(weight, lambda owner: self._forget(key, owner))
                self._kept[key] = Kept(packed, fingerprint, own, weight.nbytes, self._lookups, owner)
                self._bytes += weight.nbytes
        return packed

    def _is_seen_again(self, key: tuple) -> bool:
        """A weight met once with images of a size is not worth packing for them: the next may have another."""
        if key in self._seen:
            return True
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen.add(key)
        return False

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()
            self._seen.clear()
            self._bytes = 0

    def _forget(self, key: tuple, owner: weakref.ref) -> None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and kept.owner is owner:
                self._drop(key)

    def _drop(self, key: tuple) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= kept.nbytes

    def _make_room(self, more: int) -> bool:
        """What is in use stays, so that a network larger than this keeps a part of it."""
        if self._bytes + more > MOST_BYTES:
            oldest = self._lookups - STALE_LOOKUPS
            for key in [key for key, kept in list(self._kept.items()) if kept.lookup < oldest]:
                self._drop(key)
        return self._bytes + more <= MOST_BYTES


packed_weights = PackedWeights()


def _same(kept: Tensor | None, scale: Tensor | None) -> bool:
    if kept is None or scale is None:
        return kept is scale
    return torch.equal(kept, scale)


def _packed(weight: Tensor, scale: Tensor | None, x: Tensor, g: Geometry) -> Tensor:
    weight = weight.detach() if scale is None else scaled(weight, scale)
    return _reorder(weight, g.padding, g.stride, g.dilation, g.groups, list(x.shape))


def _traced() -> bool:
    """Whether a fake tensor or a graph stands for values."""
    if torch.compiler.is_compiling():
        return True
    keys = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(key) is not None for key in (keys.FAKE, keys.PROXY))


def window_in_padding(weight: Tensor, g: Geometry) -> bool:
    """Whether a window may lie in the padding alone: there oneDNN has read outside of the image (SIGSEGV)."""
    return any(g.padding[i] > (weight.shape[2 + i] - 1) * g.dilation[i] for i in (0, 1))


def forward(g: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue) -> Tensor | None:
    """conv2d by oneDNN, in the memory format of x, None where it cannot; nothing of the call is recorded."""
    scale, residual, activation = epilogue
    if _traced() or x.shape[0] == 0 or window_in_padding(weight, g) or not torch._C._get_mkldnn_enabled():
        return None
    packed = packed_weights.of(weight, scale, x, g)
    if packed is None:
        return None
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    bias = None if bias is None else bias.contiguous()  # its strides are not read
    # oneDNN's results are channels_last
    x = x.contiguous(memory_format=torch.channels_last)
    conv = (g.padding, g.stride, g.dilation, g.groups)
    if residual is None:
        y = _pointwise(x, packed, bias, *conv, "none", [], "")
    else:
        residual = residual.contiguous(memory_format=torch.channels_last)
        y = _pointwise.binary(x, residual, packed, bias, *conv, "add", None, None, [], None)
    y = activate_(y, activation)  # oneDNN's own ReLU takes NaN for a number below zero
    return y if channels_last else y.contiguous()
