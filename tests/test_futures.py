"""Futures: values that arrive later, and what follows them."""

import pytest

from tensorlib.errors import TensorlibError
from tensorlib.futures import Future, collect_all, wait_all


def test_a_value_is_set_once_and_seen_by_all() -> None:
    future, seen = Future(), []
    future.add_done_callback(lambda done: seen.append(done.value()))
    assert not future.done()
    with pytest.raises(TensorlibError, match="no value yet"):
        future.value()
    future.set_result(3)
    future.add_done_callback(lambda done: seen.append(done.value() + 1))
    assert (future.done(), future.wait(), seen) == (True, 3, [3, 4])
    with pytest.raises(TensorlibError, match="set before"):
        future.set_result(4)


def test_waiting_brings_the_value_about() -> None:
    future = Future(lambda: future.set_result("here"))
    assert future.then(lambda done: done.value().upper()).wait() == "HERE"


def test_a_chain_goes_through_futures_that_callbacks_return() -> None:
    first, second = Future(), Future(lambda: second.set_result(20))
    chain = first.then(lambda done: second).then(lambda done: done.value() + 1)
    first.set_result(None)
    assert not chain.done()
    assert chain.wait() == 21


def test_errors_travel_along() -> None:
    first = Future()
    chain = first.then(lambda done: 1 / done.value()).then(lambda done: done.value())
    first.set_result(0)
    with pytest.raises(ZeroDivisionError):
        chain.wait()
    failed = Future()
    failed.set_exception(ValueError("given"))
    with pytest.raises(ValueError, match="given"):
        failed.then(lambda done: done.value()).wait()


def test_several_together() -> None:
    futures = [Future() for _ in range(3)]
    together = collect_all(futures)
    for i, future in enumerate(futures):
        assert not together.done()
        future.set_result(i)
    assert [future.value() for future in together.value()] == [0, 1, 2]
    assert wait_all(futures) == [0, 1, 2]
    assert collect_all([]).wait() == []
