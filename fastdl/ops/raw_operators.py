"""Defines a family's raw operators: the reference behind every device without a kernel, shapes for fake tensors.

Triton's kernels are operators of their own, since one dispatch key holds one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch


def define(schemas: Iterable[str], functions: Mapping[str, Callable]) -> torch.library.Library:
    """Define fastdl::<name> for each schema; C++ kernels override the reference, in whichever order they load.

    `functions` holds each operator's reference under its name and its fake under "fake_" + name. Keep what is
    returned: the definitions die with it.
    """
    library = torch.library.Library("fastdl", "FRAGMENT")
    for definition in schemas:
        name = definition.split("(")[0]
        library.define(definition, tags=(torch.Tag.pt2_compliant_tag,))
        # no_grad: like a kernel's, the outputs of a raw operator never require grad
        library.impl(name, torch.no_grad()(functions[name]), "CompositeExplicitAutograd")
        # without it opcheck's test_autograd_registration fails on inputs that require grad
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"fastdl::{name}", functions[f"fake_{name}"], lib=library)
    return library


def define_triton(
    schemas: Iterable[str],
    kernels: Mapping[str, Callable],
    fakes: Mapping[str, Callable],
    interpreted: bool,
    suffix: str = "triton",
) -> torch.library.Library:
    """Define fastdl::<name>_<suffix> for each schema, with its signature and the fake of fastdl::<name>.

    `kernels` holds the launches under the operators' names; `interpreted`: they run on CPU tensors too. Keep what is
    returned: the definitions die with it.
    """
    library = torch.library.Library("fastdl", "FRAGMENT")
    for definition in schemas:
        name = definition.split("(")[0]
        suffixed = f"{name}_{suffix}"
        library.define(definition.replace(name, suffixed, 1), tags=(torch.Tag.pt2_compliant_tag,))
        for key in ("CUDA", "CPU") if interpreted else ("CUDA",):
            library.impl(suffixed, torch.no_grad()(kernels[name]), key)
        # as above
        library.impl(suffixed, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"fastdl::{suffixed}", fakes[f"fake_{name}"], lib=library)
    return library
