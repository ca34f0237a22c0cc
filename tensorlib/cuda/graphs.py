"""CUDA graphs, under torch's name of the module; see `tensorlib.backend.cuda.graphs`."""

from ..backend.cuda.graphed import make_graphed_callables
from ..backend.cuda.graphs import (
    CUDAGraph,
    graph,
    graph_pool_handle,
    is_current_stream_capturing,
)

__all__ = [
    "CUDAGraph",
    "graph",
    "graph_pool_handle",
    "is_current_stream_capturing",
    "make_graphed_callables",
]
