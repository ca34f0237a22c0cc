"""Losses of classifiers against PyTorch, closed forms and finite differences."""

import numpy as np
import pytest
from scipy import special

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib.autograd import gradcheck, gradgradcheck
from tensorlib.errors import ArgumentError, DimensionError, DtypeError, ShapeError

REDUCTIONS = ("none", "mean", "sum")


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape) * 3


def leaf(array):
    return tl.tensor(array.tolist(), dtype=tl.float64, requires_grad=True)


def integers(array):
    return tl.tensor(array.tolist())


SHAPES = {
    "matrix": ((6, 5), np.array([0, 4, 2, 2, -100, 1])),
    "image": ((2, 3, 2, 2), np.array([[[0, 1], [2, -100]], [[1, 1], [0, 2]]])),
    "vector": ((4,), np.array(2)),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_is_the_closed_form(reduction, device):
    x, target = values(6, 5), np.array([0, 4, 2, 2, -1, 1])
    each = special.logsumexp(x, axis=1) - x[np.arange(6), target]
    each[4] = 0
    expected = {"none": each, "mean": each.sum() / 5, "sum": each.sum()}[reduction]
    found = F.cross_entropy(
        tl.from_numpy(x).to(device),
        integers(target).to(device),
        ignore_index=-1,
        reduction=reduction,
    )
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-12)


def test_gradient_of_the_mean_is_softmax_minus_one_hot():
    x, target = values(6, 5), np.array([0, 4, 2, 2, 3, 1])
    logits = leaf(x)
    F.cross_entropy(logits, integers(target)).backward()
    expected = (special.softmax(x, axis=1) - np.eye(5)[target]) / 6
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-15)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_class_indices_as_torch(shape, reduction, smoothing, weighted, same_as_torch):
    size, target = SHAPES[shape]
    classes = size[1] if len(size) > 1 else size[0]
    weight = np.arange(1.0, classes + 1) / 2 if weighted else None

    def call(F, x, target, weight):
        weight = None if weight is None else weight.detach()
        return F.cross_entropy(x, target, weight, reduction=reduction, label_smoothing=smoothing)

    same_as_torch(call, values(*size), target, weight)
    if not smoothing:
        same_as_torch(
            lambda F, x, t, w: F.nll_loss(
                F.log_softmax(x, 0 if x.ndim == 1 else 1), t, None if w is None else w.detach(),
                reduction=reduction,
            ),
            values(*size), target, weight,
        )  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 4), (4,)])
def test_class_probabilities_as_torch(reduction, smoothing, shape, same_as_torch):
    target = special.softmax(values(*shape, seed=1), axis=-1)
    classes = shape[1] if len(shape) > 1 else shape[0]
    weight = np.arange(1.0, classes + 1)

    def call(F, x, target, weight):
        weight = None if weight is None else weight.detach()
        return F.cross_entropy(x, target, weight, reduction=reduction, label_smoothing=smoothing)

    same_as_torch(call, values(*shape), target, weight)
    same_as_torch(call, values(*shape), target, None)


def test_a_class_may_be_ignored(same_as_torch):
    target = np.array([0, 4, 2, 2, 3, 1])
    same_as_torch(lambda F, x, t: F.cross_entropy(x, t, ignore_index=2), values(6, 5), target)
    ignored = F.cross_entropy(
        leaf(values(6, 5)), integers(target), ignore_index=2, reduction="none"
    )
    assert (ignored == 0).tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("dtype", [tl.int32, tl.uint8], ids=str)
def test_narrow_class_indices_are_welcome(dtype):
    x, target = tl.from_numpy(values(3, 5)), tl.tensor([0, 4, 2])
    found = F.cross_entropy(x, target.to(dtype))
    assert found.item() == F.cross_entropy(x, target).item()


def test_targets_edited_before_backward_are_noticed():
    x, target = leaf(values(3, 5)), tl.tensor([0, 4, 2])
    loss = F.cross_entropy(x, target)
    target[0] = 1
    with pytest.raises(tl.errors.AutogradError, match="modified by an in"):
        loss.backward()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_derivatives(smoothing):
    target = integers(np.array([0, 2, -100]))
    x = leaf(values(3, 4))
    assert gradcheck(lambda x: F.cross_entropy(x, target, label_smoothing=smoothing), x)
    assert gradgradcheck(lambda x: F.cross_entropy(x, target, label_smoothing=smoothing), x)
    assert gradgradcheck(lambda x: F.cross_entropy(x, target, reduction="none"), x)


