"""Primitives: one block per operation, a forward and one gradient rule per differentiable input.

::

    @primitive(x=lambda g, y: g * y, y=lambda g, x: g * x)
    def mul(b, x, y):
        return b.multiply(x, y)

Positional parameters of the forward (after the backend `b`) are *inputs*: tensors, or scalars
standing in for them. Keyword-only parameters are *options*. A rule's parameter names say what
backward keeps: ``g`` is the gradient of the output; ``out``, an input, ``<input>_shape`` or an
option are saved; ``b`` is the backend and ``needs`` tells which inputs want a gradient. With
``outputs=("out", "mean")`` the forward returns a tuple, ``g`` is a list, and a rule keeps only the
outputs that it names. Rules see raw arrays in ordinary backward and tensors under ``create_graph``,
so a rule is built from operators and primitives only, which take both.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import numpy as np

from ..backend import get_backend, is_array
from ..backend.base import LARGE
from ..dtypes import FLOATING, FROM_NUMPY, HALF, as_dtype, dtype, get_default_dtype, result_dtype
from ..errors import ArgumentTypeError, DimensionError, DtypeError, ShapeError, TensorlibError
from .core import Node, TensorBase, apply, state, wrap

PRIMITIVES: dict[str, Primitive] = {}
COMPLEX_BIT = 1 << 62  # in a mask: the operation is on complex numbers
_TORCH_NAMES = {"input": "x", "self": "x", "other": "y", "exponent": "y"}


class Primitive:
    """An operation that the engine can differentiate, trace and dispatch.

    Attributes:
        name: The name in `PRIMITIVES`.
        forward: ``forward(b, *inputs, **options)`` on raw arrays; returns an array or a tuple of
            them.
        rules_for: The gradient rules by input name; the key "vjp" holds one rule for all inputs,
            "*" one for a variadic primitive's inputs, and the names of the last two inputs, joined
            by "__", one for both where both want a gradient.
        promotion: How input dtypes are combined: "arithmetic", "float" (integers become the default
            float), or None (left as they are).
        view: The result shares the memory of the first input.
        reference: A plain expression of the same function on tensors, differentiated under
            `create_graph` in place of fused rules.
        holomorphic: Rules for complex numbers run between conjugations.
        factory: The primitive has no tensor inputs; ``device`` is among its options.
        outputs: The names of several outputs, by which rules ask for single ones.
        mixed: On a GPU the gradient of the (first) output may be of another floating precision.
        reads_halves: On a GPU two large arrays of one shape, one of a half precision and one of
            float32, go to the forward as they are.
        adds: "reads" or "writes": the rule gets, in a list behind the outputs' gradients, what the
            first input's is to be added to, which it reads, or writes to and returns; None on the
            CPU, and where there is nothing, or nothing that may be written to.
    """

    def __init__(
        self, forward: Callable[..., Any], settings: dict[str, Any], rules: dict[str, Any]
    ) -> None:
        self.name = forward.__name__.removesuffix("_p")
        self.forward = forward
        self.rules_for = rules
        self.promotion: str | None = settings["promotion"]
        self.view: bool = settings["view"]
        self.detaches: bool = settings["detaches"]
        self.reference: Callable[..., Any] | None = settings["reference"]
        self.holomorphic: bool = settings["holomorphic"]
        self.factory: bool = settings["factory"]
        self.outputs: tuple[str, ...] = settings["outputs"]
        self.materialize: bool = settings["materialize"]
        self.mixed: bool = settings["mixed"]
        self.reads_halves: bool = settings["reads_halves"]
        self.adds: str = settings["adds"]
        self.rules: dict[int, Rules] = {}
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.inputs = [
            p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
        ]
        self.options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        self.takes_out = self.options.pop("out", self) is None
        promoted = settings["promoted"] or self.inputs
        self.promoted = [i for i, name in enumerate(self.inputs) if name in promoted]
        functools.update_wrapper(self, forward)
        for key, rule in rules.items():
            self._check_rule(key, rule)

    def _check_rule(self, key: str, rule: Any) -> None:
        known = {"g", "out", "b", "needs", *self.inputs, *self.options, *self.outputs}
        known.update(f"{n}_shape" for n in self.inputs)
        names = list(inspect.signature(rule).parameters)
        keys = (*self.inputs, "vjp", "__".join(self.inputs[-2:]))
        if key not in keys or names[0] != "g" or not known.issuperset(names):
            raise ArgumentTypeError(
                f"primitive {self.name}: rule {key}({', '.join(names)}) does not fit its forward"
            )
        if "b" in names and self.reference is None:
            raise ArgumentTypeError(
                f"primitive {self.name}: a rule that calls kernels needs reference="
            )

    def __call__(self, *args: Any, out: Any = None, **options: Any) -> Any:
        """Apply to tensors; inside a gradient rule also to raw arrays, unrecorded."""
        if options:
            args, options = self._bind(args, options)
        result = apply(self, args, options)
        return result if out is None else write_out(out, result)

    def _bind(
        self, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Move inputs that were passed by name (torch's or ours) to their positions."""
        named = {_TORCH_NAMES.get(k, k): k for k in options}
        given = list(args)
        for name in self.inputs[len(args) :]:
            if name in named:
                given.append(options.pop(named[name]))
        return tuple(given), options

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<primitive {self.name}>"

    def run_raw(self, arrays: list[Any], options: dict[str, Any]) -> Any:
        """The forward on raw arrays (a rule calls a primitive), or of a factory."""
        if self.factory:
            where = options["device"]
            b = get_backend(where)
            if where.index is not None and b.elsewhere(where.index):
                with b.on(where.index):
                    return wrap(self.forward(b, *arrays, **options))
            return wrap(self.forward(b, *arrays, **options))
        if state.backward:
            for x in arrays:
                if is_array(x) or isinstance(x, np.generic):
                    return self.forward(get_backend(x), *arrays, **options)
        kinds = ", ".join(type(x).__name__ for x in arrays)
        raise ArgumentTypeError(
            f"{self.name}: received ({kinds}); at least one argument must be a Tensor: "
            "tensorlib.from_numpy() makes one of an array"
        )

    def promote(
        self, b: Any, args: tuple[Any, ...], arrays: list[Any], options: dict[str, Any]
    ) -> tuple[list[Any], int]:
        """The inputs in their common dtype, and whether rules conjugate (`COMPLEX_BIT` or 0)."""
        positions = range(len(arrays)) if self.variadic else self.promoted
        if self.promotion is not None:
            if self.reads_halves and b.name == "cuda" and _are_halves_beside_single(arrays):
                return arrays, 0
            target = self._common_dtype(arrays, positions)
            for i in positions:
                x = arrays[i]
                if x is None:
                    continue
                if not is_array(x):
                    arrays[i] = _scalar_array(b, x, target)
                elif x.dtype != target:
                    arrays[i] = x.astype(target)
        is_complex = self.holomorphic and any(
            getattr(arrays[i], "dtype", np.bool_) in _COMPLEX for i in positions
        )
        return arrays, COMPLEX_BIT if is_complex else 0

    def _common_dtype(self, arrays: list[Any], positions: Sequence[int] | range) -> Any:
        dimensioned: list[dtype] = []
        zero_d: list[dtype] = []
        scalars: list[Any] = []
        for i in positions:
            x = arrays[i]
            if is_array(x):
                (dimensioned if x.ndim else zero_d).append(as_dtype(x.dtype))
            elif isinstance(x, np.generic):
                scalars.append(x.item())
            elif isinstance(x, int | float | complex):
                scalars.append(x)
            elif x is not None:
                raise ArgumentTypeError(
                    f"{self.name}: received a {type(x).__name__} for "
                    f"{self.inputs[min(i, len(self.inputs) - 1)]!r}; pass a Tensor or a number"
                )
        found = result_dtype(dimensioned, zero_d, scalars)
        if self.promotion == "float" and found.category < FLOATING:
            found = get_default_dtype()
        return found.numpy

    def make_rules(self, mask: int, count: int) -> Rules:
        """The gradient rules for the inputs in `mask`; cached for primitives of fixed arity."""
        rules = (ComplexRules if mask & COMPLEX_BIT else Rules)(self, mask, count)
        if not self.variadic:
            self.rules[mask] = rules
        return rules

    def explain(
        self, error: Exception, arrays: list[Any], options: dict[str, Any]
    ) -> TensorlibError:
        """A typed error for what the array library refused."""
        found = [
            f"{FROM_NUMPY.get(x.dtype, x.dtype)!r}{list(x.shape)}" for x in arrays if is_array(x)
        ]
        received = f"{self.name}: received {', '.join(found).replace('tensorlib.', '')}"
        if isinstance(error, IndexError):
            return DimensionError(f"{received}; {error}")
        if isinstance(error, TypeError):
            return DtypeError(
                f"{received}; these dtypes or arguments are not supported here: {error}"
            )
        if "broadcast" in str(error):
            return ShapeError(
                f"{received}; these shapes do not broadcast: from the last dimension back, sizes "
                "must be equal or 1"
            )
        return ShapeError(f"{received}; {error}")


