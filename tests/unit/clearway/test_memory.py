"""Memory that was freed goes back to the system."""

import platform

import psutil
import pytest

from clearway.memory import give_back


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what was freed")
def test_what_was_freed_below_a_block_in_use_is_returned() -> None:
    process = psutil.Process()
    held = [bytes([number % 256]) * 2000 for number in range(50_000)]  # 100 MB
    last = held[-1]
    full = process.memory_info().rss
    del held
    give_back()
    assert full - process.memory_info().rss > 50_000_000
    assert last == bytes([49_999 % 256]) * 2000
