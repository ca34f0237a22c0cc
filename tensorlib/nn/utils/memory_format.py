"""The layout of the weights of convolutions alone, where ``Module.to`` changes all parameters."""

from __future__ import annotations

from typing import Any

from tensorlib.nn.layers.conv import Conv2d


def convert_conv2d_weight_memory_format(module: Any, memory_format: Any) -> Any:
    """Lets the weights of all Conv2d in a module lie in a memory format.

    Args:
        module: Changed in place.
        memory_format: ``channels_last`` or ``contiguous_format``.

    Returns:
        The module.
    """
    for child in module.modules():
        if isinstance(child, Conv2d):
            weight = child.weight
            weight.data = weight.detach().clone(memory_format=memory_format)
    return module