def test_cross_entropy_of_extreme_logits_is_finite():
    x = tl.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = F.cross_entropy(x, tl.tensor([0, 0]), reduction="none")
    np.testing.assert_array_equal(loss.detach().numpy(), [0, 2e4])
    loss.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[0, 0], [-1, 1]])
    masked = F.cross_entropy(tl.tensor([[0.0, -np.inf]]), tl.tensor([0]))
    assert masked.item() == 0


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16], ids=str)
def test_cross_entropy_of_half_precision(dtype):
    x = tl.tensor(values(40, 1000).tolist()).to(dtype).requires_grad_()
    target = tl.arange(40)
    loss = F.cross_entropy(x, target)
    wide = x.detach().double().numpy()
    expected = (special.logsumexp(wide, axis=1) - wide[np.arange(40), np.arange(40)]).mean()
    assert loss.dtype == dtype
    assert abs(loss.item() - expected) < 0.02 * expected
    loss.backward()
    assert x.grad.dtype == dtype


def test_all_ignored_is_nan_and_an_empty_batch_too():
    assert np.isnan(F.cross_entropy(tl.zeros(2, 3), tl.tensor([-100, -100])).item())
    assert np.isnan(F.cross_entropy(tl.zeros(0, 3), tl.zeros(0, dtype=tl.int64)).item())
    assert F.cross_entropy(tl.zeros(0, 3), tl.zeros(0, dtype=tl.int64), reduction="sum").item() == 0


def test_a_large_batch_is_worked_on_in_blocks():
    x, target = values(700, 300), np.arange(700) % 300
    expected = special.logsumexp(x, axis=1) - x[np.arange(700), target]
    found = F.cross_entropy(tl.from_numpy(x), integers(target), reduction="none")
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_binary_cross_entropy(reduction, same_as_torch):
    p = np.array([[0.1, 0.5, 0.9], [0.01, 0.99, 0.25]])
    y = np.array([[0.0, 1.0, 0.3], [0.0, 1.0, 1.0]])
    w = np.array([1.0, 2.0, 3.0])
    same_as_torch(lambda F, p, y: F.binary_cross_entropy(p, y, reduction=reduction), p, y)
    same_as_torch(
        lambda F, p, y, w: F.binary_cross_entropy(p, y, w.detach(), reduction=reduction), p, y, w
    )


def test_binary_cross_entropy_of_certain_predictions_is_finite(same_as_torch):
    def call(F, p, y):
        return F.binary_cross_entropy(p, y.detach(), reduction="none")

    p, y = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0])
    np.testing.assert_array_equal(call(F, leaf(p), leaf(y)).detach().numpy(), [0, 100, 100, 0])
    same_as_torch(call, p, y, rtol=1e-7)  # torch's 1e-12 is a single-precision number


def test_binary_cross_entropy_derivatives():
    p, y = leaf(np.array([0.1, 0.5, 0.9])), leaf(np.array([0.2, 0.9, 0.3]))
    assert gradcheck(F.binary_cross_entropy, (p, y))
    assert gradgradcheck(F.binary_cross_entropy, (p, y))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_binary_cross_entropy_with_logits(reduction, same_as_torch):
    x = np.array([[-300.0, -2.0, 0.4], [0.0, 3.0, 300.0]])
    y = np.array([[0.0, 1.0, 0.3], [0.0, 1.0, 1.0]])
    w = np.array([1.0, 2.0, 3.0])
    expected = -(y * special.log_expit(x) + (1 - y) * special.log_expit(-x))
    found = F.binary_cross_entropy_with_logits(leaf(x), leaf(y), reduction="none")
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    for options in ({}, {"weight": w}, {"pos_weight": w}, {"weight": w, "pos_weight": w[::-1]}):

        def call(F, x, y, options=options):
            library = tl if isinstance(x, tl.Tensor) else __import__("torch")
            made = {k: library.tensor(v.tolist(), dtype=x.dtype) for k, v in options.items()}
            return F.binary_cross_entropy_with_logits(x, y, reduction=reduction, **made)

        same_as_torch(call, x, y)
    logits = leaf(np.array([-2.0, 0.4, 3.0]))
    target = leaf(np.array([0.0, 0.3, 1.0]))
    assert gradcheck(F.binary_cross_entropy_with_logits, (logits, target))
    assert gradgradcheck(F.binary_cross_entropy_with_logits, (logits, target))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_margins_as_torch(reduction, same_as_torch):
    x, signs = values(4, 3), np.sign(values(4, 3, seed=1))
    bits, classes = (signs > 0).astype("float64"), np.array([0, 2, 1, 2])
    same_as_torch(lambda F, x, y: F.soft_margin_loss(x, y.detach(), reduction=reduction), x, signs)
    same_as_torch(
        lambda F, x, y: F.multilabel_soft_margin_loss(x, y.detach(), reduction=reduction), x, bits
    )
    for p, margin in ((1, 1.0), (2, 0.7)):
        same_as_torch(
            lambda F, x, t, p=p, m=margin: F.multi_margin_loss(x, t, p, m, reduction=reduction),
            x,
            classes,
        )
        same_as_torch(
            lambda F, x, t, w, p=p, m=margin: F.multi_margin_loss(
                x, t, p, m, weight=w.detach(), reduction=reduction
            ),
            x, classes, np.array([1.0, 2.0, 0.5]),
        )  # fmt: skip
    same_as_torch(lambda F, x, t: F.multi_margin_loss(x, t, reduction=reduction), x[0], np.array(1))


