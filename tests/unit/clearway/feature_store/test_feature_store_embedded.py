"""The embedded online store: the newest event of each key, exact times, one writer and many readers."""

import clearway.feature_store  # noqa: F401  # first: it makes importing Feast quick

# isort: split
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureView, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64, String
from feature_store_harbour import DRAUGHT_FIELDS, EMBEDDED, NOON, US, draughts, key, moorings, plain
from hypothesis import given, settings
from hypothesis import strategies as st

from clearway.errors import ClearwayError
from clearway.feature_store import embedded
from clearway.feature_store.embedded import EmbeddedOnlineStore

VIEW = draughts({"draught": Float64, "containers": Int64})


def config(folder: Path) -> RepoConfig:
    values = {"project": "harbour", "registry": "registry.db", "provider": "local", "online_store": dict(EMBEDDED)}
    made = RepoConfig(**values, entity_key_serialization_version=3)
    made.repo_path = folder
    return made


class Store:
    """The store of one folder with short words for what a test does."""

    def __init__(self, folder: Path) -> None:
        self.config = config(folder)
        self.online = EmbeddedOnlineStore()
        self.file = folder / EMBEDDED["path"]

    def make(self, *views: FeatureView) -> None:
        self.online.update(self.config, [], list(views), [], [], partial=False)

    def write(self, ship: str, event: datetime, value: float, created: datetime | None = None, **extra: Value) -> None:
        values = {"draught": Value(double_val=value), "containers": Value(), **extra}
        self.online.online_write_batch(self.config, VIEW, [(key(ship=ship), values, event, created)], None)

    def read(self, *ships: str, view: FeatureView = VIEW) -> list[tuple[datetime | None, Any]]:
        rows = self.online.online_read(self.config, view, [key(ship=ship) for ship in ships])
        return [(event, None if row is None else {n: plain(v) for n, v in row.items()}) for event, row in rows]

    def draught(self, ship: str) -> Any:
        return self.read(ship)[0][1]["draught"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.make(VIEW)
    return made


@pytest.fixture
def machine_time_zone() -> Iterator[Any]:
    before = os.environ.get("TZ")

    def move(zone: str) -> None:
        os.environ["TZ"] = zone
        time.tzset()

    yield move
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


class TestNewestWins:
    def test_an_older_event_that_arrives_later_changes_nothing(self, store: Store) -> None:
        store.write("ada", NOON, 2.0)
        store.write("ada", NOON - US, 1.0)
        assert store.read("ada") == [(NOON, {"draught": 2.0, "containers": None})]

    def test_of_one_instant_the_one_created_later_wins(self, store: Store) -> None:
        store.write("ada", NOON, 2.0, created=NOON + 5 * US)
        store.write("ada", NOON, 1.0, created=NOON + 4 * US)
        assert store.draught("ada") == 2.0
        store.write("ada", NOON, 3.0, created=NOON + 6 * US)
        assert store.draught("ada") == 3.0

    def test_a_row_without_created_time_is_the_oldest_of_its_instant(self, store: Store) -> None:
        store.write("ada", NOON, 2.0, created=datetime(1960, 1, 1, tzinfo=UTC))
        store.write("ada", NOON, 1.0)
        assert store.draught("ada") == 2.0

    def test_of_equal_times_the_one_that_arrives_last_wins(self, store: Store) -> None:
        store.write("ada", NOON, 2.0)
        store.write("ada", NOON, 1.0)
        assert store.draught("ada") == 1.0
        store.write("bob", NOON, 2.0, created=NOON)
        store.write("bob", NOON, 1.0, created=NOON)
        assert store.draught("bob") == 1.0

    @settings(max_examples=20, deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from(["ada", "bob"]), st.integers(-3, 3), st.one_of(st.none(), st.integers(-2, 2))),
            max_size=12,
            unique=True,
        ),
        st.randoms(use_true_random=False),
    )
    def test_any_order_of_arrival_in_any_batches_gives_the_same(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, int | None]], order: random.Random
    ) -> None:
        store = Store(tmp_path_factory.mktemp("any"))
        store.make(VIEW)
        times = {n: NOON + n * US for n in range(-3, 4)}
        data = [
            (
                key(ship=ship),
                {"draught": Value(double_val=number), "containers": Value()},
                times[event],
                None if created is None else times[created],
            )
            for number, (ship, event, created) in enumerate(rows)
        ]
        shuffled = order.sample(data, len(data))
        cut = order.randint(0, len(data))
        for part in (shuffled[:cut], shuffled[cut:]):
            store.online.online_write_batch(store.config, VIEW, part, None)
        for ship in ("ada", "bob"):
            own = [(e, -9 if c is None else c, n) for n, (s, e, c) in enumerate(rows) if s == ship]
            event, _, number = max(own, default=(None, None, None))
            expected = (None, None) if event is None else (times[event], {"draught": number, "containers": None})
            assert store.read(ship) == [expected]


