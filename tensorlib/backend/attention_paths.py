"""Which ways of computing attention may be taken: torch's switches, for CPU and GPU.

==============  ==================================================================
cudnn           cuDNN's fused kernels: half precisions on a GPU
flash           the own blocked kernels, of the CPU and of the GPU
mem_efficient   the same kernels; they are closed if both names are
math            array expressions, which keep the whole matrix of weights
==============  ==================================================================

They are tried in this order; each takes what the ones before do not. Backward follows the switches
too, as they are when it runs; where none fits it takes array expressions.
"""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError


class Paths:
    """The switches; all are open."""

    cudnn = flash = mem_efficient = math = True

    @property
    def own(self) -> bool:
        """Whether the own kernels may be taken."""
        return self.flash or self.mem_efficient

    def kernel(self, b: Any, name: str, arrays: Any) -> Any:
        """The backend's kernel for arrays (cuDNN's or the own one), if there is an open one."""
        return b.kernel(name, *arrays) if self.own or (self.cudnn and b.name == "cuda") else None


PATHS = Paths()


def refuse(query: Any, mask: Any) -> None:
    """Raise, since no open way takes an attention.

    Raises:
        ArgumentError: always.
    """
    opened = [n for n in ("cudnn", "flash", "mem_efficient", "math") if getattr(PATHS, n)]
    how = "without a mask" if mask is None else f"with a {mask.dtype} mask"
    raise ArgumentError(
        f"scaled_dot_product_attention: no kernel for {query.dtype}{list(query.shape)} {how} among "
        f"those that are allowed ({', '.join(opened) or 'none'}); allow SDPBackend.MATH too"
    )