_HALVES_BESIDE_SINGLE = [{half, np.dtype(np.float32)} for half in HALF]
_COMPLEX = (np.dtype(np.complex64), np.dtype(np.complex128))


def _are_halves_beside_single(arrays: list[Any]) -> bool:
    x, y = arrays
    return (
        getattr(x, "shape", None) == getattr(y, "shape", ())
        and x.size > LARGE
        and {x.dtype, y.dtype} in _HALVES_BESIDE_SINGLE
    )


def _scalar_array(b: Any, value: Any, target: Any) -> Any:
    """A Python number as a 0-d array; integers wrap around as in C."""
    if isinstance(value, np.generic):
        value = value.item()
    if target.kind in "iu" and not isinstance(value, bool):
        bits = 8 * target.itemsize
        value = int(value) % (1 << bits)
        if target.kind == "i" and value >> (bits - 1):
            value -= 1 << bits
    return b.asarray(value, dtype=target)


def _snapshot(index: Any) -> Any:
    """An index whose arrays are copies: the user may write to them before backward."""
    if isinstance(index, tuple):
        return tuple([_snapshot(i) for i in index])
    return index.copy() if is_array(index) else index


INPUT, VARIADIC, OUT, SHAPE, OPTION, BACKEND, CONSTANT = range(7)