class TestTimes:
    @pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kathmandu"])
    def test_are_exact_whatever_the_time_zone_of_the_machine(
        self, store: Store, machine_time_zone: Any, zone: str
    ) -> None:
        machine_time_zone(zone)
        exact = datetime(2024, 3, 10, 7, 30, 0, 123457, tzinfo=UTC)  # clocks change in New York at 7:00
        store.write("ada", exact, 1.0)
        machine_time_zone("UTC")
        assert store.read("ada")[0][0] == exact
        assert store.read("ada")[0][0].utcoffset() == timedelta(0)

    def test_of_other_zones_are_the_same_instants(self, store: Store, machine_time_zone: Any) -> None:
        machine_time_zone("Asia/Kathmandu")
        store.write("ada", NOON.astimezone(timezone(timedelta(hours=9))), 1.0)
        store.write("bob", NOON.replace(tzinfo=None), 1.0)  # as everywhere in Feast, this is UTC
        store.write("cyd", datetime(1912, 4, 14, 23, 40, 0, 1, tzinfo=UTC), 1.0)
        assert [event for event, _ in store.read("ada", "bob", "cyd")] == [
            NOON,
            NOON,
            datetime(1912, 4, 14, 23, 40, 0, 1, tzinfo=UTC),
        ]


class TestReading:
    def test_answers_in_the_order_of_the_keys_with_duplicates_and_unknown_keys(self, store: Store) -> None:
        for number, ship in enumerate(["ada", "bob", "cyd"]):
            store.write(ship, NOON, float(number))
        answer = store.read("cyd", "nobody", "ada", "cyd")
        assert [row and row["draught"] for _, row in answer] == [2.0, None, 0.0, 2.0]
        assert answer[1] == (None, None)
        assert store.read() == []

    def test_answers_more_keys_than_one_query_takes(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        ships = [f"ship{number}" for number in range(700)]
        data = [
            (key(ship=ship), {"draught": Value(double_val=n), "containers": Value(int64_val=n)}, NOON, None)
            for n, ship in enumerate(ships)
        ]
        store.online.online_write_batch(store.config, VIEW, data, None)
        assert [row["draught"] for _, row in store.read(*ships)] == list(range(700))
        monkeypatch.setattr(embedded, "KEYS_PER_QUERY", 100)
        assert [row["draught"] for _, row in store.read(*ships)] == list(range(700))

    def test_gives_what_is_asked_for(self, store: Store) -> None:
        store.write("ada", NOON, 1.5)
        ((_, row),) = store.online.online_read(store.config, VIEW, [key(ship="ada")], ["draught"])
        assert {name: plain(value) for name, value in row.items()} == {"draught": 1.5}

    def test_a_key_of_two_entities_is_the_same_in_any_order(self, store: Store) -> None:
        store.make(moorings())
        row = (key(ship="ada", berth="7"), {"ropes": Value(int64_val=4)}, NOON, None)
        store.online.online_write_batch(store.config, moorings(), [row], None)
        ((event, _),) = store.online.online_read(store.config, moorings(), [key(berth="7", ship="ada")])
        assert event == NOON


class TestValues:
    def test_come_back_as_they_were(self, store: Store) -> None:
        view = draughts(name="all")
        store.make(view)
        values = [0.1 + 0.2, -0.0, 5e-324, float("inf")]
        for number, value in enumerate(values):
            row = {
                "draught": Value(double_val=value),
                "containers": Value(int64_val=2**63 - 1 - number),
                "flag": Value(string_val="\0Åland\n"),
                "towed": Value(bool_val=False),
            }
            store.online.online_write_batch(store.config, view, [(key(ship=str(number)), row, NOON, None)], None)
        answer = store.read(*map(str, range(4)), view=view)
        assert [repr(row["draught"]) for _, row in answer] == [repr(value) for value in values]
        assert [row["containers"] for _, row in answer] == [2**63 - 1 - number for number in range(4)]
        assert answer[0][1] | {"draught": 0, "containers": 0} == {
            "draught": 0,
            "containers": 0,
            "flag": "\0Åland\n",
            "towed": False,
        }

    def test_a_row_of_some_features_leaves_the_others_as_they_are(self, store: Store) -> None:
        store.write("ada", NOON, 1.0, containers=Value(int64_val=7))
        part = {"draught": Value(double_val=2.0)}
        store.online.online_write_batch(store.config, VIEW, [(key(ship="ada"), part, NOON + US, None)], None)
        assert store.read("ada") == [(NOON + US, {"draught": 2.0, "containers": 7})]
        late = {"draught": Value(double_val=9.0)}
        store.online.online_write_batch(store.config, VIEW, [(key(ship="ada"), late, NOON, None)], None)
        assert store.read("ada") == [(NOON + US, {"draught": 2.0, "containers": 7})]

    def test_a_dropped_field_is_no_longer_given_and_an_added_one_is_unset(self, store: Store) -> None:
        store.write("ada", NOON, 1.0, containers=Value(int64_val=7))
        changed = draughts({"draught": Float64, "flag": String})
        store.make(changed)
        assert store.read("ada", view=changed) == [(NOON, {"draught": 1.0, "flag": None})]
        asked = store.online.online_read(store.config, changed, [key(ship="ada")], ["containers", "draught"])
        assert [(name, plain(value)) for name, value in asked[0][1].items()] == [("containers", None), ("draught", 1.0)]


class TestTables:
    def test_a_view_that_was_never_filled_is_an_error_that_says_what_to_run(self, store: Store) -> None:
        with pytest.raises(ClearwayError, match=r"online\.db has no table harbour_moorings: .*build_features\.py"):
            store.online.online_read(store.config, moorings(), [key(ship="a", berth="b")])

    def test_a_missing_file_is_an_error_and_is_not_made_by_reading(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        with pytest.raises(ClearwayError, match=r"online\.db is missing: .*build_features\.py"):
            store.read("ada")
        assert not store.file.exists()

    def test_a_file_that_is_no_database_is_named(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        store.file.parent.mkdir(parents=True)
        store.file.write_text("no database" * 100)
        with pytest.raises(ClearwayError, match=r"online\.db cannot be used .* delete it"):
            store.read("ada")

    def test_an_empty_file_is_an_error_and_is_replaced_by_writing(self, store: Store) -> None:
        store.write("ada", NOON, 1.0)
        os.truncate(store.file, 0)
        with pytest.raises(ClearwayError, match=r"online\.db is empty: .*build_features\.py"):
            store.read("ada")
        store.make(VIEW)
        assert store.read("ada") == [(None, None)]

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "var").write_text("a file")
        with pytest.raises(ClearwayError, match=r"^[^\n]*online\.db cannot be (made|read) \([^\n]*$"):
            Store(tmp_path).make(VIEW)

    def test_a_file_put_in_the_place_of_another_is_read(self, store: Store) -> None:
        store.write("ada", NOON, 1.0)
        assert store.draught("ada") == 1.0
        for path in store.file.parent.iterdir():
            path.unlink()
        with pytest.raises(ClearwayError, match="is missing"):
            store.read("ada")
        store.make(VIEW)
        assert store.read("ada") == [(None, None)]

    def test_update_keeps_rows_and_drops_the_tables_of_deleted_views(self, store: Store) -> None:
        store.make(VIEW, moorings())
        store.write("ada", NOON, 1.0)
        store.online.update(store.config, [moorings()], [VIEW], [], [], partial=False)
        assert store.draught("ada") == 1.0
        with pytest.raises(ClearwayError, match="no table harbour_moorings"):
            store.online.online_read(store.config, moorings(), [key(ship="a", berth="b")])

    def test_teardown_is_seen_by_others_that_have_the_file_open(self, store: Store) -> None:
        store.write("ada", NOON, 1.0)
        other = Store(store.config.repo_path)
        assert other.draught("ada") == 1.0
        store.online.teardown(store.config, [VIEW], [])
        with pytest.raises(ClearwayError, match="no table"):
            other.read("ada")
        store.make(VIEW)
        assert other.read("ada") == [(None, None)]

    def test_teardown_of_what_never_was_makes_nothing(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        store.online.teardown(store.config, [VIEW], [])
        assert not store.file.exists()


class TestReadingSeveralViews:
    @pytest.fixture
    def fleet(self, store: Store) -> Store:
        store.make(VIEW, moorings())
        self.both(store, 1)
        return store

    def both(self, store: Store, number: int) -> None:
        """Write one number to both views at once."""
        ropes = (key(ship="ada", berth="7"), {"ropes": Value(int64_val=number)}, NOON + number * US, None)
        with store.online.transaction(store.config):
            store.write("ada", NOON + number * US, float(number))
            store.online.online_write_batch(store.config, moorings(), [ropes], None)

    def ropes(self, store: Store) -> Any:
        ((_, row),) = store.online.online_read(store.config, moorings(), [key(ship="ada", berth="7")])
        return None if row is None else plain(row["ropes"])

    def test_gives_one_state_while_another_writes(self, fleet: Store) -> None:
        other = Store(fleet.config.repo_path)
        with fleet.online.reading(fleet.config):
            assert fleet.draught("ada") == 1.0
            self.both(other, 2)
            assert (fleet.draught("ada"), self.ropes(fleet)) == (1.0, 1)
            with fleet.online.reading(fleet.config):
                assert self.ropes(fleet) == 1
            assert self.ropes(fleet) == 1
        assert (fleet.draught("ada"), self.ropes(fleet)) == (2.0, 2)

    @pytest.mark.parametrize("replaced", [True, False])
    def test_goes_on_when_the_file_is_deleted_or_replaced(self, fleet: Store, replaced: bool) -> None:
        other = Store(fleet.config.repo_path)
        with fleet.online.reading(fleet.config):
            assert fleet.draught("ada") == 1.0
            fleet.file.unlink()
            if replaced:
                other.make(VIEW, moorings())
                self.both(other, 2)
            assert self.ropes(fleet) == 1
        if replaced:
            assert self.ropes(fleet) == 2
        else:
            with pytest.raises(ClearwayError, match="is missing"):
                self.ropes(fleet)

    def test_ends_with_an_error_of_the_block_or_of_the_store(self, fleet: Store) -> None:
        with pytest.raises(KeyboardInterrupt), fleet.online.reading(fleet.config):
            raise KeyboardInterrupt
        with pytest.raises(ClearwayError, match="no table harbour_unknown"), fleet.online.reading(fleet.config):
            fleet.read("ada", view=draughts(name="unknown"))
        self.both(fleet, 2)
        assert self.ropes(fleet) == 2

    def test_of_a_missing_file_is_the_same_error(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        with pytest.raises(ClearwayError, match=r"online\.db is missing"), store.online.reading(store.config):
            pass

    def test_lets_nothing_be_written(self, fleet: Store) -> None:
        with pytest.raises(RuntimeError, match="inside reading"), fleet.online.reading(fleet.config):
            self.both(fleet, 2)
        assert self.ropes(fleet) == 1

    def test_of_other_threads_see_what_is_new(self, fleet: Store) -> None:
        seen: list[Any] = []
        with fleet.online.reading(fleet.config):
            assert self.ropes(fleet) == 1
            self.both(Store(fleet.config.repo_path), 2)
            thread = threading.Thread(target=lambda: seen.append(self.ropes(fleet)))
            thread.start()
            thread.join(30)
        assert seen == [2]


class TestFullDisk:
    """SQLite says the same of a file that may not grow as of a disk that is full."""

    @pytest.fixture
    def full(self, store: Store) -> Store:
        store.write("ada", NOON, 1.0)
        store.online.checkpoint(store.config)
        connection = store.online._local.held[1]
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 20}")
        connection.execute("PRAGMA cache_size = 5")  # pages go to the log before the end of the transaction
        return store

    def fill_up(self, store: Store) -> None:
        with store.online.transaction(store.config):
            for number in range(5000):
                store.write(f"ship {number}", NOON, 2.0)

    def test_is_not_said_to_be_the_stores_fault(self, full: Store) -> None:
        with pytest.raises(ClearwayError, match=r"no space left on the disk of .*online\.db .*: free some") as caught:
            self.fill_up(full)
        assert "delete" not in str(caught.value)
        assert full.read("ada", "ship 0") == [(NOON, {"draught": 1.0, "containers": None}), (None, None)]

    def test_gets_back_what_the_failed_transaction_took(self, full: Store) -> None:
        other = Store(full.config.repo_path)  # a server has the file open
        assert other.draught("ada") == 1.0
        with pytest.raises(ClearwayError, match="no space left"):
            self.fill_up(full)
        assert full.file.with_name("online.db-wal").stat().st_size == 0
        assert other.draught("ada") == 1.0

    def test_is_told_from_another_failure_by_the_space_that_is_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
        assert "delete it" in embedded._explained(tmp_path / "online.db", error)
        monkeypatch.setattr(embedded, "LITTLE_SPACE", 2**63)
        assert "free some" in embedded._explained(tmp_path / "online.db", error)


class TestSeveralAtOnce:
    def test_a_transaction_is_seen_whole_or_not_at_all(self, store: Store) -> None:
        other = Store(store.config.repo_path)
        store.write("ada", NOON, 1.0)
        with store.online.transaction(store.config):
            store.online.teardown(store.config, [VIEW], [])
            store.make(VIEW)
            store.write("bob", NOON, 2.0)
            assert other.read("ada", "bob") == [(NOON, {"draught": 1.0, "containers": None}), (None, None)]
        assert other.read("ada", "bob") == [(None, None), (NOON, {"draught": 2.0, "containers": None})]

    def test_a_transaction_that_fails_changes_nothing(self, store: Store) -> None:
        store.write("ada", NOON, 1.0)
        with pytest.raises(KeyboardInterrupt), store.online.transaction(store.config):
            store.online.teardown(store.config, [VIEW], [])
            raise KeyboardInterrupt
        assert store.draught("ada") == 1.0
        store.write("ada", NOON, 2.0)
        assert store.draught("ada") == 2.0

    def test_threads_have_connections_of_their_own(self, store: Store) -> None:
        failed: list[Exception] = []

        def work(number: int) -> None:
            try:
                for step in range(10):
                    store.write(f"ship{number}", NOON + step * US, float(step))
                    store.read("ship0", "ship1")
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert failed == []
        assert [event for event, _ in store.read(*(f"ship{n}" for n in range(4)))] == [NOON + 9 * US] * 4

    def test_a_forked_process_opens_the_file_anew(self, store: Store) -> None:
        store.write("ada", NOON, 1.0)
        before = store.online._local.held[1]
        child = os.fork()
        if child == 0:  # no assertions here: pytest must not report twice
            right = store.draught("ada") == 1.0 and store.online._local.held[1] is not before
            os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0
        store.write("ada", NOON + US, 2.0)
        assert store.draught("ada") == 2.0

    def test_a_file_locked_for_too_long_is_named(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "BUSY_SECONDS", 0.01)
        late = Store(store.config.repo_path)
        other = sqlite3.connect(store.file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ClearwayError, match=r"online\.db is locked by another process"):
            late.write("ada", NOON, 1.0)
        other.execute("ROLLBACK")
        other.close()
        late.write("ada", NOON, 1.0)
        assert late.draught("ada") == 1.0

    def test_a_thread_that_waits_for_no_lock_fails_at_once(self, store: Store) -> None:
        hasty = Store(store.config.repo_path)
        hasty.online.wait_for_no_lock()
        other = sqlite3.connect(store.file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        with pytest.raises(ClearwayError, match=r"online\.db is locked by another process"):
            hasty.write("ada", NOON, 1.0)
        assert time.monotonic() - started < embedded.BUSY_SECONDS / 2
        other.execute("ROLLBACK")
        other.close()


def test_keys_are_those_that_feast_makes(store: Store) -> None:
    store.write("ada", NOON, 1.0)
    with sqlite3.connect(store.file) as connection:
        ((held,),) = connection.execute("SELECT key FROM harbour_draughts").fetchall()
    assert held == serialize_entity_key(key(ship="ada"), entity_key_serialization_version=3)
    assert list(DRAUGHT_FIELDS) == [field.name for field in draughts().features]
