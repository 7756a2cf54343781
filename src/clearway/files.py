"""Files that are whole or absent: write to a temporary name, fsync, rename; and hash what is there."""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clearway.errors import ClearwayError

_ABANDONED_SECONDS = 86_400.0


@contextmanager
def held(lock: Path, seconds: float) -> Iterator[None]:
    """Hold the file ``lock``, for which to wait at most so many seconds; its folder is made.

    Raises
    ------
    ClearwayError
        Another command holds it, or it cannot be made.
    """
    one = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        one.acquire(timeout=seconds)
    except Timeout:
        raise ClearwayError(f"{lock} is held by another command for {seconds:.0f} s: wait for it to end") from None
    except OSError as error:
        raise ClearwayError(
            f"{lock} cannot be made ({error.strerror}): make room or correct the folder, and run the command again"
        ) from None
    try:
        yield
    finally:
        one.release()


def history_lines(path: Path) -> list[str]:
    """The lines that :func:`add_line` has added, and what else is there; none if there is no file.

    Raises
    ------
    ClearwayError
        The file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ClearwayError(f"{path} cannot be read ({error}): restore the file, or move it aside") from None


def add_line(path: Path, content: Any) -> None:
    """Add ``content`` as a line of JSON. The lines that are there stay byte for byte: histories are joined by lines."""
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    before += "\n" if before and not before.endswith("\n") else ""
    write_text(path, before + json.dumps(content, sort_keys=True, ensure_ascii=False) + "\n")


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; on success fsync and rename it over ``target``.

    On any exception the temporary file is removed and ``target`` is left as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
        fsync_directory(target.parent)
    except OSError as error:
        raise _naming(error, target) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``; on success replace ``target`` with it.

    A folder cannot be renamed over a non-empty one, so the old one is moved aside first; a reader sees
    the old folder, for an instant none, then the new one, and never a half-written one. What a writer left that was
    killed more than a day ago is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # otherwise that may be all there is
        _remove_abandoned(target)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary.chmod(0o755)
    aside: Path | None = None
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        if target.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.rename(aside / target.name)
        temporary.rename(target)
        fsync_directory(target.parent)
    except OSError as error:
        raise _naming(error, target) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _naming(error: OSError, target: Path) -> OSError:
    """The error with the file it is about: a write onto a full disk names none."""
    if error.filename is None and error.errno is not None:
        error.filename = str(target)
    return error


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary folders of :func:`atomic_directory` that nothing was written to for a day."""
    for path in unfinished(target.parent, target.name):
        if path.is_dir() and not path.is_symlink():
            try:
                newest = max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
            except OSError:  # another writer is removing it
                continue
            if time.time() - newest > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def unfinished(folder: Path, name: str | None = None) -> list[Path]:
    """The temporary files and folders of what is being written in ``folder``, or was when its writer was killed.

    Parameters
    ----------
    folder : Path
        Where the finished files and folders are; it need not exist.
    name : str, optional
        Only of the file or folder of this name.
    """
    pattern = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.(old\.)?[a-z0-9_]{{8}}")
    return [path for path in folder.glob(".*") if pattern.fullmatch(path.name)]


def remove_path(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; one that is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fsync_directory(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(target: Path, text: str) -> None:
    """Write ``text`` to ``target``, whole or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, whole or not at all. NaN is refused."""
    write_text(target, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, default=_encode) + "\n")


def read_json(path: Path, *, made_by: str = "") -> Any:
    """Read a JSON file; ``made_by`` names the command to run where it is missing.

    Raises
    ------
    ClearwayError
        The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = f": run {made_by} first" if made_by else ""
        raise ClearwayError(f"{path} is missing{hint}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ClearwayError(
            f"{path} is not valid JSON ({error}): delete it and run {made_by or 'its step'} again"
        ) from None


def canonical_json(value: Any) -> bytes:
    """The one byte string for a JSON value: sorted keys, no spaces, UTF-8, no NaN. What digests are made of."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_encode
    )
    return text.encode("utf-8")


def sha256_bytes(content: bytes) -> str:
    """Hex SHA-256 of ``content``."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of the file at ``path``."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _encode(value: Any) -> Any:
    """What JSON lacks: numpy scalars, timestamps and paths."""
    if hasattr(value, "item"):
        return value.item()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
