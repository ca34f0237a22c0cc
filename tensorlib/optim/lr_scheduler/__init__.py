"""Learning-rate schedules, with PyTorch's names, formulas and checkpoints.

=========================  ================================================================
`base`                     LRScheduler: the clock, the checkpoint, the two forms of a schedule
`decay`                    StepLR, MultiStepLR, ConstantLR, LinearLR, ExponentialLR,
                           PolynomialLR, LambdaLR, MultiplicativeLR
`cosine`                   CosineAnnealingLR, CosineAnnealingWarmRestarts
`cyclic`                   CyclicLR, OneCycleLR
`combine`                  SequentialLR, ChainedScheduler
`plateau`                  ReduceLROnPlateau
=========================  ================================================================
"""

from tensorlib.optim.lr_scheduler.base import LRScheduler
from tensorlib.optim.lr_scheduler.combine import ChainedScheduler, SequentialLR
from tensorlib.optim.lr_scheduler.cosine import CosineAnnealingLR, CosineAnnealingWarmRestarts
from tensorlib.optim.lr_scheduler.cyclic import CyclicLR, OneCycleLR
from tensorlib.optim.lr_scheduler.decay import (
    ConstantLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from tensorlib.optim.lr_scheduler.plateau import ReduceLROnPlateau

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]
