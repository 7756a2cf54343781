"""What the workers of one server tell each other: a slot of shared memory for each, written without a lock or a disk.

A slot is written by its worker alone and read by all; :class:`Board` keeps what was said last by workers that died.
"""

import mmap
import os
import tempfile
import zlib
from struct import Struct
from typing import Any, Self

import orjson

SAID_BYTES = 4 * 2**20
"""Longest text of a slot. Memory that nobody wrote to is not taken."""
_HEAD = Struct("<QII")
"""How often the slot was written; then of the text its length, and the CRC-32 of both and of the text."""
_COUNTED = Struct("<QI")
_CALLERS = Struct("<I")
"""How many callers a worker holds, plus one; 0 where it takes none. Of no text: it is asked before each caller."""
_HALF = _HEAD.size + SAID_BYTES
_SLOT = 2 * _HALF
_TRIES = 100


class Board:
    """Slots of JSON texts in memory that processes share by its descriptor.

    A slot has two halves that are written in turn: whoever is killed while writing leaves the older half whole, and
    whoever reads a half that is being written sees it by its checksum, and reads the other.
    """

    def __init__(self, descriptor: int, slots: int) -> None:
        """Of memory that :meth:`made` has made, in this process or in its parent."""
        self.descriptor = descriptor
        self.slots = slots
        self._memory = mmap.mmap(descriptor, _size(slots))

    @classmethod
    def made(cls, slots: int) -> Self:
        """A new one, empty."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("clearway")
        else:  # not Linux: a file that nobody can open any more
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _size(slots))
        return cls(descriptor, slots)

    def write(self, slot: int, said: Any) -> None:
        """Replace what a slot says; its one writer must be this process.

        Raises
        ------
        ValueError
            It is longer than ``SAID_BYTES``; the slot says what it said before.
        """
        text = orjson.dumps(said, option=orjson.OPT_NON_STR_KEYS)
        if len(text) > SAID_BYTES:
            raise ValueError(f"{len(text)} bytes do not fit into a slot of {SAID_BYTES}")
        latest = max(self._head(slot, half)[0] for half in (0, 1))
        place = self._place(slot, (latest + 1) % 2)
        start = place + _HEAD.size
        self._memory[start : start + len(text)] = text
        checksum = _checksum(latest + 1, text)
        self._memory[place : place + _HEAD.size] = _HEAD.pack(latest + 1, len(text), checksum)

    def read(self, slot: int) -> Any:
        """What a slot says; None if it never said anything, or what it said was taken back by writing None."""
        for _ in range(_TRIES):
            heads = sorted((self._head(slot, half) for half in (0, 1)), reverse=True)
            if not heads[0][0]:
                return None
            for written, length, checksum in heads:
                start = self._place(slot, written % 2) + _HEAD.size
                text = self._memory[start : start + length]
                if written and length <= SAID_BYTES and _checksum(written, text) == checksum:
                    return orjson.loads(text)
        return None  # its writer wrote twice in each of so many readings

    def read_all(self) -> list[Any]:
        """What each slot says."""
        return [self.read(slot) for slot in range(self.slots)]

    def hold(self, slot: int, callers: int | None) -> None:
        """Say how many callers a worker holds; None where it takes none."""
        _CALLERS.pack_into(self._memory, self._callers(slot), 0 if callers is None else callers + 1)

    def held(self) -> list[int | None]:
        """How many callers each holds."""
        found = [_CALLERS.unpack_from(self._memory, self._callers(slot))[0] for slot in range(self.slots)]
        return [one - 1 if one else None for one in found]

    def _callers(self, slot: int) -> int:
        return self.slots * _SLOT + slot * _CALLERS.size

    def _place(self, slot: int, half: int) -> int:
        return slot * _SLOT + half * _HALF

    def _head(self, slot: int, half: int) -> tuple[int, int, int]:
        written, length, checksum = _HEAD.unpack_from(self._memory, self._place(slot, half))
        return written, length, checksum


def _size(slots: int) -> int:
    return slots * (_SLOT + _CALLERS.size)


def _checksum(written: int, text: bytes) -> int:
    """Of a half: one whose head is being written is not taken for whole either."""
    return zlib.crc32(text, zlib.crc32(_COUNTED.pack(written, len(text))))
