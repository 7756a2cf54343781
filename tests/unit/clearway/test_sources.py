"""Each kind of source is read, and each way in which one can be broken is one line that says where and what to do."""

import gzip
import io
import sqlite3
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from pydantic import TypeAdapter

from clearway.errors import ClearwayError, UsageError
from clearway.params import Source
from clearway.sources import ATTEMPTS, describe_source, read_source, scan_parquet_file

CSV = "name,count,seen\nann,1,2024-01-01T00:00:00Z\nbob,2,2024-01-02 06:30:00\n"


def source(**entry: Any) -> Source:
    return TypeAdapter(Source).validate_python({"kind": "csv", **entry})


def read(folder: Path, **entry: Any) -> pd.DataFrame:
    return read_source(source(**entry), folder, key="sources.people")


def refused(folder: Path, error: type[ClearwayError] = ClearwayError, **entry: Any) -> str:
    """The message with which a source is refused: always one line, with the key that names the source."""
    with pytest.raises(error) as caught:
        read(folder, **entry)
    message = str(caught.value)
    assert "\n" not in message
    assert "sources.people" in message
    assert type(caught.value) is error
    return message


def write(path: Path, content: bytes | str) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def zipped(*contents: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"{number}.csv", content)
    return stream.getvalue()


def test_a_csv_is_read_with_utc_timestamps(tmp_path: Path) -> None:
    write(tmp_path / "people.csv", CSV)
    frame = read(tmp_path, path="people.csv", timestamps=["seen"])
    assert frame["name"].tolist() == ["ann", "bob"]
    assert str(frame["seen"].dtype) == "datetime64[ns, UTC]"
    assert frame["seen"].tolist() == [pd.Timestamp("2024-01-01", tz="UTC"), pd.Timestamp("2024-01-02T06:30", tz="UTC")]


def test_times_of_another_zone_become_utc(tmp_path: Path) -> None:
    write(tmp_path / "people.csv", "seen\n2024-01-01T00:00:00-05:00\n")
    assert read(tmp_path, path="people.csv", timestamps=["seen"])["seen"][0] == pd.Timestamp("2024-01-01T05:00Z")


@pytest.mark.parametrize("ending", ["zip", "gz", "bz2", "xz"])
def test_compressed_files_are_opened(tmp_path: Path, ending: str) -> None:
    import bz2
    import lzma

    packed = {"zip": zipped(CSV), "gz": gzip.compress(CSV.encode()), "bz2": bz2.compress(CSV.encode())}
    write(tmp_path / f"people.csv.{ending}", packed.get(ending) or lzma.compress(CSV.encode()))
    assert len(read(tmp_path, path=f"people.csv.{ending}")) == 2


def test_read_arguments_reach_pandas(tmp_path: Path) -> None:
    write(tmp_path / "people.csv", "name;weight\nJosé;1,5\n".encode("latin-1"))
    frame = read(tmp_path, path="people.csv", read={"sep": ";", "decimal": ",", "encoding": "latin-1"})
    assert frame.to_dict("records") == [{"name": "José", "weight": 1.5}]


def test_quoted_line_breaks_and_a_byte_order_mark_are_no_damage(tmp_path: Path) -> None:
    write(tmp_path / "people.csv", '\ufeffname,text\nann,"two\nlines, ""quoted"""\nbob,x\n')
    frame = read(tmp_path, path="people.csv")
    assert frame["name"].tolist() == ["ann", "bob"]
    assert frame["text"][0] == 'two\nlines, "quoted"'


def test_parquet_is_read(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1, 2], "t": pd.to_datetime(["2024-01-01", "2024-01-02"])}).to_parquet(tmp_path / "a.parquet")
    frame = read(tmp_path, kind="parquet", path="a.parquet", timestamps=["t"])
    assert frame["a"].tolist() == [1, 2]
    assert str(frame["t"].dtype) == "datetime64[ns, UTC]"


def test_an_fsspec_url_works_where_a_path_does() -> None:
    with fsspec.open("memory://clearway-test/people.csv", "wb") as stream:
        stream.write(CSV.encode())
    assert len(read(Path("nowhere"), path="memory://clearway-test/people.csv")) == 2


