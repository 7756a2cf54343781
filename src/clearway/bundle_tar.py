"""Bundles as one stream of bytes: a tar archive of plain files, and a reader that accepts nothing else.

Links, devices, folders, sparse files and the extended headers of newer formats are not skipped but refused, and no name
is resolved by anything but this module: an archive from somewhere else cannot write outside its folder.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from clearway.bundle import MOST_FILES, Bundle, BundleError, plain_path

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 20


def packed(bundle: Bundle) -> Iterator[bytes]:
    """The files of a verified bundle as a tar archive, piece by piece; the same bundle gives the same bytes.

    Raises
    ------
    BundleError
        A name is longer than the format holds.
    """
    for path in sorted(path for path in bundle.path.rglob("*") if path.is_file()):
        name = path.relative_to(bundle.path).as_posix()
        header = tarfile.TarInfo(name)
        header.size = path.stat().st_size
        header.mode = 0o644
        try:
            yield header.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
        except ValueError as error:
            raise BundleError(f"{path} does not fit into an archive: {error}") from None
        with path.open("rb") as stream:
            while piece := stream.read(CHUNK):
                yield piece
        yield b"\0" * (-header.size % BLOCK)
    yield b"\0" * (2 * BLOCK)


def unpack(stream: IO[bytes], folder: Path, most_bytes: int) -> None:
    """Write the files of an archive that :func:`packed` made into ``folder``, which is empty.

    What they hold is not looked at: :func:`clearway.bundle.verify` does that.

    Parameters
    ----------
    stream : binary file
        Read once, forwards.
    folder : Path
    most_bytes : int
        All files together may be no larger.

    Raises
    ------
    BundleError
        It is no such archive, is cut short, holds anything but plain files with plain names, or is too large.
    """
    total = files = 0
    while (header := _exactly(stream, BLOCK)) != b"\0" * BLOCK:
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
            name = plain_path(member.name)
        except tarfile.HeaderError as error:
            raise BundleError(f"the archive is damaged after {files} files: {error}") from None
        except ValueError as error:  # no UTF-8, or no plain path
            raise BundleError(f"the archive holds {header[:100].rstrip(bytes(1))!a}: {error}") from None
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise BundleError(f"the archive holds {name!r}, which is no plain file (type {member.type!a})")
        total, files = total + member.size, files + 1
        if member.size < 0 or total > most_bytes:
            raise BundleError(f"the archive holds more than {most_bytes:,} bytes (serving.admin.max_bundle_bytes)")
        if files > 2 * MOST_FILES:
            raise BundleError(f"the archive holds more than {2 * MOST_FILES:,} files: it is no bundle")
        _write(stream, folder / name, member.size)
        _exactly(stream, -member.size % BLOCK)


def _write(stream: IO[bytes], path: Path, size: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            while size:
                piece = _exactly(stream, min(size, CHUNK))
                target.write(piece)
                size -= len(piece)
    except (FileExistsError, NotADirectoryError):
        raise BundleError(f"the archive holds {path.name!r} twice, or as a file and a folder") from None


def _exactly(stream: IO[bytes], size: int) -> bytes:
    found = stream.read(size) if size else b""
    if len(found) != size:
        raise BundleError("the archive is cut short")
    return found
