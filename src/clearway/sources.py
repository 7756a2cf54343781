"""Read one source table, whatever it is: a file of an installed package, CSV, Parquet or a database query.

A source that is missing, empty, cut off or unreadable is one line for a person, with the key of ``params.yaml`` that
names it. What the table holds is not judged here: that is :mod:`clearway.validation`.
"""

import importlib.metadata
import io
import lzma
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, TypeVar

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from fsspec.compression import compr
from fsspec.utils import infer_compression
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from clearway.errors import ClearwayError, UsageError
from clearway.params import PackageSource, ParquetSource, Source, SqlSource

if TYPE_CHECKING:
    import polars as pl

MOST_UNPACKED_BYTES, MOST_UNPACKED_TIMES = 2**28, 200
"""A compressed file may unpack to the first, or to so many times its own size: no table does that, and a bomb does."""
ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 4, 1.0, 10.0
"""How often a source behind a network is asked, and the seconds between, which double."""

_Made = TypeVar("_Made")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]+")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")
_LAYOUT = {"sep", "delimiter", "quotechar", "encoding"}
"""Arguments of :func:`pandas.read_csv` under which rows can still be counted field by field before parsing."""
_VALUES = {"dtype", "decimal", "thousands", "na_values", "keep_default_na", "true_values", "false_values"}
_VALUES |= {"usecols", "parse_dates", "date_format", "low_memory"}
"""Arguments that change how a value is read, and not where a row ends."""
_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ImportError, ValueError)
"""What no second attempt changes."""
_BUSY, _GONE = (408, 425, 429), (404, 410)
"""Answers of HTTP that ask for a second attempt; that the file is not there."""


def read_source(source: Source, root: Path, *, key: str, named_by: str | None = None) -> pd.DataFrame:
    """Read a source into memory.

    Parameters
    ----------
    source : Source
        One entry of ``sources`` in ``params.yaml``.
    root : Path
        The project folder, from which relative paths start.
    key : str
        Where the entry stands, ``sources.<name>``, for error messages.
    named_by : str, optional
        What named the file, where it was not the entry's own path or URL: a command's option.

    Returns
    -------
    DataFrame
        At least one row, a fresh range index. Columns that the entry lists as timestamps are ``datetime64[ns, UTC]``;
        a time without a zone is taken as UTC.

    Raises
    ------
    ClearwayError
        The data is missing, empty, cut off, in another encoding, or its timestamps cannot be read.
    UsageError
        The entry cannot work here: a package or driver is not installed, or an environment variable is not set.
    """
    place = _Place(source, key, named_by)
    if isinstance(source, SqlSource):
        frame = _query(source, root, place)
    elif isinstance(source, ParquetSource):
        frame = _parse_parquet(_fetch(source.path, root, place), place)
    else:
        file = _installed(source, place) if isinstance(source, PackageSource) else source.path
        content = _decompress(_fetch(str(file), root, place), source.path, place)
        packed = isinstance(source, PackageSource) and _is_parquet(content)
        frame = _parse_parquet(content, place) if packed else _parse_csv(content, source.read, place)
    if frame.empty:
        raise place.broken("has no rows: put the data there, or correct the path")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise place.broken(f"has two columns named {twice[0]!r}: name each once")
    for column in source.timestamps:
        frame[column] = _utc(frame, column, place)
    return frame


@contextmanager
def scan_parquet_file(
    source: ParquetSource, root: Path, *, key: str, named_by: str | None = None
) -> "Iterator[pl.LazyFrame | pd.DataFrame]":
    """A Parquet file to be read in pieces; one behind a URL is copied beside the system's temporary files first.

    Declared timestamps are UTC, as :func:`read_source` makes them. A file whose timestamps must be read from text is
    small enough for people, and goes through it.

    Raises
    ------
    ClearwayError
        The file is missing, empty, cut off or no Parquet.
    """
    import polars as pl

    place = _Place(source, key, named_by)
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "table.parquet"
        file = copied if "://" in source.path else root / source.path

        def take(stream: IO[bytes]) -> None:
            if file is copied:
                with copied.open("wb") as target:
                    shutil.copyfileobj(stream, target, 1 << 24)

        _read(source.path, root, place, take)
        if not file.stat().st_size:
            raise place.broken("is empty (0 bytes): write it again")
        try:
            scan = pl.scan_parquet(file, glob=False)
            dtypes = scan.collect_schema()
            rows = scan.select(pl.len()).collect().item()
        except (pl.exceptions.PolarsError, OSError) as error:
            with file.open("rb") as stream:
                raise _no_parquet(stream.read(4), error, place) from None
        if not rows:
            raise place.broken("has no rows: put the data there, or correct the path")
        naive = {name: dtypes[name] for name in source.timestamps if name in dtypes}
        naive = {name: dtype for name, dtype in naive.items() if getattr(dtype, "time_zone", None) is None}
        if any(not dtype.is_temporal() and dtype != pl.Null for dtype in naive.values()):
            yield read_source(source, root, key=key, named_by=named_by)
            return
        utc = [pl.col(name).cast(pl.Datetime("us")).dt.replace_time_zone("UTC") for name in naive]
        yield scan.with_columns(utc) if utc else scan


