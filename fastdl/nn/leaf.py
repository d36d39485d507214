"""What the readers of a model's code see of a layer: torch.fx one node, TorchScript a reason."""

from __future__ import annotations

from torch import fx, nn

from ..dispatch import UnsupportedError


class Leaf:
    """Mixed in before torch's class: what torch.fx has no need of there, where it knows a leaf by torch.nn's name."""

    def _node(self, *args: object, **kwargs: object) -> fx.Proxy | None:
        """The node of a symbolic trace for a call with these arguments; None if none is of one, or for its root."""
        proxy = next((each for each in (*args, *kwargs.values()) if isinstance(each, fx.Proxy)), None)
        path = None if proxy is None else proxy.tracer.path_of_module(self)
        if not path:
            return None
        while args and args[-1] is None:
            args = args[:-1]
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        if self._forward_pre_hooks or self._forward_hooks:
            # their calls are in the graph around this one
            layer = proxy.tracer.create_proxy("get_attr", path, (), {})
            return proxy.tracer.create_proxy("call_method", "forward", (layer, *args), kwargs)
        return proxy.tracer.create_proxy("call_module", path, args, kwargs)

    def __prepare_scriptable__(self) -> nn.Module:
        raise UnsupportedError(
            f"torch.jit.script cannot read what fastdl computes in {type(self).__name__}: use torch.jit.trace, "
            "or script the model after fastdl.restore(model)"
        )
