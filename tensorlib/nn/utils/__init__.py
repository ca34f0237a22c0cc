"""Functions on gradients and parameters of whole networks."""

from tensorlib.nn.utils import rnn as rnn
from tensorlib.nn.utils.clip_grad import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from tensorlib.nn.utils.convert_parameters import parameters_to_vector, vector_to_parameters
from tensorlib.nn.utils.memory_format import convert_conv2d_weight_memory_format

__all__ = [
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "convert_conv2d_weight_memory_format",
    "get_total_norm",
    "parameters_to_vector",
    "rnn",
    "vector_to_parameters",
]
