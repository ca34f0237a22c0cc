"""Automatic differentiation: the tape, backward, and what users steer it with."""

from .anomaly import detect_anomaly, is_anomaly_enabled, set_detect_anomaly
from .core import Mode, Node, RemovableHandle
from .engine import backward, grad, is_in_backward, queue_callback, reachable_leaves
from .function import Function, FunctionContext, once_differentiable
from .grad_mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from .gradcheck import GradcheckError, gradcheck, gradgradcheck
from .primitive import PRIMITIVES, Primitive, primitive

__all__ = [
    "PRIMITIVES",
    "Function",
    "FunctionContext",
    "GradcheckError",
    "Mode",
    "Node",
    "Primitive",
    "RemovableHandle",
    "backward",
    "detect_anomaly",
    "enable_grad",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "inference_mode",
    "is_anomaly_enabled",
    "is_grad_enabled",
    "is_in_backward",
    "is_inference_mode_enabled",
    "no_grad",
    "once_differentiable",
    "primitive",
    "queue_callback",
    "reachable_leaves",
    "set_detect_anomaly",
    "set_grad_enabled",
]
