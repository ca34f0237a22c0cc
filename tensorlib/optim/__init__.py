"""Optimizers and learning-rate schedules.

An optimizer is two methods, ``init_state`` and ``update`` (see ``optimizer``); a schedule changes
the ``"lr"`` of an optimizer's groups (see ``lr_scheduler``).
"""

from tensorlib.optim import lr_scheduler as lr_scheduler
from tensorlib.optim.adadelta import Adadelta
from tensorlib.optim.adagrad import Adagrad
from tensorlib.optim.adam import Adam, AdamW
from tensorlib.optim.optimizer import Optimizer
from tensorlib.optim.rmsprop import RMSprop
from tensorlib.optim.sgd import SGD

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSprop", "lr_scheduler"]
