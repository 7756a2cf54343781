"""When a worker is started again."""

import threading

import pytest

from clearway.serving.supervisor import LONGEST_WAIT_SECONDS, MAX_FAILED_STARTS, wait_before, way_to_start


def test_one_that_served_is_replaced_at_once() -> None:
    assert wait_before(0, 0, others=True) == 0.0
    assert wait_before(1, 0, others=False) == 0.0


def test_those_that_end_again_and_again_are_waited_for_longer_each_time() -> None:
    waits = [wait_before(short_lives, 0, others=False) for short_lives in range(1, 20)]
    assert waits == sorted(waits)  # type: ignore[type-var]
    assert waits[1:4] == [0.1, 0.2, 0.4]
    assert waits[-1] == LONGEST_WAIT_SECONDS


@pytest.mark.parametrize(("others", "waits"), [(True, True), (False, False)])
def test_a_server_is_given_up_only_when_nobody_answers(others: bool, waits: bool) -> None:
    assert (wait_before(MAX_FAILED_STARTS, MAX_FAILED_STARTS, others=others) is not None) is waits
    assert wait_before(MAX_FAILED_STARTS - 1, MAX_FAILED_STARTS - 1, others=others) is not None


def test_a_process_with_a_second_thread_is_not_copied() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert way_to_start() == "spawn"
    finally:
        done.set()
        thread.join()
