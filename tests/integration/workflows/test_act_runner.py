"""What is done about act where it waits for ever."""

import subprocess
import sys

import act_runner
import pytest

WAITS = """
import os, pty
master, slave = pty.openpty()
os.write(slave, b"\\x04" + b"said in the background, behind the end")
while not os.read(master, 1024).endswith(b"\\x04"):
    pass
"""
"""As act reads a step's terminal."""


def test_a_terminal_whose_end_was_overlooked_is_ended_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(act_runner, "IDLE_SECONDS", 1)
    process = subprocess.Popen([sys.executable, "-c", WAITS], text=True)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        act_runner._end_forgotten_terminals(process)
        assert process.wait(5.0) == 0
    finally:
        process.kill()
        process.wait()