class Rules:
    """The gradient rules of a primitive for one set of inputs that want a gradient."""

    fresh = True  # results are new arrays unless they share memory with g

    def __init__(self, p: Primitive, mask: int, count: int) -> None:
        self.primitive = p
        self.materialize, self.mixed, self.adds = p.materialize, p.mixed, p.adds
        self.name = p.name
        self.vjp = p.rules_for.get("vjp") or (p.rules_for[p.inputs[0]] if p.variadic else None)
        rules = [self.vjp if self.vjp else p.rules_for.get(p.inputs[i]) for i in range(count)]
        self.wanted = [i for i in range(count) if mask >> i & 1 and rules[i] is not None]
        self.needs = tuple(i in self.wanted for i in range(count))
        called: list[Any] = [self.vjp] if self.vjp else [rules[i] for i in self.wanted]
        joint = p.rules_for.get("__".join(p.inputs[-2:])) if len(called) > 1 else None
        self.joint = joint is not None and self.wanted[-2:] == [count - 2, count - 1]
        if self.joint:
            called[-2:] = [joint]
        self.names: list[str] = []
        # Rule, number of saved values that it takes, and which: one position, or a list of them.
        self.calls: list[tuple[Callable[..., Any], int, Any]] = []
        for rule in called:
            names = list(inspect.signature(rule).parameters)[1:]
            self.names += [n for n in names if n not in self.names]
            picks = [self.names.index(n) for n in names]
            self.calls.append((rule, len(picks), picks[0] if len(picks) == 1 else picks))
        if p.reference is not None:
            self.names += [n for n in (*p.inputs, *p.options) if n not in self.names]
        self.sources = [self._source(n) for n in self.names]
        self.keeps_arrays = any(kind in (INPUT, VARIADIC, OUT) for kind, _ in self.sources)

    def _source(self, name: str) -> tuple[int, Any]:
        p = self.primitive
        if name in p.inputs:
            return (VARIADIC, None) if p.variadic else (INPUT, p.inputs.index(name))
        if name in p.options:
            return OPTION, name
        if name in p.outputs:
            return OUT, p.outputs.index(name)
        if name.endswith("_shape"):
            return SHAPE, None if p.variadic else p.inputs.index(name.removesuffix("_shape"))
        return {"out": (OUT, None), "needs": (CONSTANT, self.needs), "b": (BACKEND, None)}[name]

    def keep(
        self,
        args: tuple[Any, ...],
        arrays: Any,
        options: dict[str, Any],
        out: Any,
        out_versions: Any,
    ) -> tuple[Any, Any]:
        """What backward needs: the values that the rules name, and the version cells to check."""
        if not self.sources:
            return (), ()
        saved, versions = [], []
        for kind, key in self.sources:
            if kind == INPUT:
                x, a = arrays[key], args[key]
                saved.append(x)
                if isinstance(a, TensorBase) and a._array is x:
                    versions.append(a._writes)
            elif kind == OUT:
                saved.append(out if key is None else out[key])
                versions += out_versions if key is None else [out_versions[key]]
            elif kind == SHAPE:
                saved.append(
                    [np.shape(x) for x in arrays] if key is None else np.shape(arrays[key])
                )
            elif kind == OPTION:
                value = options[key] if key in options else self.primitive.options[key]
                saved.append(_snapshot(value) if key == "index" else value)
            elif kind == BACKEND:
                saved.append(get_backend(out if is_array(out) else out[0]))
            elif kind == CONSTANT:
                saved.append(key)
            else:
                saved.append(tuple(arrays))
                versions += [a._writes for a in args if isinstance(a, TensorBase)]
        return saved, versions

    def run(self, saved: Sequence[Any], g: Any) -> Sequence[Any]:
        """The gradients of the wanted inputs from that of the output."""
        results = []
        for rule, count, picks in self.calls:
            if count == 1:
                results.append(rule(g, saved[picks]))
            elif count:
                results.append(rule(g, *[saved[i] for i in picks]))
            else:
                results.append(rule(g))
        if self.joint:
            results += results.pop()
        return results if self.vjp is None else [results[0][i] for i in self.wanted]

    def run_tensors(self, node: Node, g: Any) -> Any:
        """The same on tensors, recorded, so that the gradients can be differentiated again."""
        values = self._saved_tensors(node)
        if self.primitive.reference is not None:
            return self._pull_reference(node, g, dict(zip(self.names, values, strict=True)))
        return self.run(values, g)

    def _saved_tensors(self, node: Node) -> list[Any]:
        values: list[Any] = []
        for (kind, key), value in zip(self.sources, node.saved, strict=True):
            if kind == VARIADIC:
                values.append([self._input_tensor(node, i, x) for i, x in enumerate(value)])
            elif kind == INPUT:
                values.append(self._input_tensor(node, key, value))
            elif kind == OUT:
                values.append(
                    _output_tensors(node, value)
                    if key is None
                    else _output_tensor(node, key, value)
                )
            else:
                values.append(value)
        return values

    def _input_tensor(self, node: Node, i: int, x: Any) -> Any:
        """A saved input as a tensor that is joined to the graph where the input was."""
        if not is_array(x):
            return x
        if i not in self.wanted:
            return wrap(x)
        edge = node.edges[self.wanted.index(i)]
        if isinstance(edge, TensorBase) and edge._array is x:
            return edge
        return _alias(x, edge)

    def _pull_reference(self, node: Node, g: Any, values: dict[str, Any]) -> list[Any]:
        from .engine import grad

        p = self.primitive
        inputs = [values[n] for n in p.inputs]
        for i, edge in zip(self.wanted, node.edges, strict=True):
            inputs[i] = _alias(inputs[i]._array, edge)
        assert p.reference is not None
        out = p.reference(*inputs, **{n: values[n] for n in p.options})
        wanted = [inputs[i] for i in self.wanted]
        if isinstance(out, tuple):
            pairs = [
                (o, gi) for o, gi in zip(out, g, strict=True) if gi is not None and o.requires_grad
            ]
            out, g = [o for o, _ in pairs], [gi for _, gi in pairs]
        return list(grad(out, wanted, g, create_graph=True, allow_unused=True))


