"""Moving a module to another device, and converting it to another dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

import tensorlib
from tensorlib.autograd import no_grad
from tensorlib.errors import ArgumentTypeError
from tensorlib.tensor import Tensor


class ConversionMethods:
    """The methods of `Module` that convert every parameter and buffer, in place.

    Parameters stay the same objects over other memory, so that optimizers keep them; buffers are
    replaced.
    """

    _parameters: dict[str, Any]
    _buffers: dict[str, Any]
    children: Callable[[], Iterator[Any]]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Converts every tensor by a function; every method below ends here."""
        if recurse:
            for child in self.children():
                child._apply(fn)
        with no_grad():
            for p in self._parameters.values():
                if p is None:
                    continue
                grad, p.grad = p.grad, None
                p.data = fn(p.data)
                p.grad = None if grad is None else fn(grad)
            for name, b in self._buffers.items():
                if b is not None:
                    self._buffers[name] = fn(b)
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves parameters and buffers, and converts those that are floating point.

        Call it as ``to(device)``, ``to(dtype)``, ``to(device, dtype)`` or ``to(tensor)``, with
        ``non_blocking`` where it applies; ``memory_format`` orders what has 4 or 5 dimensions.

        Raises:
            ArgumentTypeError: A dtype that is neither floating point nor complex.
            ShapeError: A memory format for 4 dimensions and a parameter of 5, or the reverse.
        """
        device, dtype, non_blocking = _parse_to(*args, **kwargs)
        memory_format = kwargs.get("memory_format")
        if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
            raise ArgumentTypeError(
                "nn.Module.to only accepts floating point or complex dtypes, but got desired "
                f"dtype={dtype}"
            )

        def convert(t: Tensor) -> Tensor:
            converts = dtype is not None and (t.is_floating_point() or t.is_complex())
            return t.to(
                device=t.device if device is None else device,
                dtype=dtype if converts else t.dtype,
                non_blocking=non_blocking,
                memory_format=memory_format if t.ndim in (4, 5) else None,
            )

        return self._apply(convert)

    def to_empty(self, *, device: Any, recurse: bool = True) -> Self:
        """Moves parameters and buffers without their values."""
        return self._apply(lambda t: tensorlib.empty_like(t, device=device), recurse=recurse)

    def cpu(self) -> Self:
        """Moves all parameters and buffers to the CPU."""
        return self._apply(lambda t: t.cpu())

    def cuda(self, device: Any = None) -> Self:
        """Moves all parameters and buffers to a GPU, by default the current one."""
        return self._apply(lambda t: t.cuda(device))

    def type(self, dst_type: Any) -> Self:
        """Converts all parameters and buffers."""
        return self._apply(lambda t: t.type(dst_type))

    def _convert_floating(self, dtype: Any) -> Self:
        return self._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)

    def float(self) -> Self:
        """Converts floating-point parameters and buffers to float32."""
        return self._convert_floating(tensorlib.float32)

    def double(self) -> Self:
        """Converts floating-point parameters and buffers to float64."""
        return self._convert_floating(tensorlib.float64)

    def half(self) -> Self:
        """Converts floating-point parameters and buffers to float16."""
        return self._convert_floating(tensorlib.float16)

    def bfloat16(self) -> Self:
        """Converts floating-point parameters and buffers to bfloat16."""
        return self._convert_floating(tensorlib.bfloat16)


def _parse_to(*args: Any, **kwargs: Any) -> tuple[Any, Any, bool]:
    """The device, dtype and non_blocking of a call of ``to``."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    non_blocking = kwargs.get("non_blocking", False)
    for value in (*args, kwargs.get("tensor")):
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, bool):
            non_blocking = value
        elif isinstance(value, tensorlib.dtype):
            dtype = value
        elif value is not None:
            device = tensorlib.device(value)
    return device, dtype, non_blocking
