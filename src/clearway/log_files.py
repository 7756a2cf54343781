"""The files of a prediction log: who writes them, who may take them away, and what a reader sees of them.

::

    20260101-4242-1a2b3c4d-0.jsonl        a segment: day, writer (process and a random part), its records before it
    4242-1a2b3c4d.writer                  a writer: locked while it lives, removed when it ends well
    parquet/day=2026-01-01/part-*.parquet what finished segments become
    damaged/                              their lines that are no sound record
    losses/4242-1a2b3c4d.json             what a writer accepted and did not write
    commit.json                           a compaction that is being carried out

A segment is finished when nobody holds its lock: the kernel lets go of a lock when its process ends, however it ends.

How many records a writer was given is counted in shared memory, where it outlives the process, and not in a file: a
store to a mapped file waits for the disk whenever the kernel writes that page, and then so would the request.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from clearway.errors import ClearwayError
from clearway.files import fsync_directory, write_json

PARQUET, DAMAGED, LOSSES, COMMIT, LOCK = "parquet", "damaged", "losses", "commit.json", ".lock"
COMMIT_SECONDS = 60.0
"""How long a change of what is there waits for readers."""

_SEGMENT = re.compile(r"(?P<day>\d{8})-(?P<writer>(?P<pid>\d+)-[0-9a-f]{8})-(?P<before>\d+)\.jsonl")
_SHARED = Path("/dev/shm")  # noqa: S108  # memory by design
_OFFERED, _DROPPED, _FINISHED = range(3)
_HEAD = 3 * 8


def writer_name() -> str:
    """A new writer's name: its process, and what tells it from others of that number."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def segment_name(day: str, writer: str, before: int) -> str:
    """The file name of a writer's segment that begins after its first ``before`` records."""
    return f"{day}-{writer}-{before}.jsonl"


def segment_day(path: Path) -> str | None:
    """The day (``2026-01-01``) on which a segment was begun; None if its name says none."""
    digits = path.name[:8]
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:]}" if digits.isdigit() and len(digits) == 8 else None


class Tally:
    """What one writer was offered and what of it was dropped, in memory that outlives its process.

    Every store is one machine word. ``offer`` is called on the request path.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        known = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]
        self.path: Path | None = _memory() / f"clearway-log-{os.getuid()}-{known}-{writer}"
        about = orjson.dumps({"folder": str(folder.absolute())})
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                # written, not only made longer: memory that is not there then says so here, not as a fatal signal
                os.write(handle, bytes(_HEAD) + about)
                self._page = mmap.mmap(handle, _HEAD + len(about))
            finally:
                os.close(handle)
        except OSError:  # no shared memory left: what a killed process loses will not be known, and that will be said
            if self.path is not None:
                self.path.unlink(missing_ok=True)
            self.path, self._page = None, mmap.mmap(-1, _HEAD)
        self.cells = memoryview(self._page)[:_HEAD].cast("Q")

    def set_dropped(self, count: int) -> None:
        self.cells[_DROPPED] = count

    def set_finished(self, count: int) -> None:
        """Records in all segments that are closed; to be said before a segment's lock is let go."""
        self.cells[_FINISHED] = count

    def remove(self) -> None:
        """Remove it: all is accounted for."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def create_locked(path: Path, content: bytes = b"") -> int:
    """Make a file that is locked before it can be seen; returns its open descriptor, which appends."""
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(hidden, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if content and os.write(handle, content) < len(content):
            raise OSError(f"{path} was written in part")
        hidden.rename(path)
    except OSError:
        os.close(handle)
        hidden.unlink(missing_ok=True)
        raise
    return handle


def mark_writer(folder: Path, writer: str, tally: Tally) -> int:
    """Write down that ``writer`` is at work; returns the descriptor that keeps it so."""
    page = None if tally.path is None else str(tally.path)
    about = {"pid": os.getpid(), "host": socket.gethostname(), "tally": page}
    return create_locked(folder / f"{writer}.writer", orjson.dumps(about))


def is_free(path: Path) -> bool:
    """Whether nobody writes this file any more."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask do not deceive each other
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


@dataclass(frozen=True)
class Loss:
    """What a writer that ended was given and did not write."""

    writer: str
    pid: int
    lost: int | None
    """Records that were still in its memory when it was killed; None where nobody can say."""
    dropped: int | None
    """Records that the disk did not take, that came too fast, or that were no JSON."""

    @property
    def sentence(self) -> str:
        if self.lost is None:
            return f"process {self.pid} was killed and its count is gone (a restart): it is not known how many it lost"
        dropped = f", {self.dropped:,} were dropped before" if self.dropped else ""
        return f"{self.lost:,} records of process {self.pid} were lost{dropped}"


