"""Filling online stores for real: a Redis that restarts, processes that read, write and fill at once, or are killed."""

import clearway.feature_store  # noqa: F401  # first: it makes importing Feast quick

# isort: split
import gc
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pandas as pd
import polars as pl
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Bool, Float32, Float64, Int32, Int64, String
from redis_server import RedisServer, redis_server
from stored_project import embedded, import_package, redis, with_path, write_package, write_project

from clearway.errors import ClearwayError
from clearway.feature_store.event_rows import EventRows
from clearway.feature_store.materialise import Filled, OnlineFeed, fill_online, push
from clearway.feature_store.redis_rows import write_into_empty
from clearway.feature_store.store import open_store
from clearway.online_record import is_filled, read_record
from clearway.params import load_params
from clearway.workspace import Workspace

NOON = datetime(2024, 6, 1, 12, tzinfo=UTC)
US = timedelta(microseconds=1)
ORCHARDS = ("north", "south", "west")
Soil = tuple[str, datetime, float | None]
"""Orchard, when it became known, acidity."""

CHILD = """
import sys
from datetime import datetime, timedelta
from pathlib import Path

import clearway.feature_store
import orchards
import pandas as pd
from clearway.feature_store.materialise import fill_online, push
from clearway.feature_store.store import open_store
from clearway.params import load_params
from clearway.workspace import Workspace
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

workspace = Workspace(Path(sys.argv[1]))
params = load_params(workspace.params_file)
NOON = datetime.fromisoformat("2024-06-01T12:00:00+00:00")
KEYS = ["north", "south", "west"]
"""


