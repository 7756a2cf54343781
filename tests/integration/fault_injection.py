"""Kill a process, or fail its disk, at its n-th effect: an audit hook in a forked child, so that nothing is patched.

Python audits every opening of a file, rename, removal, truncation, folder and process made. A child that dies before
the n-th of them, for every n, has died in every state that the action passes through between two effects; the states
within one write are a torn line, which the ledger's own tests tear everywhere.
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from clearway.errors import ClearwayError

EFFECTS = {"os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod"}
STARTED = "subprocess.Popen"
SURVIVED, REFUSED, BROKE = 0, 10, 11
Fault = Literal["kill", "full"]


@dataclass(frozen=True)
class End:
    """How a child ended: ``done``, ``killed``, ``refused`` with one line, or ``broke`` with a traceback."""

    how: str
    effects: int
    """How many there were, up to its end."""
    said: str


def inject(action: Callable[[], Any], at: int, fault: Fault = "kill") -> End:
    """Run ``action`` in a forked child whose ``at``-th effect (from 1) never happens.

    It ends, done, where it would start another process: what is tested is what comes before. ``full`` fails the one
    effect, as a disk does that is full for a moment.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = BROKE
        try:
            code = _play(action, at, fault, writer)
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        count, said = len((parts := stream.read().decode().rpartition("\r"))[0] + parts[1]), parts[2]
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, said
        return End("killed", count, said)
    how = {SURVIVED: "done", REFUSED: "refused", BROKE: "broke"}[os.WEXITSTATUS(status)]
    return End(how, count, said)


def _play(action: Callable[[], Any], at: int, fault: Fault, writer: int) -> int:
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == STARTED:
            os._exit(SURVIVED)
        if event == "open":
            path, _, flags = arguments
            if not (flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or str(path).endswith(".pyc"):
                return
        elif event not in EFFECTS:
            return
        seen += 1
        os.write(writer, b"\r")
        if seen == at:
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    sys.addaudithook(hook)
    try:
        action()
    except ClearwayError as error:
        os.write(writer, str(error).encode())
        return REFUSED
    return SURVIVED