@dataclass(frozen=True)
class Contents:
    """The files of a log that together hold each record once."""

    segments: tuple[Path, ...]
    """JSON lines, also those that were set aside as damaged."""
    parts: tuple[Path, ...]
    losses: tuple[Loss, ...]


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[Contents]:
    """What is there; while this is held nothing of it is taken away."""
    with _locked(folder, fcntl.LOCK_SH):
        yield _contents(folder)


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Hold off readers while files are taken away or become visible.

    Raises
    ------
    ClearwayError
        Readers did not end within ``COMMIT_SECONDS``.
    """
    (folder / LOCK).touch()
    with _locked(folder, fcntl.LOCK_EX):
        yield


def commit(folder: Path, add: dict[Path, Path], remove: list[Path]) -> None:
    """Let files appear and others go, all or none: :func:`finish_commit` ends what a kill has cut short.

    Parameters
    ----------
    folder : Path
        Of the log.
    add : dict of path to path
        Finished files under hidden names, and what they are to be called.
    remove : list of Path
        What they replace.
    """
    for hidden in add:
        with hidden.open("rb") as stream:
            os.fsync(stream.fileno())
    relative = {str(hidden.relative_to(folder)): str(path.relative_to(folder)) for hidden, path in add.items()}
    with changing(folder):
        write_json(folder / COMMIT, {"add": relative, "remove": [str(path.relative_to(folder)) for path in remove]})
        _carry_out(folder)


def finish_commit(folder: Path) -> None:
    """Carry out a change that was decided and not ended."""
    if (folder / COMMIT).exists():
        with changing(folder):
            _carry_out(folder)


def unsettled(folder: Path) -> list[Path]:
    """Marks of the writers that ended without accounting for every record."""
    return [path for path in sorted(folder.glob("*.writer")) if is_free(path)]


def account(folder: Path, mark: Path) -> Loss:
    """What the writer of this mark lost: offered, less what was dropped, less what its segments hold."""
    writer = mark.stem
    try:
        about = orjson.loads(mark.read_bytes())
        cells = memoryview(Path(about["tally"]).read_bytes()[:_HEAD]).cast("Q")
    except (OSError, ValueError, LookupError, TypeError):
        return Loss(writer, int(writer.partition("-")[0]), None, None)
    own = {int(name["before"]): path for path in folder.glob(f"*-{writer}-*.jsonl")
           if (name := _SEGMENT.fullmatch(path.name))}  # fmt: skip
    written = cells[_FINISHED]
    if own:
        last = max(own)
        written = last + sum(_is_record(line) for line in own[last].read_bytes().split(b"\n"))
    return Loss(writer, about["pid"], max(cells[_OFFERED] - cells[_DROPPED] - written, 0), cells[_DROPPED])


def settle(folder: Path, mark: Path) -> Loss | None:
    """Keep what a writer lost under ``losses/`` and forget the writer; None if it lost nothing.

    To be done before its last segment is taken away, which is counted.
    """
    loss = account(folder, mark)
    with changing(folder):
        if loss.lost or loss.dropped or loss.lost is None:
            at = time.time()
            record = {"pid": loss.pid, "lost": loss.lost, "dropped": loss.dropped, "found_at": at}
            if not (folder / LOSSES / f"{loss.writer}.json").exists():  # killed below: the count may be gone by now
                write_json(folder / LOSSES / f"{loss.writer}.json", record)
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            Path(orjson.loads(mark.read_bytes())["tally"]).unlink(missing_ok=True)
        mark.unlink(missing_ok=True)
    return loss if loss.lost or loss.dropped or loss.lost is None else None


def forget_tallies() -> None:
    """Remove the counts of this user's logs whose folder is gone."""
    for path in _memory().glob(f"clearway-log-{os.getuid()}-*"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if not Path(orjson.loads(path.read_bytes()[_HEAD:])["folder"]).exists() and _owner_ended(path):
                path.unlink(missing_ok=True)


def _owner_ended(path: Path) -> bool:
    pid = int(path.name.split("-")[-2])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _memory() -> Path:
    """Where files are memory; elsewhere the system's folder for what is temporary."""
    return _SHARED if os.access(_SHARED, os.W_OK) else Path(tempfile.gettempdir())


def _is_record(line: bytes) -> bool:
    if not line:
        return False
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Hold the folder's lock, if it has one: without it nothing has ever been taken away from there."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        deadline = time.monotonic() + COMMIT_SECONDS
        while True:
            try:
                fcntl.flock(handle, how | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ClearwayError(
                        f"{folder / LOCK} is held by another command for {COMMIT_SECONDS:.0f} s: wait for it to end"
                    ) from None
                time.sleep(0.005)
        yield
    finally:
        os.close(handle)


def _contents(folder: Path) -> Contents:
    decided = _decided(folder)
    gone = {folder / path for path in decided["remove"]}
    appearing = [folder / path for path in decided["add"].values()]
    segments = [*folder.glob("*.jsonl"), *(folder / DAMAGED).glob("*.jsonl")]
    parts = [*(folder / PARQUET).glob("day=*/part-*.parquet")]
    for hidden, path in zip((folder / path for path in decided["add"]), appearing, strict=True):
        if hidden.exists():  # decided, but its name is not changed yet
            (parts if path.suffix == ".parquet" else segments).append(hidden)
    losses = [_read_loss(path) for path in sorted((folder / LOSSES).glob("*.json"))]
    known = {loss.writer for loss in losses}
    losses += [account(folder, mark) for mark in unsettled(folder) if mark.stem not in known]
    return Contents(
        tuple(sorted(path for path in segments if path not in gone)),
        tuple(sorted(path for path in parts if path not in gone)),
        tuple(loss for loss in losses if loss.lost or loss.dropped or loss.lost is None),
    )


def _read_loss(path: Path) -> Loss:
    found = orjson.loads(path.read_bytes())
    return Loss(path.stem, found["pid"], found["lost"], found["dropped"])


def _decided(folder: Path) -> dict[str, Any]:
    try:
        decided: dict[str, Any] = orjson.loads((folder / COMMIT).read_bytes())
    except FileNotFoundError:
        return {"add": {}, "remove": []}
    return decided


def _carry_out(folder: Path) -> None:
    """Every step may have been done before."""
    decided = _decided(folder)
    for hidden, path in decided["add"].items():
        if (folder / hidden).exists():
            (folder / hidden).rename(folder / path)
    for parent in {(folder / path).parent for path in decided["add"].values()}:
        fsync_directory(parent)
    for name in decided["remove"]:
        (folder / name).unlink(missing_ok=True)
    (folder / COMMIT).unlink(missing_ok=True)