@contextmanager
def website(content: bytes, *failures: int | str) -> Iterator[tuple[str, list[str]]]:
    """A server whose first answers are failures: a status, ``lost`` (no answer) or ``cut`` (half of the content)."""
    asked: list[str] = []
    length = len(content)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(b"")

        def do_GET(self) -> None:
            self.answer(content)
            asked.append(self.path)

        def answer(self, content: bytes) -> None:
            failure = failures[len(asked)] if len(asked) < len(failures) else 200
            if failure == "lost":
                self.close_connection = True
                return
            self.send_response(failure if isinstance(failure, int) else 200)
            self.send_header("Content-Length", str(length))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content[: length // 2] if failure == "cut" else content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clearway.sources.FIRST_WAIT", 0.01)
    monkeypatch.setattr("clearway.sources.LONGEST_WAIT", 0.02)


@pytest.mark.usefixtures("impatient")
def test_a_website_that_fails_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    with website(CSV.encode(), 503, "lost", "cut") as (address, asked):
        assert len(read(tmp_path, path=f"{address}/people.csv")) == 2
    assert len(asked) == ATTEMPTS


@pytest.mark.usefixtures("impatient")
def test_a_parquet_file_of_a_website_that_fails_for_a_moment_is_copied_whole(tmp_path: Path) -> None:
    stream = io.BytesIO()
    pd.DataFrame({"a": range(1000)}).to_parquet(stream)
    with website(stream.getvalue(), "cut", 429) as (address, asked):
        entry = source(kind="parquet", path=f"{address}/people.parquet")
        with scan_parquet_file(entry, tmp_path, key="sources.people") as scan:
            assert not isinstance(scan, pd.DataFrame)
            assert scan.collect()["a"].to_list() == list(range(1000))
    assert len(asked) == 3


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("failure", "times"), [(500, ATTEMPTS), ("cut", ATTEMPTS), (404, 1), (403, 1), (401, 1)])
def test_a_website_that_goes_on_failing_is_named_and_a_refusal_is_final(
    tmp_path: Path, failure: int | str, times: int
) -> None:
    with website(CSV.encode(), *[failure] * 9) as (address, asked):
        said = refused(tmp_path, path=f"{address}/people.csv")
    assert ("is missing" if failure == 404 else "cannot be read") in said
    assert len(asked) == times


@pytest.mark.usefixtures("impatient")
def test_a_database_that_loses_the_connection_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dialect is of a server, its driver SQLite's: the first connections are lost."""
    from sqlalchemy.dialects import registry
    from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

    tried: list[str] = []

    class Far(SQLiteDialect_pysqlite):
        name = "far"
        supports_statement_cache = True

        def connect(self, *arguments: Any, **keywords: Any) -> Any:
            tried.append("connect")
            if len(tried) < 3:
                raise sqlite3.OperationalError("server closed the connection unexpectedly")
            return super().connect(*arguments, **keywords)

    monkeypatch.setitem(registry.impls, "far", lambda: Far)
    with sqlite3.connect(tmp_path / "people.db") as database:
        database.execute("create table people (name text)")
        database.execute("insert into people values ('ann')")
    database.close()
    url = f"far:///{tmp_path / 'people.db'}"
    assert read(tmp_path, kind="sql", url=url, query="select * from people")["name"].tolist() == ["ann"]
    assert len(tried) == 3


