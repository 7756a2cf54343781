"""What training takes of this machine: measured, and ended when it is more than ``train.resources`` allows.

A limit must hold inside a long call into C too, where no thread of Python gets a turn. So training that has a limit
runs in a process of its own, and the process that was asked for it only watches.
"""

import ctypes
import functools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import psutil

from clearway.errors import ClearwayError
from clearway.files import remove_path, unfinished
from clearway.params import ResourceParams
from clearway.workspace import Workspace

MB = 2**20
KEY = "train.resources"

_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


# --- decisions: pure -------------------------------------------------------------------------------------------------


def exceeded(limits: ResourceParams, *, memory_bytes: int, processes: int, seconds: float) -> str:
    """Which limit is exceeded and by what, one line that names the key; empty where none is.

    Parameters
    ----------
    limits : ResourceParams
        ``train.resources``.
    memory_bytes : int
        What training takes now, in all its processes.
    processes : int
        How many these are.
    seconds : float
        Since it began.
    """
    measured = memory_bytes / MB
    if limits.memory_mb is not None and measured > limits.memory_mb:
        where = "1 process" if processes == 1 else f"{processes} processes"
        return (
            f"{KEY}.memory_mb = {limits.memory_mb:g}: training took {measured:,.0f} MB in {where} after {seconds:.1f} "
            "s and was ended: allow more, or train on fewer rows, with a smaller model or fewer threads"
        )
    if limits.time_limit_seconds is not None and seconds > limits.time_limit_seconds:
        return (
            f"{KEY}.time_limit_seconds = {limits.time_limit_seconds:g}: training took {seconds:.1f} s and was ended: "
            "allow more, or train on fewer rows, with a smaller model or fewer trials"
        )
    return ""


def ended_by(code: int, memory_bytes: int) -> str:
    """Why a training process that no limit ended was ended by a signal, one line; empty where none did it.

    Parameters
    ----------
    code : int
        Its exit code; that of a signal is negative.
    memory_bytes : int
        What it was last seen to take.
    """
    if code >= 0:
        return ""
    likely = f": the system may have run out of memory; set {KEY}.memory_mb" if -code == signal.SIGKILL else ""
    return f"training was ended by {signal.Signals(-code).name}, at {memory_bytes / MB:,.0f} MB{likely}"


# --- effects ---------------------------------------------------------------------------------------------------------


def supervise(limits: ResourceParams, workspace: Workspace) -> None:
    """Go on in a process whose time and memory are held to ``limits``; without a limit, in this one.

    To be called early, while this process is small and has one thread: it is forked. The call returns only in the
    process that trains. The other one watches, and leaves with the exit code of the first.

    Parameters
    ----------
    limits : ResourceParams
        ``train.resources``. Memory is counted over the training process and all that it starts here: what several of
        them share is counted once.
    workspace : Workspace
        Where a training that was ended may leave something unfinished, which is removed.

    Raises
    ------
    ClearwayError
        A limit was exceeded, or the system ended the process.
    SystemExit
        The training process has ended by itself; with its exit code.
    """
    if limits.memory_mb is None and limits.time_limit_seconds is None:
        return
    folders = (workspace.build, workspace.reports)
    before = {path for folder in folders for path in unfinished(folder)}
    began, parent = time.monotonic(), os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _die_with(parent)
        return
    try:
        _watch(child, limits, began)
    finally:
        for path in {path for folder in folders for path in unfinished(folder)} - before:
            remove_path(path)


def names_memory(train: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Turn a failed allocation in a function whose first argument is :class:`Params` into one line.

    Raises
    ------
    ClearwayError
        The system gave no more memory; names the limit and what was taken.
    """

    @functools.wraps(train)
    def named(*arguments: _Arguments.args, **keywords: _Arguments.kwargs) -> _Result:
        try:
            return train(*arguments, **keywords)
        except MemoryError as error:
            params: Any = arguments[0]
            limit = params.train.resources.memory_mb
            reason = " ".join(str(error).split()) or "no more is given"
            raise ClearwayError(
                f"{KEY}.memory_mb = {'null' if limit is None else f'{limit:g}'}: training took "
                f"{peak_memory_mb():,.0f} MB, and the system had no more ({reason}): train on fewer rows, with a "
                "smaller model or fewer threads"
            ) from None

    return named


def peak_memory_mb() -> float:
    """Most memory this process has taken, and its workers that still are there each took, in 2²⁰ bytes.

    Not all of them were at their peak at once, and some of what they took they share: a bound from above. Workers of
    a cluster are not of this machine and not counted.
    """
    children = []
    with suppress(psutil.Error):
        children = psutil.Process().children(recursive=True)
    return (peak_bytes() + sum(peak_bytes(each.pid) for each in children)) / MB


def peak_bytes(pid: int | None = None) -> int:
    """Largest resident size so far of a process, by default this one; 0 of one that has ended.

    On Linux of this program alone: ``ru_maxrss`` also counts the process that started it, as it was before ``exec``.
    Elsewhere, of another process, the present size.
    """
    try:
        lines = Path(f"/proc/{pid or 'self'}/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        if Path("/proc/self/status").exists():
            return 0
        if pid is None:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        with suppress(psutil.Error):
            return int(psutil.Process(pid).memory_info().rss)
        return 0


def family_memory(process: psutil.Process) -> tuple[int, int]:
    """Bytes that a process and its descendants take now, and how many processes these are.

    Of several, each page is counted once: shared by n processes, it is 1/n of each (proportional set size). Linux
    tells that; elsewhere shared pages do not count for descendants.
    """
    members = [process, *process.children(recursive=True)]
    if len(members) == 1:
        return int(process.memory_info().rss), 1
    total = 0
    for member in members:
        with suppress(psutil.Error):  # it has just ended
            taken = member.memory_full_info()
            total += int(getattr(taken, "pss", taken.uss))
    return total, len(members)


def _watch(child: int, limits: ResourceParams, began: float) -> NoReturn:
    process, taken = psutil.Process(child), 0
    try:
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                why = ended_by(code, taken)
                if why:
                    raise ClearwayError(why)
                raise SystemExit(code)
            processes = 1
            with suppress(psutil.Error):
                taken, processes = family_memory(process)
            seconds = time.monotonic() - began
            why = exceeded(limits, memory_bytes=taken, processes=processes, seconds=seconds)
            if why:
                raise ClearwayError(why)
            time.sleep(_POLL_SECONDS)
    finally:
        _end(process)


def _end(process: psutil.Process) -> None:
    """End a process of ours at once, then what it has started.

    The second are asked first: one of them removes the files that joblib's processes share, once these are gone.
    """
    if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
        return
    with suppress(psutil.Error, ChildProcessError):
        process.suspend()  # so that it starts no more
        family = process.children(recursive=True)
        process.kill()
        os.waitpid(process.pid, 0)
        for member in family:
            with suppress(psutil.Error):
                member.terminate()
        _, left = psutil.wait_procs(family, timeout=5)
        for member in left:
            with suppress(psutil.Error):
                member.kill()


def _die_with(parent: int) -> None:
    """Let the system end this process when its parent is gone, however it went: nobody would hold it to its limits."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
