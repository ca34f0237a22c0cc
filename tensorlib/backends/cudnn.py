"""``import tensorlib.backends.cudnn as cudnn`` gives the object whose attributes scripts set."""

import sys

from ..backend.cuda.settings import CUDNN

sys.modules[__name__] = CUDNN  # type: ignore[assignment]