class ComplexRules(Rules):
    """Rules for complex numbers: a holomorphic rule runs between conjugations."""

    def run(self, saved: Sequence[Any], g: Any) -> Sequence[Any]:
        """The same, with the gradients of output and inputs conjugated."""
        conj = PRIMITIVES["conj_physical"]
        several = isinstance(g, list)
        flipped = [None if x is None else conj(x) for x in g] if several else conj(g)
        return [None if r is None else conj(r) for r in super().run(saved, flipped)]


class OutputRules:
    """Passes the gradient of one output of several on to the operation's node."""

    name, fresh, keeps_arrays, adds = "output", False, False, ""

    def __init__(self, mixed: bool = False) -> None:
        self.mixed = mixed

    def run(self, saved: Any, g: Any) -> tuple[Any]:
        """The gradient as it is; the engine files it under ``node.index``."""
        return (g,)

    def run_tensors(self, node: Node, g: Any) -> tuple[Any]:
        """The same on tensors."""
        return (g,)


OUTPUT_RULES, MIXED_OUTPUT_RULES = OutputRules(), OutputRules(mixed=True)


class IdentityRules(OutputRules):
    """Passes the gradient on unchanged (the engine casts and sums it to the edge's shape)."""

    name = "alias"


IDENTITY_RULES = IdentityRules()


