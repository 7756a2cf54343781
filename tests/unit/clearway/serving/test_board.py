"""What workers tell each other in shared memory: whole or as it was before."""

import itertools
import os
import signal

import pytest

from clearway.serving.board import _HEAD, SAID_BYTES, Board


def test_each_slot_says_what_was_written_last() -> None:
    board = Board.made(3)
    assert board.read_all() == [None, None, None]
    for number in range(5):
        board.write(1, {"number": number})
        assert board.read_all() == [None, {"number": number}, None]
    board.write(1, None)
    assert board.read(1) is None


def test_other_processes_read_it_by_its_descriptor() -> None:
    board = Board.made(2)
    pid = os.fork()
    if not pid:
        Board(board.descriptor, 2).write(1, ["from a child", os.getpid()])
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.read(1) == ["from a child", pid]


def test_what_does_not_fit_is_refused_and_the_slot_says_what_it_said() -> None:
    board = Board.made(1)
    board.write(0, "short")
    with pytest.raises(ValueError, match="do not fit"):
        board.write(0, "x" * SAID_BYTES)
    assert board.read(0) == "short"


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_who_dies_while_writing_leaves_what_was_said_before(writes: int) -> None:
    """Killed after some of the text, before the head that vouches for it."""
    board = Board.made(1)
    for number in range(writes):
        board.write(0, f"number {number}")
    start = board._place(0, (writes + 1) % 2) + _HEAD.size
    board._memory[start : start + 8] = b'"torn te'
    assert board.read(0) == f"number {writes - 1}"


def test_a_torn_head_is_read_as_the_half_before_it() -> None:
    board = Board.made(1)
    board.write(0, "first")
    board.write(0, "second")
    _HEAD.pack_into(board._memory, board._place(0, 1), 3, SAID_BYTES + 7, 12345)
    assert board.read(0) == "second"


def test_callers_are_counted_apart_from_what_is_said() -> None:
    board = Board.made(3)
    assert board.held() == [None, None, None]
    board.write(1, "x" * (SAID_BYTES - 2))  # all of its slot
    board.write(1, "y" * (SAID_BYTES - 2))
    for slot, callers in enumerate((0, 7, None)):
        board.hold(slot, callers)
    assert Board(board.descriptor, 3).held() == [0, 7, None]
    board.hold(1, None)
    assert board.held() == [0, None, None]
    assert board.read(1) == "y" * (SAID_BYTES - 2)


@pytest.mark.parametrize("torn", [(3, 0, 0), (3, 8, 0), (0, 0, 0)])
def test_a_head_that_is_half_written_vouches_for_nothing(torn: tuple[int, int, int]) -> None:
    """Of an empty text the CRC-32 is 0, which is what memory holds that nobody has written yet."""
    board = Board.made(1)
    board.write(0, "first")
    board.write(0, "second")
    _HEAD.pack_into(board._memory, board._place(0, 1), *torn)
    assert board.read(0) == "second"


def test_a_text_that_is_overtaken_while_it_is_read_is_not_taken_for_whole() -> None:
    """Its writer came round twice since the head was read."""
    board = Board.made(1)
    board.write(0, "first")
    board.write(0, "second")
    start = board._place(0, 0) + _HEAD.size
    board._memory[start : start + 8] = b'"fourth"'
    assert board.read(0) == "first"


def test_a_reader_beside_a_writer_never_sees_two_texts_as_one() -> None:
    board = Board.made(1)
    board.write(0, "a" * 100_000)
    writer = os.fork()
    if not writer:
        for letter in itertools.cycle("abcdef"):
            board.write(0, letter * 100_000)
    try:
        for _ in range(200):
            text = board.read(0)
            assert text is None or text == text[0] * 100_000
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