def test_margin_derivatives():
    x = leaf(values(4, 3))
    signs = tl.tensor(np.sign(values(4, 3, seed=1)).tolist(), dtype=tl.float64)
    classes = tl.tensor([0, 2, 1, 2])
    for call in (
        lambda x: F.soft_margin_loss(x, signs),
        lambda x: F.multilabel_soft_margin_loss(x, (signs + 1) / 2),
        lambda x: F.multi_margin_loss(x, classes, p=2),
    ):
        assert gradcheck(call, x)
        assert gradgradcheck(call, x)


def test_legacy_reduction_arguments_warn():
    x, target = tl.from_numpy(values(3, 4)), tl.tensor([0, 1, 2])
    for legacy, reduction in (
        ({"size_average": False}, "sum"), ({"reduce": False}, "none"),
        ({"size_average": True}, "mean")
    ):  # fmt: skip
        with pytest.warns(UserWarning, match="size_average and reduce"):
            found = F.cross_entropy(x, target, **legacy)
        expected = F.cross_entropy(x, target, reduction=reduction)
        np.testing.assert_array_equal(found.numpy(), expected.numpy())


LOGITS, CLASSES = tl.zeros(3, 5), tl.tensor([0, 1, 4])


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ShapeError, r"batch_size \(3\) to match target batch_size \(2\)",
         lambda: F.cross_entropy(LOGITS, CLASSES[:2])),
        (ValueError, "batch_size", lambda: F.nll_loss(LOGITS, CLASSES[:2])),
        (DtypeError, r"convert it with .long\(\)",
         lambda: F.cross_entropy(LOGITS, CLASSES.float())),
        (DimensionError, r"target 5 is out of bounds for 5 classes",
         lambda: F.cross_entropy(LOGITS, CLASSES + 1)),
        (DimensionError, "target -1 is out of bounds", lambda: F.nll_loss(LOGITS, CLASSES - 1)),
        (ShapeError, r"target size \[2, 3\], got \[2, 4\]",
         lambda: F.cross_entropy(tl.zeros(2, 5, 3), tl.zeros(2, 4, dtype=tl.int64))),
        (DtypeError, "class probabilities", lambda: F.cross_entropy(LOGITS, LOGITS.long())),
        (DtypeError, "received a tensorlib.int64", lambda: F.cross_entropy(LOGITS.long(), CLASSES)),
        (ShapeError, "either for all 5 classes",
         lambda: F.cross_entropy(LOGITS, CLASSES, tl.ones(4))),
        (ArgumentError, "label_smoothing",
         lambda: F.cross_entropy(LOGITS, CLASSES, label_smoothing=2.0)),
        (ArgumentError, "not a valid value for reduction",
         lambda: F.cross_entropy(LOGITS, CLASSES, reduction="avg")),
        (ShapeError, "0-d", lambda: F.cross_entropy(tl.tensor(1.0), tl.tensor(0))),
        (ValueError, "same as input size",
         lambda: F.binary_cross_entropy(tl.zeros(3), tl.zeros(4))),
        (ArgumentError, "elements of input should be between 0 and 1",
         lambda: F.binary_cross_entropy(tl.tensor([1.5]), tl.ones(1))),
        (ArgumentError, "elements of target should be between 0 and 1",
         lambda: F.binary_cross_entropy(tl.ones(1), tl.tensor([-0.5]))),
        (ShapeError, "same as input size",
         lambda: F.binary_cross_entropy_with_logits(tl.zeros(3), tl.zeros(3, 1))),
        (ArgumentError, "only 1 and 2", lambda: F.multi_margin_loss(LOGITS, CLASSES, p=3)),
        (DimensionError, "target 5", lambda: F.multi_margin_loss(LOGITS, CLASSES + 1)),
    ],
)  # fmt: skip
def test_bad_arguments(error, message, call):
    with pytest.raises(error, match=message):
        call()