def test_a_package_file_is_read_without_importing_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "oddpeople").mkdir()
    write(tmp_path / "oddpeople" / "__init__.py", "raise RuntimeError('imported')")
    write(tmp_path / "oddpeople" / "people.csv", CSV)
    record = tmp_path / "odd_people-1.2.dist-info"
    record.mkdir()
    write(record / "METADATA", "Metadata-Version: 2.1\nName: odd-people\nVersion: 1.2\n")
    write(record / "RECORD", "oddpeople/__init__.py,,\noddpeople/people.csv,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = {"kind": "package", "distribution": "odd-people", "path": "oddpeople/people.csv"}
    assert len(read(tmp_path, **entry)) == 2
    assert "oddpeople" not in sys.modules
    assert describe_source(source(**entry)) == "odd-people 1.2: oddpeople/people.csv"
    message = refused(tmp_path, UsageError, **{**entry, "path": "oddpeople/persons.csv"})
    assert "oddpeople/people.csv" in message


def test_a_distribution_that_is_not_installed_is_named(tmp_path: Path) -> None:
    message = refused(tmp_path, UsageError, kind="package", distribution="no-such-thing", path="a.csv")
    assert "pip install no-such-thing" in message


def database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table people (name text, seen text)")
        connection.execute("insert into people values ('ann', '2024-01-01T00:00:00Z'), ('bob', null)")
    connection.close()


def test_a_query_is_run_and_its_url_filled_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database(tmp_path / "people.db")
    monkeypatch.setenv("PEOPLE_DB", "people.db")
    entry = {"kind": "sql", "url": "sqlite:///${PEOPLE_DB}", "query": "select *\nfrom people", "timestamps": ["seen"]}
    frame = read(tmp_path, **entry)
    assert frame["name"].tolist() == ["ann", "bob"]
    assert frame["seen"][0] == pd.Timestamp("2024-01-01", tz="UTC")
    assert pd.isna(frame["seen"][1])
    assert describe_source(source(**entry)) == "sqlite:///${PEOPLE_DB}: select * from people"


def test_a_missing_environment_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEOPLE_PASSWORD", raising=False)
    url = "postgresql://u:${PEOPLE_PASSWORD}@host/db"
    message = refused(tmp_path, UsageError, kind="sql", url=url, query="select 1")
    assert "PEOPLE_PASSWORD" in message


def test_a_bad_query_a_missing_database_and_a_bad_url_are_told_apart(tmp_path: Path) -> None:
    database(tmp_path / "people.db")
    bad_query = {"kind": "sql", "url": "sqlite:///people.db", "query": "select * from persons"}
    assert "no such table: persons" in refused(tmp_path, **bad_query)
    assert "is missing" in refused(tmp_path, kind="sql", url="sqlite:///gone.db", query="select 1")
    assert not (tmp_path / "gone.db").exists()
    assert "SQLAlchemy" in refused(tmp_path, UsageError, kind="sql", url="nonsense", query="select 1")


def test_a_password_reaches_neither_message_nor_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEOPLE_PASSWORD", "hunter2")
    for url in ("oddbase://u:${PEOPLE_PASSWORD}@host/db", "oddbase://u:hunter2@host/db"):
        assert "hunter2" not in refused(tmp_path, UsageError, kind="sql", url=url, query="select 1")
        assert "hunter2" not in describe_source(source(kind="sql", url=url, query="select 1"))
    signed = "memory://key:hunter2@bucket/a.csv?signature=hunter2"
    assert "hunter2" not in refused(tmp_path, path=signed)
    assert "hunter2" not in describe_source(source(path=signed))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    message = refused(tmp_path, path="data/people.csv")
    assert "data/people.csv (sources.people.path) is missing" in message
    assert "is missing" in refused(tmp_path, path="memory://clearway-test/gone.csv")
    (tmp_path / "folder").mkdir()
    assert "is a folder" in refused(tmp_path, path="folder")


@pytest.mark.parametrize("content", ["", "\n\n", "name,count\n"])
def test_an_empty_file_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path / "people.csv", content)
    message = refused(tmp_path, path="people.csv")
    assert "is empty" in message or "no rows" in message


def test_an_empty_query_is_named(tmp_path: Path) -> None:
    database(tmp_path / "people.db")
    url = "sqlite:///people.db"
    assert "no rows" in refused(tmp_path, kind="sql", url=url, query="select * from people where name = 'cyd'")