def describe_source(source: Source) -> str:
    """Where a table came from, for the snapshot: no password, no signed query string, no machine's own path."""
    match source:
        case PackageSource():
            return f"{source.distribution} {importlib.metadata.version(source.distribution)}: {source.path}"
        case SqlSource():
            return f"{_hide(source.url)}: {' '.join(source.query.split())}"
    return _hide(source.path)


class _Place:
    """Where a source stands in params.yaml and in the world: the head of each of its error messages."""

    def __init__(self, source: Source, key: str, named_by: str | None) -> None:
        self.key = key
        self.field = named_by or f"{key}.{'url' if isinstance(source, SqlSource) else 'path'}"
        match source:
            case PackageSource():
                self.value = f"{source.distribution}: {source.path}"
            case SqlSource():
                self.value = _hide(source.url)
            case _:
                self.value = _hide(source.path)

    def broken(self, what: str) -> ClearwayError:
        return ClearwayError(f"{self.value} ({self.field}) {_one_line(what)}")

    def unusable(self, what: str) -> UsageError:
        return UsageError(f"{self.field} = {self.value!r}: {_one_line(what)}")


def _installed(source: PackageSource, place: _Place) -> Path:
    """The file inside an installed distribution, found through its record; the package is never imported."""
    name = source.distribution
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise place.unusable(f"the distribution {name} is not installed: run pip install {name}") from None
    recorded = [str(file) for file in distribution.files or ()]
    if source.path not in recorded:
        data = [file for file in recorded if not file.endswith(".py") and ".dist-info/" not in file]
        there = ", ".join(data[:8]) or "no data files"
        raise place.unusable(f"{name} {distribution.version} holds no file of that name; it has {there}")
    return Path(str(distribution.locate_file(source.path)))


def _fetch(path: str, root: Path, place: _Place) -> bytes:
    """All bytes of a local file or an fsspec URL."""
    content = _read(path, root, place, lambda stream: bytes(stream.read()))
    if not content:
        raise place.broken("is empty (0 bytes): write it again")
    return content


def _read(path: str, root: Path, place: _Place, take: Callable[[IO[bytes]], _Made]) -> _Made:
    """What ``take`` makes of a local file, or of an fsspec URL, which is asked again if it does not answer whole."""
    local = "://" not in path

    def attempt() -> _Made:
        try:
            with (root / path).open("rb") if local else fsspec.open(path, "rb") as stream:
                return take(stream)
        except FileNotFoundError as error:  # which is what fsspec makes of most that a web server may answer
            if error.__cause__ is None or getattr(error.__cause__, "status", None) in _GONE:
                raise
            raise error.__cause__ from None

    try:
        return attempt() if local else _patiently(attempt, may_pass)
    except FileNotFoundError:
        where = " (relative paths start at the project folder)" if local and not Path(path).is_absolute() else ""
        raise place.broken(f"is missing{where}: put the file there, or correct the path") from None
    except IsADirectoryError:
        raise place.broken("is a folder: name one file") from None
    except ImportError as error:
        raise place.unusable(f"the driver of this kind of URL is not installed: {error}") from None
    except Exception as error:  # an fsspec backend raises what its client library raises
        raise place.broken(f"cannot be read: {_hide(str(error)) or type(error).__name__}") from None


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may fare better: a network or a server that failed, and nothing that was refused."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in _BUSY
    return isinstance(error, Exception) and not isinstance(error, _FINAL)


def _patiently(attempt: Callable[[], _Made], again: Callable[[BaseException], bool]) -> _Made:
    """The result of ``attempt``, which is made anew, each time after a longer wait, as long as ``again`` says so."""
    patient = Retrying(
        retry=retry_if_exception(again),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential_jitter(FIRST_WAIT, LONGEST_WAIT),
        reraise=True,
    )
    return patient(attempt)