@dataclass
class Line:
    """One workspace with short words for what a test does."""

    workspace: Workspace
    package: ModuleType

    def tables(self, rows: list[Soil]) -> None:
        self.workspace.feature_tables.mkdir(parents=True, exist_ok=True)
        soil_rows(rows).to_parquet(self.workspace.feature_tables / "soil.parquet")
        weather = pd.DataFrame({"station": ["hill"], "known_at": [NOON], "rain": [3.0]})
        weather.to_parquet(self.workspace.feature_tables / "weather.parquet")

    def fill(self, as_of: datetime) -> Filled:
        return fill_online(load_params(self.workspace.params_file), self.workspace, self.package.PROJECT, as_of)

    def push(self, rows: list[Soil]) -> int:
        params = load_params(self.workspace.params_file)
        return push(params, self.workspace, self.package.PROJECT, "soil", soil_rows(rows))

    @property
    def soil(self) -> FeatureView:
        return self.package.SOIL

    def held(self, *orchards: str) -> list[tuple[datetime, float | None] | None]:
        """Event time and acidity of each orchard, None where the store has none."""
        store = open_store(load_params(self.workspace.params_file), self.workspace)
        keys = [
            EntityKey(join_keys=["orchard"], entity_values=[Value(string_val=name)]) for name in orchards or ORCHARDS
        ]
        answer = store._get_provider().online_read(store.config, self.soil, keys)
        # Feast's Redis store answers for a key that it does not have with the year 1970
        return [
            None
            if values is None or time is None or time.year == 1970
            else (time, values["acidity"].double_val if values["acidity"].HasField("double_val") else None)
            for time, values in answer
        ]

    @contextmanager
    def child(self, code: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        environment = {**os.environ, "PYTHONPATH": with_path(Path(str(self.package.__file__)).parents[1])}
        command = [sys.executable, "-c", CHILD + code, str(self.workspace.root), *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)


def by_feast(store: FeatureStore, events: EventRows) -> None:
    provider = store._get_provider()
    provider.online_write_batch(store.config, events.view, events.for_feast(range(len(events))), None)


def soil_rows(rows: list[Soil]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["orchard", "known_at", "acidity"])
    known = pd.to_datetime(frame["known_at"], utc=True).astype("datetime64[us, UTC]")
    return frame.astype({"acidity": "float64", "orchard": "string"}).assign(known_at=known, wetness=0.5)


def oracle(rows: list[Soil], as_of: datetime) -> list[tuple[datetime, float | None] | None]:
    newest: dict[str, tuple[datetime, float | None]] = {}
    for orchard, known, acidity in rows:
        if known <= as_of and (orchard not in newest or known >= newest[orchard][0]):
            newest[orchard] = (known, acidity)
    return [newest.get(orchard) for orchard in ORCHARDS]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("package")
    write_package(folder)
    sys.modules.pop("orchards", None)
    yield import_package(folder)
    sys.modules.pop("orchards", None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as running:
        yield running


@pytest.fixture
def on_redis(tmp_path: Path, package: ModuleType, server: RedisServer) -> Line:
    return Line(write_project(tmp_path / "line", redis(server.connection_string)), package)


@pytest.fixture
def on_sqlite(tmp_path: Path, package: ModuleType) -> Line:
    return Line(write_project(tmp_path / "line", embedded()), package)


@pytest.fixture(params=["sqlite", "redis"])
def line(request: pytest.FixtureRequest) -> Line:
    return request.getfixturevalue(f"on_{request.param}")


class TestAnyStore:
    def test_holds_after_each_fill_exactly_what_was_known_then(self, line: Line) -> None:
        choose = random.Random(4)
        rows: list[Soil] = []
        whole = 0
        for _ in range(12):
            for _ in range(choose.randint(0, 3)):  # some are late, and some replace what was known
                known = NOON + choose.randint(-3, 3) * US
                rows.append((choose.choice(ORCHARDS), known, choose.choice([None, choose.random()])))
            line.tables(rows)
            as_of = NOON + choose.randint(-3, 4) * US
            whole += line.fill(as_of).full
            assert line.held() == oracle(rows, as_of)
        assert 0 < whole < 12

    def test_rows_pushed_in_any_order_keep_the_newest(self, line: Line) -> None:
        line.tables([("north", NOON, 1.0)])
        line.fill(NOON)
        line.push([("north", NOON - US, 0.0), ("south", NOON + US, 5.0), ("south", NOON, 4.0)])
        line.push([("south", NOON - US, 3.0), ("north", NOON + US, 2.0)])
        assert line.held() == [(NOON + US, 2.0), (NOON + US, 5.0), None]
        assert line.fill(NOON).full
        assert line.held() == [(NOON, 1.0), None, None]

    def test_follows_a_replay_and_is_rewound_after_it(self, line: Line) -> None:
        rows: list[Soil] = [(name, NOON + n * US, float(n)) for n in range(4) for name in ORCHARDS[: 1 + n % 2]]
        line.tables([row for row in rows if row[1] <= NOON])
        line.fill(NOON)
        events = {
            "soil": soil_rows(rows),
            "weather": pd.read_parquet(line.workspace.feature_tables / "weather.parquet"),
        }
        params = load_params(line.workspace.params_file)
        feed = OnlineFeed(params, line.workspace, line.package.PROJECT, events)
        feed.start_at(NOON)
        for step in range(4):
            feed.advance(NOON + step * US)
            assert line.held() == oracle(rows, NOON + step * US)
        assert line.fill(NOON).full
        assert line.held() == oracle(rows, NOON)

    def test_killed_while_it_fills_is_repaired_by_the_next_fill(self, line: Line) -> None:
        rows: list[Soil] = [(name, NOON + n * US, float(n)) for n in (0, 1) for name in ORCHARDS]
        line.tables(rows)
        line.fill(NOON + US)
        before = line.held()
        code = """
import time
def stop(*step):
    print(step, flush=True)
    time.sleep(60)
fill_online(params, workspace, orchards.PROJECT, NOON, progress=stop)
"""
        with line.child(code) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "('soil', 3, 3)\n"
            process.kill()
            process.wait(10)
        record = read_record(line.workspace)
        assert record is not None
        assert record.state == "filling"
        if line.workspace.feature_store.joinpath("online.db").exists():
            assert line.held() == before  # nothing of an unfinished fill is seen
        assert line.fill(NOON).full
        assert line.held() == oracle(rows, NOON)


class TestRedis:
    ROWS: tuple[Soil, ...] = (("north", NOON, 1.0), ("south", NOON + US, 2.0))

    def test_that_lost_everything_is_filled_whole(self, on_redis: Line, server: RedisServer) -> None:
        on_redis.tables(list(self.ROWS))
        on_redis.fill(NOON)
        server.stop()
        server.start()
        assert on_redis.held() == [None, None, None]
        assert not is_filled(load_params(on_redis.workspace.params_file), on_redis.workspace, NOON)
        assert on_redis.fill(NOON).full
        assert on_redis.held() == [(NOON, 1.0), None, None]
        assert on_redis.fill(NOON) == Filled({"soil": 0, "weather": 0}, full=False, as_of=NOON)

    def test_gets_of_a_whole_fill_the_bytes_that_feast_itself_would_write(
        self, on_redis: Line, server: RedisServer
    ) -> None:
        kinds = {"ripe": Float64, "sweet": Float32, "count": Int64, "crates": Int32, "kind": String, "sold": Bool}
        orchard = Entity(name="orchard", join_keys=["orchard"], value_type=ValueType.STRING)
        tree = Entity(name="tree", join_keys=["tree"], value_type=ValueType.STRING)
        keys = [Field(name="orchard", dtype=String), Field(name="tree", dtype=String)]
        source = FileSource(path="apples.parquet", timestamp_field="known_at")
        fields = [Field(name=name, dtype=kind) for name, kind in kinds.items()]
        view = FeatureView(name="apples", entities=[orchard, tree], schema=[*keys, *fields], source=source)
        rows = {
            "orchard": ["north", "süd", "west"],
            "tree": ["1", "2", "3"],
            "known_at": [NOON, NOON + US, datetime(1969, 7, 20, 20, 17, 40, 1, tzinfo=UTC)],
            "ripe": [0.1, -0.0, None],
            "sweet": [0.1, None, 3.0],
            "count": [2**62, None, -1],
            "crates": [None, 7, -7],
            "kind": ["Boskoop", "", None],
            "sold": [True, False, None],
        }
        events = EventRows(view, pl.DataFrame(rows))
        store = open_store(load_params(on_redis.workspace.params_file), on_redis.workspace)
        with server.client() as client:
            held = []
            for write in (lambda: write_into_empty(store, events, range(3)), lambda: by_feast(store, events)):
                client.flushall()
                write()
                held.append({key: client.hgetall(key) for key in client.scan_iter()})
        assert len(held[0]) == 3
        assert held[0] == held[1]

    def test_that_is_down_is_one_line_and_is_filled_once_it_is_back(self, on_redis: Line, server: RedisServer) -> None:
        on_redis.tables(list(self.ROWS))
        on_redis.fill(NOON + US)
        server.stop()
        with pytest.raises(ClearwayError, match=r"^the online store \(redis\) failed: ConnectionError: [^\n]*$"):
            on_redis.fill(NOON)
        server.start()
        on_redis.fill(NOON)
        assert on_redis.held() == [(NOON, 1.0), None, None]

    def test_with_a_password(self, tmp_path: Path, package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        with redis_server(tmp_path, password="cider") as server:
            line = Line(write_project(tmp_path / "line", redis("${ORCHARD_REDIS}")), package)
            line.tables(list(self.ROWS))
            monkeypatch.setenv("ORCHARD_REDIS", server.connection_string.replace("cider", "perry"))
            with pytest.raises(ClearwayError, match=r"\(redis\) failed: AuthenticationError") as caught:
                line.fill(NOON)
            assert "perry" not in str(caught.value)
            monkeypatch.setenv("ORCHARD_REDIS", server.connection_string)
            line.fill(NOON)
            assert line.held() == [(NOON, 1.0), None, None]

    def test_leaves_what_others_keep_there(self, on_redis: Line, server: RedisServer) -> None:
        with server.client() as client:
            client.set("somebody", "else")
            on_redis.tables(list(self.ROWS))
            on_redis.fill(NOON + US)
            on_redis.fill(NOON)
            assert client.get("somebody") == b"else"

    def test_leaves_the_rows_of_a_project_whose_name_ends_in_this_ones(
        self, tmp_path: Path, package: ModuleType, on_redis: Line, server: RedisServer
    ) -> None:
        other = Line(write_project(tmp_path / "other", redis(server.connection_string)), package)
        config = other.workspace.root / "feature_store.yaml"
        config.write_text(config.read_text().replace("project: orchards", "project: old_orchards"))
        other.tables([("north", NOON, 2.0)])
        other.fill(NOON)
        on_redis.tables(list(self.ROWS))
        assert on_redis.fill(NOON + US).full
        assert on_redis.fill(NOON).full
        assert on_redis.held() == [(NOON, 1.0), None, None]
        assert other.held() == [(NOON, 2.0), None, None]
        store = open_store(load_params(on_redis.workspace.params_file), on_redis.workspace)
        online = store._get_provider().online_store
        online.update(store.config, [on_redis.soil], [], [], [], partial=False)  # as Feast does for a view that is gone
        assert other.held() == [(NOON, 2.0), None, None]

    def test_two_processes_that_push_at_once_leave_the_newest(self, on_redis: Line) -> None:
        on_redis.tables([])
        on_redis.fill(NOON)
        code = """
late = int(sys.argv[2])
sys.stdout.write("ready")
sys.stdout.flush()
sys.stdin.readline()
known = NOON + timedelta(microseconds=late)
for turn in range(10):
    rows = [(f"orchard {turn} {number}", known, float(late), 0.0) for number in range(1000)]
    frame = pd.DataFrame(rows, columns=["orchard", "known_at", "acidity", "wetness"])
    push(params, workspace, orchards.PROJECT, "soil", frame)
"""
        with on_redis.child(code, "0") as earlier, on_redis.child(code, "1") as later:
            for process in (earlier, later):
                assert process.stdout is not None
                assert process.stdout.read(5) == "ready"
            for process in (earlier, later):
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            for process in (earlier, later):
                assert process.communicate(timeout=120) == ("", "")
        names = [f"orchard {turn} {number}" for turn in range(10) for number in range(1000)]
        assert set(on_redis.held(*names)) == {(NOON + US, 1.0)}


class TestDamage:
    """To the embedded store, while a server has its file open: what an error tells to do helps."""

    READER = """
store = open_store(params, workspace)
keys = [EntityKey(join_keys=["orchard"], entity_values=[Value(string_val=key)]) for key in KEYS]
for _ in sys.stdin:
    try:
        answer = store._get_provider().online_read(store.config, orchards.SOIL, keys)
        print([time is not None for time, _ in answer], flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""

    @pytest.mark.parametrize("damage", ["deleted", "emptied", "overwritten", "cut short"])
    def test_is_repaired_by_a_fill_or_by_deleting_the_file_and_a_fill(self, on_sqlite: Line, damage: str) -> None:
        rows: list[Soil] = [(name, NOON, float(n)) for n, name in enumerate(ORCHARDS)]
        on_sqlite.tables([*rows, *((f"far {n}", NOON, 0.0) for n in range(2000))])
        on_sqlite.fill(NOON)
        path = on_sqlite.workspace.feature_store / "online.db"
        gc.collect()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # all is in the one file
        with on_sqlite.child(self.READER) as server:
            assert self.ask(server) == "[True, True, True]"
            if damage in ("deleted", "emptied"):
                on_sqlite.fill(NOON - US)
                on_sqlite.fill(NOON)
                gc.collect()
                assert path.with_name("online.db-wal").stat().st_size > 0  # the server will leave it
            if damage == "deleted":
                path.unlink()
            elif damage == "emptied":
                os.truncate(path, 0)
            else:
                if damage == "cut short":
                    os.truncate(path, path.stat().st_size // 2)
                else:
                    path.write_bytes(b"not a database" * 1000)
                with pytest.raises(
                    ClearwayError, match=r"online\.db cannot be used .*: delete it and run scripts/build_"
                ):
                    on_sqlite.fill(NOON)
                path.unlink()
            assert on_sqlite.fill(NOON).full
            assert self.ask(server) == "[True, True, True]"
        assert is_filled(load_params(on_sqlite.workspace.params_file), on_sqlite.workspace, NOON)
        assert on_sqlite.held() == oracle(rows, NOON)

    def ask(self, server: "subprocess.Popen[str]") -> str:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write("read\n")
        server.stdin.flush()
        return server.stdout.readline().strip()


class TestProcesses:
    def test_readers_see_whole_rows_and_never_an_older_one_while_another_writes(self, on_sqlite: Line) -> None:
        on_sqlite.tables([])
        on_sqlite.fill(NOON)
        writing = """
import random
order = list(range(100))
random.Random(1).shuffle(order)
for n in order + [100]:
    rows = [(key, NOON + timedelta(microseconds=n), float(n), -float(n)) for key in KEYS]
    frame = pd.DataFrame(rows, columns=["orchard", "known_at", "acidity", "wetness"])
    push(params, workspace, orchards.PROJECT, "soil", frame)
"""
        reading = """
store = open_store(params, workspace)
keys = [EntityKey(join_keys=["orchard"], entity_values=[Value(string_val=key)]) for key in KEYS]
last, reads = -1, 0
print("ready", flush=True)
while last < 100:
    answer = store._get_provider().online_read(store.config, orchards.SOIL, keys)
    seen = {None if time is None else (time - NOON) // timedelta(microseconds=1) for time, _ in answer}
    assert len(seen) == 1, seen
    (n,) = seen
    if n is not None:
        assert n >= last, (n, last)
        assert {v["acidity"].double_val for _, v in answer} == {float(n)}, n
        assert {v["wetness"].double_val for _, v in answer} == {-float(n)}, n
        last = n
    reads += 1
"""
        with on_sqlite.child(reading) as first, on_sqlite.child(reading) as second:
            for reader in (first, second):
                assert reader.stdout is not None
                assert reader.stdout.readline() == "ready\n"
            with on_sqlite.child(writing) as writer:
                assert writer.communicate(timeout=120) == ("", "")
            for reader in (first, second):
                assert reader.communicate(timeout=60) == ("", "")
                assert reader.returncode == 0

    def test_two_fills_at_once_take_turns(self, on_sqlite: Line) -> None:
        rows: list[Soil] = [(name, NOON + n * US, float(n)) for n in range(20) for name in ORCHARDS]
        on_sqlite.tables(rows)
        code = """
for n in map(int, sys.argv[2:]):
    fill_online(params, workspace, orchards.PROJECT, NOON + timedelta(microseconds=n))
"""
        with on_sqlite.child(code, *map(str, [3, 9, 1, 12, 5, 7])) as first:
            with on_sqlite.child(code, *map(str, [4, 2, 11, 6, 8])) as second:
                assert second.communicate(timeout=120) == ("", "")
            assert first.communicate(timeout=120) == ("", "")
        record = read_record(on_sqlite.workspace)
        assert record is not None
        assert record.filled_until in (NOON + 7 * US, NOON + 8 * US)
        assert on_sqlite.held() == oracle(rows, record.filled_until)