class ConstantRules(OutputRules):
    """The end of the graph where a constant was written over a value."""

    name = "constant"

    def run(self, saved: Any, g: Any) -> tuple[Any, ...]:
        """Nothing."""
        return ()

    def run_tensors(self, node: Node, g: Any) -> tuple[Any, ...]:
        """Nothing."""
        return ()


CONSTANT_RULES = ConstantRules()


def _alias(array: Any, edge: Any) -> Any:
    """A tensor over `array` whose gradient goes to `edge`, a node or a leaf."""
    t = wrap(array, requires_grad=True)
    t._node = Node(IDENTITY_RULES, (edge,), (), (), array.shape, array.dtype)
    return t


def _output_tensors(node: Node, out: Any) -> Any:
    """Saved outputs as tensors joined to the graph at the node that made them."""
    if not isinstance(out, tuple):
        t = wrap(out, requires_grad=True)
        t._node = node
        return t
    return tuple([_output_tensor(node, i, array) for i, array in enumerate(out)])


def _output_tensor(node: Node, i: int, array: Any) -> Any:
    from .core import output_node

    t = wrap(array, requires_grad=array.dtype.kind in "fcV")
    t._node = output_node(node, i) if t._rg else None
    return t


def write_out(out: Any, result: Any) -> Any:
    """Write `result` into the tensor (or tensors) passed as ``out=``, resizing if necessary.

    Raises:
        DtypeError: the result's dtype cannot be cast to that of `out`.
    """
    if isinstance(out, tuple | list):
        for o, r in zip(out, result, strict=True):
            write_out(o, r)
        return out
    if out is None:
        return result
    return out._receive(result)


def primitive(
    *,
    promotion: str | None = "arithmetic",
    promoted: tuple[str, ...] = (),
    view: bool = False,
    detaches: bool = False,
    holomorphic: bool = True,
    factory: bool = False,
    outputs: tuple[str, ...] = (),
    materialize: bool = True,
    mixed: bool = False,
    reads_halves: bool = False,
    adds: str = "",
    reference: Callable[..., Any] | None = None,
    **rules: Callable[..., Any],
) -> Callable[[Callable[..., Any]], Primitive]:
    """Declare a primitive: settings of `Primitive`, and the gradient rules by input name."""
    settings = {
        "promotion": promotion, "promoted": promoted, "view": view, "detaches": detaches,
        "holomorphic": holomorphic, "factory": factory, "outputs": outputs,
        "materialize": materialize, "mixed": mixed, "reads_halves": reads_halves, "adds": adds,
        "reference": reference,
    }  # fmt: skip

    def declare(forward: Callable[..., Any]) -> Primitive:
        p = Primitive(forward, settings, rules)
        if p.name in PRIMITIVES:
            raise ArgumentTypeError(f"primitive {p.name} is declared twice")
        PRIMITIVES[p.name] = p
        return p

    return declare