def _decompress(content: bytes, path: str, place: _Place) -> bytes:
    """The one file inside a zip, gzip, bzip2, xz or zstd file, named by its ending; anything else as it is."""
    kind = infer_compression(PurePosixPath(path.split("::")[0].split("?")[0]).name)
    if kind is None:
        return content
    try:
        if kind == "zip":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
                if len(members) != 1:
                    raise place.broken(f"must hold exactly one file, found {len(members)}: {', '.join(members[:5])}")
                with archive.open(members[0]) as stream:
                    opened = _unpacked(stream, len(content), place)  # to the end, which checks the CRC
        else:
            with compr[kind](io.BytesIO(content), mode="rb") as stream:
                opened = _unpacked(stream, len(content), place)
    except (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError, RuntimeError) as error:
        raise place.broken(f"is truncated or damaged ({kind}: {error}): fetch it again") from None
    if not opened:
        raise place.broken(f"is empty (0 bytes inside the {kind} file): write it again")
    return opened


def _unpacked(stream: IO[bytes], packed: int, place: _Place) -> bytes:
    """All of a compressed file, unless it is a bomb: then only as much as shows that it is one.

    Archives nest nowhere here, and their members' names are never used as paths.
    """
    most = max(MOST_UNPACKED_BYTES, packed * MOST_UNPACKED_TIMES)
    opened = bytearray()
    while chunk := stream.read(1 << 20):
        opened += chunk
        if len(opened) > most:
            raise place.broken(
                f"unpacks to more than {most:,} bytes, from {packed:,}: unpack it yourself if it is what it should be"
            )
    return bytes(opened)


def _is_parquet(content: bytes) -> bool:
    return content[:4] == b"PAR1"


def _parse_parquet(content: bytes, place: _Place) -> pd.DataFrame:
    try:
        frame: pd.DataFrame = pa.parquet.read_table(pa.BufferReader(content)).to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _no_parquet(content, error, place) from None
    return frame.reset_index(drop=isinstance(frame.index, pd.RangeIndex))


def _no_parquet(content: bytes, error: Exception, place: _Place) -> ClearwayError:
    advice = "fetch it again" if _is_parquet(content) else "it is no Parquet file: name one, or use kind: csv"
    return place.broken(f"is truncated or damaged (Parquet: {error}): {advice}")


def _parse_csv(content: bytes, read: dict[str, Any], place: _Place) -> pd.DataFrame:
    """Parse CSV with pandas, once its rows are known to be whole.

    pandas fills a row that is too short with missing values, so a file cut off in its last line would pass.
    """
    encoding = str(read.get("encoding", "utf-8"))
    # one whole column at a time: by chunks, a column of mixed content would have a type that depends on the chunk size
    arguments = {"low_memory": False, **read}
    if arguments.get("engine") in ("python", "pyarrow"):
        arguments.pop("low_memory")
    try:
        if read.keys() <= _LAYOUT | _VALUES:
            _check_rows(content, read, encoding)
        frame: pd.DataFrame = pd.read_csv(io.BytesIO(content), **arguments)
    except pd.errors.EmptyDataError:
        raise place.broken("is empty: it has no header line; write it again") from None
    except UnicodeError as error:
        cause = str(error)
        if isinstance(error, UnicodeDecodeError):
            cause = f"byte {error.object[error.start]:#04x} at position {error.start}"
        advice = f"set {place.key}.read.encoding to the encoding it was written in, such as latin-1 or utf-16"
        raise place.broken(f"is not {encoding} text ({cause}): {advice}") from None
    except LookupError as error:
        raise place.unusable(f"{place.key}.read: {error}") from None
    except (TypeError, NotImplementedError) as error:
        raise place.unusable(f"{place.key}.read = {read!r} does not suit pandas.read_csv: {error}") from None
    except (pa.ArrowInvalid, pd.errors.ParserError, ValueError) as error:
        cause = str(error).removeprefix("CSV parse error: ").removeprefix("Error tokenizing data. C error: ")
        cause = cause if len(cause) <= 160 else cause[:160] + "…"
        advice = f"fetch it again, or describe its format under {place.key}.read"
        raise place.broken(f"is truncated or has unreadable rows ({cause}): {advice}") from None
    return frame