@pytest.mark.parametrize("ending", ["zip", "gz", "parquet"])
def test_a_truncated_archive_is_named(tmp_path: Path, ending: str) -> None:
    parquet = io.BytesIO()
    pd.DataFrame({"a": range(1000)}).to_parquet(parquet)
    whole = {"zip": zipped(CSV * 50), "gz": gzip.compress(CSV.encode() * 50), "parquet": parquet.getvalue()}[ending]
    write(tmp_path / f"people.{ending}", whole[: len(whole) // 2])
    kind = "parquet" if ending == "parquet" else "csv"
    assert "truncated or damaged" in refused(tmp_path, kind=kind, path=f"people.{ending}")


@pytest.mark.parametrize("ending", ["zip", "gz", "bz2", "xz"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    import bz2
    import lzma

    monkeypatch.setattr("clearway.sources.MOST_UNPACKED_BYTES", 2**20)
    zeros = bytes(2**24)
    packed = {
        "zip": lambda: zipped(zeros.decode()),
        "gz": lambda: gzip.compress(zeros),
        "bz2": lambda: bz2.compress(zeros),
    }
    write(tmp_path / f"people.csv.{ending}", packed.get(ending, lambda: lzma.compress(zeros))())
    said = refused(tmp_path, ClearwayError, path=f"people.csv.{ending}")
    assert "unpacks to more than " in said
    assert "bytes, from " in said


def test_a_member_that_would_leave_the_folder_writes_nothing(tmp_path: Path) -> None:
    """What is in an archive is read, and its name is never a path."""
    folder = tmp_path / "project"
    folder.mkdir()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../outside.csv", CSV)
    write(folder / "people.csv.zip", stream.getvalue())
    assert len(read(folder, path="people.csv.zip")) == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["project", "people.csv.zip"]


def test_a_locked_archive_is_named(tmp_path: Path) -> None:
    content = bytearray(zipped(CSV))
    for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + offset] |= 1  # says that a password is needed
    write(tmp_path / "people.csv.zip", bytes(content))
    assert "is encrypted" in refused(tmp_path, ClearwayError, path="people.csv.zip")


def test_an_archive_of_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "people.zip", zipped(CSV, CSV))
    assert "exactly one file, found 2" in refused(tmp_path, path="people.zip")


@pytest.mark.parametrize(
    ("content", "row"),
    [
        (CSV[: CSV.rindex(",")], "#3"),  # the last line lost its end
        ("a,b\n1,2\n3\n4,5\n", "#3"),
        ("a,b\n1,2\n3,4,5\n", "#3"),
        ("a,b\n1,2,3\n4,5,6\n", "#2"),  # pandas would take the first column for an index
        ('a,b\n1,"2\n3,4\n', ""),  # a quote that never ends
    ],
)
def test_a_csv_of_uneven_rows_is_named_with_its_row(tmp_path: Path, content: str, row: str) -> None:
    write(tmp_path / "people.csv", content)
    message = refused(tmp_path, path="people.csv")
    assert "truncated or has unreadable rows" in message
    assert row in message


def test_bytes_that_are_no_text_do_not_reach_the_terminal(tmp_path: Path) -> None:
    write(tmp_path / "people.csv", b"a,b\n1,2\n" + b"\0" * 40 + b"\x1b[31m")
    message = refused(tmp_path, path="people.csv")
    assert "truncated or has unreadable rows" in message
    assert message.isprintable()


def test_another_encoding_is_named_with_the_key_that_sets_it(tmp_path: Path) -> None:
    write(tmp_path / "people.csv", "name\nJosé\n".encode("latin-1"))
    message = refused(tmp_path, path="people.csv")
    assert "is not utf-8 text" in message
    assert "sources.people.read.encoding" in message
    assert "unknown encoding" in refused(tmp_path, UsageError, path="people.csv", read={"encoding": "klingon"})


def test_an_argument_that_pandas_does_not_know_is_usage(tmp_path: Path) -> None:
    write(tmp_path / "people.csv", CSV)
    assert "seperator" in refused(tmp_path, UsageError, path="people.csv", read={"seperator": ";"})


def test_a_missing_timestamp_column_is_named(tmp_path: Path) -> None:
    write(tmp_path / "people.csv", CSV)
    message = refused(tmp_path, path="people.csv", timestamps=["seen_at"])
    assert "'seen_at'" in message
    assert "name, count, seen" in message


@pytest.mark.parametrize("value", ["01/02/2024", "soon", "9999-12-31", "2024-02-30"])
def test_an_unreadable_timestamp_is_shown_with_its_row(tmp_path: Path, value: str) -> None:
    write(tmp_path / "people.csv", f"seen,x\n2024-01-01,1\n,2\n{value},3\n")
    message = refused(tmp_path, path="people.csv", timestamps=["seen"])
    assert "unreadable timestamps (1 of 3 rows)" in message
    assert f"{value!r} in row 3" in message


def test_numbers_are_not_taken_for_times(tmp_path: Path) -> None:
    write(tmp_path / "people.csv", "seen\n2013\n2014\n")
    assert "holds numbers such as 2013" in refused(tmp_path, path="people.csv", timestamps=["seen"])


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    database(tmp_path / "people.db")
    query = "select a.name, b.name from people a join people b on a.name = b.name"
    assert "two columns named 'name'" in refused(tmp_path, kind="sql", url="sqlite:///people.db", query=query)
