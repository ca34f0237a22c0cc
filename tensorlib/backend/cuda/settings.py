"""What the user allows the GPU's libraries: `tensorlib.backends.cuda.matmul` and `.cudnn`."""

from __future__ import annotations

from ... import execution
from ...errors import ArgumentError

PRECISIONS = ("highest", "high", "medium")


class Matmul:
    """How float32 matrices are multiplied on the GPU.

    Attributes:
        precision: "highest" multiplies in float32; "high" and "medium" round each factor to TF32
            (10 bits of mantissa) first, which is several times faster; sums stay in float32.
    """

    precision = "highest"

    @property
    def allow_tf32(self) -> bool:
        """Whether factors may be rounded to TF32."""
        return self.precision != "highest"

    @allow_tf32.setter
    def allow_tf32(self, allowed: bool) -> None:
        self.precision = "high" if allowed else "highest"


class Cudnn:
    """How cuDNN is used for convolutions and attention.

    Attributes:
        enabled: Whether it is used at all.
        benchmark: Time the plans for each new shape, and keep the fastest.
        deterministic: Only plans that give the same bits in every run.
        allow_tf32: Whether convolutions of float32 may round factors to TF32.
    """

    enabled = True
    benchmark = False
    deterministic = False
    allow_tf32 = True

    def is_available(self) -> bool:
        """Whether cuDNN and its frontend are installed, and there is a GPU."""
        from ..cuda_backend import is_available
        from . import dnn

        return is_available() and dnn.library() is not None

    def version(self) -> int | None:
        """cuDNN's version, 92800 for 9.28.0; None where it is not installed."""
        from . import dnn

        found = dnn.library()
        return None if found is None else int(found.backend_version())


MATMUL = Matmul()
CUDNN = Cudnn()


def cudnn_is_deterministic() -> bool:
    """Whether cuDNN must give the same bits in every run."""
    return CUDNN.deterministic or execution.are_deterministic_algorithms_enabled()


def set_float32_matmul_precision(precision: str) -> None:
    """Say how float32 matrices may be multiplied on the GPU; on the CPU nothing changes.

    Args:
        precision: "highest" (float32), "high" or "medium" (TF32).

    Raises:
        ArgumentError: another word.
    """
    if precision not in PRECISIONS:
        raise ArgumentError(
            f"set_float32_matmul_precision: received {precision!r}; pass one of {PRECISIONS}"
        )
    MATMUL.precision = precision


def get_float32_matmul_precision() -> str:
    """How float32 matrices may be multiplied on the GPU."""
    return MATMUL.precision
