"""The queue of works, where callbacks come to it while it is being worked on."""

from typing import Any

import pytest

from tensorlib.distributed.call import Call
from tensorlib.distributed.solo import SoloCommunicator
from tensorlib.distributed.work import Work, is_busy, progress


class Flag:
    """Something to wait for, which comes when a test says so."""

    def __init__(self, there: bool = False) -> None:
        self.there = there

    def Test(self) -> bool:
        return self.there


def begun(group: Any, *requests: Any, queued: bool = True) -> Work:
    steps = (request for request in requests)
    return Work(group, Call(1, "work", (), ""), steps).start(queued)


@pytest.fixture
def group() -> Any:
    return SoloCommunicator(5.0)


@pytest.mark.parametrize("queued", [True, False])
def test_works_that_a_callback_starts_are_not_lost(group, queued) -> None:
    first, second, third = Flag(), Flag(), Flag()
    begun_later: list[Work] = []
    one = begun(group, first, queued=queued)
    two = begun(group, second, queued=queued)
    one.then(lambda: begun_later.append(begun(group, Flag(True), queued=queued)))
    one.then(lambda: begun_later.append(begun(group, third, queued=queued)))
    first.there = True
    progress()
    assert one.is_over and not two.is_over
    second.there = True
    progress()
    assert two.is_over and [work.is_over for work in begun_later] == [True, False]
    third.there = True
    assert all(work.wait() for work in begun_later)
    assert not is_busy(group)


def test_a_queue_that_a_callback_empties_and_fills_again_stays(group) -> None:
    first, last = Flag(), Flag()
    begun_later: list[Work] = []
    one = begun(group, first)
    one.then(lambda: begun_later.append(begun(group, Flag(True))))  # over at once: an empty queue
    one.then(lambda: begun_later.append(begun(group, last)))
    first.there = True
    progress()
    assert one.is_over and is_busy(group)
    last.there = True
    assert begun_later[1].wait()
    assert not is_busy(group)


def test_a_work_whose_own_step_moves_all_forward_goes_on(group) -> None:
    there = Flag()

    def steps() -> Any:
        yield there
        progress()  # as the end of an object may, in the middle of it
        yield Flag(True)
        return 3

    work = Work(group, Call(1, "work", (), ""), steps()).start(queued=True)
    there.there = True
    assert work.wait() and work.result == 3
