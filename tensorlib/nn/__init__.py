"""Neural networks: `Module`, the layers, and what initializes and trains them.

==============  ================================================================================
`module`        Module, the root of all layers; with `hooks`, `state_dict` and `conversion`
`parameter`     Parameter and Buffer, the tensors that a module owns
`containers`    Sequential, ModuleList, ModuleDict, ParameterList, ParameterDict
`layers`        one file per family of layers
`functional`    what the layers compute, as functions
`init`          initial values
`utils`         gradient clipping, parameters as a vector
`parallel`      DistributedDataParallel, from tensorlib.distributed
==============  ================================================================================
"""

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
from tensorlib.nn.layers.shape import Flatten, Unflatten
from tensorlib.nn.module import Module
from tensorlib.nn.parameter import Buffer, Parameter

__all__ = [
    "ELU",
    "GELU",
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
    "GroupNorm",
    "Hardtanh",
    "HuberLoss",
    "Identity",
    "KLDivLoss",
    "L1Loss",
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
    "NLLLoss",
    "Parameter",
    "ParameterDict",
    "ParameterList",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softplus",
    "Tanh",
    "Unflatten",
    "functional",
    "init",
    "parallel",
    "utils",
]
