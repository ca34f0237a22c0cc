"""Neural networks: `Module`, the layers, and what initializes and trains them.

==============  ================================================================================
`module`        Module, the root of all layers; with `hooks`, `state_dict` and `conversion`
`parameter`     Parameter and Buffer, the tensors that a module owns
`containers`    Sequential, ModuleList, ModuleDict, ParameterList, ParameterDict
`layers`        one file per family of layers
`functional`    what the layers compute, as functions
`attention`     which kernels scaled_dot_product_attention may take
`init`          initial values
`utils`         gradient clipping, parameters as a vector
`parallel`      DistributedDataParallel, from tensorlib.distributed
==============  ================================================================================
"""

from typing import Any

from tensorlib.nn import attention as attention
from tensorlib.nn import functional as functional
from tensorlib.nn import init as init
from tensorlib.nn import parallel as parallel
from tensorlib.nn import utils as utils
from tensorlib.nn.containers import (
    ModuleDict,
    ModuleList,
    ParameterDict,
    ParameterList,
    Sequential,
)
from tensorlib.nn.layers.activation import (
    ELU,
    GELU,
    Hardtanh,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from tensorlib.nn.layers.attention import MultiheadAttention
from tensorlib.nn.layers.conv import Conv1d, Conv2d
from tensorlib.nn.layers.dropout import Dropout, Dropout2d
from tensorlib.nn.layers.embedding import Embedding
from tensorlib.nn.layers.linear import Identity, Linear
from tensorlib.nn.layers.loss import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
from tensorlib.nn.layers.norm import BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm, RMSNorm
from tensorlib.nn.layers.pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AvgPool1d,
    AvgPool2d,
    MaxPool1d,
    MaxPool2d,
)
from tensorlib.nn.layers.rnn import (
    GRU,
    LSTM,
    RNN,
    GRUCell,
    LSTMCell,
    RNNBase,
    RNNCell,
    RNNCellBase,
)
from tensorlib.nn.layers.shape import Flatten, Unflatten
from tensorlib.nn.layers.transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from tensorlib.nn.module import Module
from tensorlib.nn.parameter import Buffer, Parameter

__all__ = [
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Buffer",
    "Conv1d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Dropout2d",
    "Embedding",
    "Flatten",
    "GRUCell",
    "GroupNorm",
    "Hardtanh",
    "HuberLoss",
    "Identity",
    "KLDivLoss",
    "L1Loss",
    "LSTMCell",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "MaxPool1d",
    "MaxPool2d",
    "Module",
    "ModuleDict",
    "ModuleList",
    "MultiheadAttention",
    "NLLLoss",
    "Parameter",
    "ParameterDict",
    "ParameterList",
    "RMSNorm",
    "RNNBase",
    "RNNCell",
    "RNNCellBase",
    "ReLU",
    "ReLU6",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softplus",
    "Tanh",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "Unflatten",
    "functional",
    "init",
    "parallel",
    "utils",
]


def __getattr__(name: str) -> Any:
    """SyncBatchNorm needs ranks; it lives in `tensorlib.distributed`, loaded when asked for."""
    if name == "SyncBatchNorm":
        from tensorlib.distributed.sync_batch_norm import SyncBatchNorm

        return SyncBatchNorm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
