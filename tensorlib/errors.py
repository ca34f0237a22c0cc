"""Every exception that tensorlib raises by itself.

Each also derives from the builtin exception that PyTorch raises in the same place, so that code
which catches ``RuntimeError`` or ``ValueError`` keeps working::

    TensorlibError
    ├── ShapeError     (RuntimeError, ValueError)  shapes that do not fit together
    ├── DtypeError                 (RuntimeError)  a dtype that the operation cannot take
    ├── DeviceError                (RuntimeError)  mixed devices, or a device that is not there
    ├── OutOfMemoryError           (RuntimeError)  a GPU has not as much memory as an array needs
    ├── GraphCaptureError          (RuntimeError)  a CUDA graph cannot hold what a step does
    ├── AutogradError              (RuntimeError)  the graph, backward, in-place edits
    ├── ArgumentError  (RuntimeError, ValueError)  a value out of its range
    ├── ArgumentTypeError          (TypeError)     a value of the wrong kind
    ├── DimensionError             (IndexError)    a dimension or index out of range
    ├── StateDictError             (RuntimeError)  keys or shapes that do not match the module
    ├── SerializationError         (RuntimeError, UnpicklingError)  a damaged or unsafe file
    ├── DistributedError           (RuntimeError)  process groups and collectives
    │   ├── CollectiveMismatchError                ranks called different collectives
    │   ├── CollectiveTimeoutError                 a rank did not arrive in time
    │   ├── ReplicaError                           ranks have different parameters or buffers
    │   ├── NonFiniteGradientError                 a rank's gradient has NaN or infinity
    │   └── BackendUnavailableError                mpi4py, MPI or NCCL is not installed
    └── LaunchError                (RuntimeError)  tlrun: no MPI, no script, wrong options

Messages name the subject, what was received, what is expected, and the remedy.
"""

import pickle


class TensorlibError(Exception):
    """Base class of every error that tensorlib raises by itself."""


class ShapeError(TensorlibError, RuntimeError, ValueError):
    """Shapes that do not fit together."""


class DtypeError(TensorlibError, RuntimeError):
    """A dtype that the operation cannot take."""


class DeviceError(TensorlibError, RuntimeError):
    """Tensors on different devices, or a device that is not available."""


class OutOfMemoryError(TensorlibError, RuntimeError, MemoryError):
    """A GPU has not as much memory as an array needs."""


class GraphCaptureError(TensorlibError, RuntimeError):
    """Something that a CUDA graph cannot hold; says in which operation."""


class AutogradError(TensorlibError, RuntimeError):
    """A graph that cannot be differentiated: freed, stale, or edited in place."""


class ArgumentError(TensorlibError, RuntimeError, ValueError):
    """A value out of its range."""


class ArgumentTypeError(TensorlibError, TypeError):
    """A value of the wrong kind."""


class DimensionError(TensorlibError, IndexError):
    """A dimension or an index out of range."""


class StateDictError(TensorlibError, RuntimeError):
    """A state_dict whose keys or shapes do not match the module."""


class SerializationError(TensorlibError, RuntimeError, pickle.UnpicklingError):
    """A file that is damaged, or that would run code when loaded."""


class DistributedError(TensorlibError, RuntimeError):
    """A process group or a collective failed."""


class CollectiveMismatchError(DistributedError):
    """Ranks called different collectives, or passed different shapes or dtypes."""


class CollectiveTimeoutError(DistributedError):
    """A rank did not arrive at a collective in time."""


class ReplicaError(DistributedError):
    """The ranks' copies of a module are no longer the same."""


class NonFiniteGradientError(DistributedError):
    """A gradient has NaN or infinity; says on which rank, of which parameter, in which step."""


class BackendUnavailableError(DistributedError):
    """The communication library that was asked for is not installed."""


class LaunchError(TensorlibError, RuntimeError):
    """tlrun cannot start the job."""