def _check_rows(content: bytes, read: dict[str, Any], encoding: str) -> None:
    """Count the fields of every row, keeping the first alone.

    Raises
    ------
    pyarrow.ArrowInvalid
        A row has more or fewer fields than the header.
    UnicodeError
        The bytes are not text of that encoding.
    """
    separator = str(read.get("sep", read.get("delimiter", ",")))
    quote = str(read.get("quotechar", '"'))
    if len(separator) != 1:
        return
    text = content.decode(encoding)
    if not text.strip():
        return  # pandas says so
    if encoding.lower().replace("_", "-") not in ("utf-8", "utf-8-sig", "ascii"):
        content = text.removeprefix("\ufeff").encode()
    del text
    # one thread, so that an error can name the row; no column is converted, so that nothing is inferred; not
    # pyarrow.csv.open_csv, whose reading ahead may abort a process that ends right after (apache/arrow#43604)
    pa.csv.read_csv(
        pa.BufferReader(content),
        read_options=pa.csv.ReadOptions(use_threads=False, autogenerate_column_names=True, block_size=4 << 20),
        parse_options=pa.csv.ParseOptions(delimiter=separator, quote_char=quote, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(include_columns=["f0"], column_types={"f0": pa.binary()}),
    )


def _query(source: SqlSource, root: Path, place: _Place) -> pd.DataFrame:
    """Run the query. The URL with its secrets filled in never reaches a message."""
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, InterfaceError, NoSuchModuleError, OperationalError, SQLAlchemyError

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], "")
        if not found:
            raise place.unusable(f"the environment variable {match[1]} is not set: export it before running the line")
        return found

    filled = _VARIABLE.sub(value, source.url)
    try:
        url = sqlalchemy.make_url(filled)
        file = url.database if url.get_backend_name() == "sqlite" else None
        if file and file != ":memory:" and not file.startswith("file:"):
            if not (root / file).is_file():  # SQLite would make an empty database of that name
                raise place.broken("is missing: there is no such database file; put it there, or correct the URL")
            url = url.set(database=str(root / file))
        engine = sqlalchemy.create_engine(url)
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise place.unusable("is no URL that SQLAlchemy knows, such as postgresql://user:password@host/name") from None
    except ImportError as error:
        raise place.unusable(f"the database driver is not installed: run pip install {error.name}") from None

    def attempt() -> pd.DataFrame:
        with engine.connect() as connection:
            return pd.read_sql_query(sqlalchemy.text(source.query), connection)

    def is_lost(error: BaseException) -> bool:
        cause = error.__cause__ if isinstance(error, pd.errors.DatabaseError) else error
        return isinstance(cause, (OperationalError, InterfaceError)) and engine.dialect.name != "sqlite"

    try:
        return _patiently(attempt, is_lost)
    except (SQLAlchemyError, OSError) as error:
        cause = _without(filled, str(getattr(error, "orig", None) or error))
        raise place.broken(f"cannot be queried: {cause}; check the URL and {place.key}.query") from None
    finally:
        engine.dispose()


def _utc(frame: pd.DataFrame, column: str, place: _Place) -> "pd.Series[pd.Timestamp]":
    """A declared timestamp column as ``datetime64[ns, UTC]``."""
    key = f"{place.key}.timestamps"
    if column not in frame.columns:
        there = ", ".join(map(str, frame.columns[:30]))
        raise place.broken(f"has no column {column!r}, which {key} names; it has: {there}")
    raw = frame[column]
    if pd.api.types.is_numeric_dtype(raw.dtype) and not raw.isna().all():
        raise place.broken(f"column {column!r} ({key}) holds numbers such as {raw.dropna().iloc[0]}: {_ISO}")
    text = raw.dtype == object or isinstance(raw.dtype, pd.StringDtype)
    times = pd.to_datetime(raw, utc=True, errors="coerce", format="ISO8601" if text else None)
    unread = times.isna() & raw.notna()
    if unread.any():
        position = int(unread.to_numpy().argmax())
        example = f"{raw.iloc[position]!r} in row {position + 1}"
        share = f"{int(unread.sum())} of {len(raw)} rows"
        raise place.broken(f"column {column!r} ({key}) has unreadable timestamps ({share}), such as {example}: {_ISO}")
    return times.astype("datetime64[ns, UTC]")


_ISO = "write times in ISO 8601, such as 2013-07-01T10:00:00Z, within the years 1678 to 2261"


def _hide(text: str) -> str:
    """A URL without user, password and query string (which may be a signature)."""
    text = _CREDENTIALS.sub("…@", text)
    return text.split("?")[0] + "?…" if "://" in text and "?" in text else text


def _without(url: str, message: str) -> str:
    """``message`` without the secrets of ``url``, should a driver have put them there."""
    hidden = _hide(message.replace(url, "the database"))
    for secret in re.findall(r"(?<=:)[^:/@\s]+(?=@)", url):
        hidden = hidden.replace(secret, "…")
    return hidden


def _one_line(text: str) -> str:
    """For a terminal: without line breaks, and with a mark for each run of control characters."""
    return " ".join(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text).split())
