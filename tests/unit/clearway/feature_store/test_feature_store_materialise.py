"""Filling the online store: exactly what was known at one time, incrementally, repaired after anything."""

import clearway.feature_store  # noqa: F401  # first: it makes importing Feast quick

# isort: split
import errno
import gc
import json
import math
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from feast import FeatureView
from feast.infra.online_stores.helpers import _redis_key
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String
from feature_store_harbour import (
    DRAUGHT_FIELDS,
    NOON,
    US,
    Harbour,
    draught,
    draught_table,
    draughts,
    harbour_workspace,
    key,
    moorings,
    plain,
    read,
    write_table,
)
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from test_feature_store_embedded import config

from clearway.errors import ClearwayError, UsageError
from clearway.feature_store import event_rows, materialise
from clearway.feature_store.embedded import EmbeddedOnlineStore
from clearway.feature_store.event_rows import EventRows
from clearway.feature_store.materialise import Filled, OnlineFeed, fill_online, is_redis_key_of, push
from clearway.feature_store.store import open_store
from clearway.instants import micros
from clearway.online_record import is_filled, read_record, record_path

HOUR = timedelta(hours=1)
NOON_US = micros(NOON)
SHIPS = ("ada", "bob", "cyd")


class Line:
    """One workspace with short words for what a test does."""

    def __init__(self, folder: Path, *views: FeatureView) -> None:
        self.params, self.workspace = harbour_workspace(folder)
        self.project = Harbour(*(views or (draughts(),)))

    def tables(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_table(self.workspace, draughts(), draught_table(rows))

    def fill(self, as_of: datetime, **options: Any) -> Filled:
        return fill_online(self.params, self.workspace, self.project, as_of, **options)

    def feed(self, rows: Sequence[Mapping[str, Any]]) -> OnlineFeed:
        return OnlineFeed(self.params, self.workspace, self.project, {"draughts": draught_table(rows)})

    def push(self, rows: Sequence[Mapping[str, Any]]) -> int:
        return push(self.params, self.workspace, self.project, "draughts", draught_table(rows))

    def read(self, *ships: str, view: FeatureView | None = None) -> list[tuple[datetime | None, Any]]:
        store = open_store(self.params, self.workspace)
        return read(store, view or self.project.views[0], *(key(ship=ship) for ship in ships))

    def held(self, *ships: str) -> list[Any]:
        return [None if row is None else row["draught"] for _, row in self.read(*(ships or SHIPS))]


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    return started(tmp_path / "line", monkeypatch)


def started(folder: Path, monkeypatch: pytest.MonkeyPatch, *views: FeatureView) -> Line:
    """A line in a folder of its own, whose package is imported anew."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "harbour_package", raising=False)
    return Line(folder, *views)


class TestOneTime:
    def test_holds_the_newest_row_known_at_as_of_and_none_known_later(self, line: Line) -> None:
        line.tables(
            [
                draught("ada", NOON - HOUR, 1.0),
                draught("ada", NOON, 2.0),
                draught("ada", NOON + US, 3.0),
                draught("bob", NOON + US, 4.0),
                draught("cyd", NOON - US, 5.0),
            ]
        )
        filled = line.fill(NOON)
        assert (filled.rows, filled.full, filled.as_of) == ({"draughts": 2}, True, NOON)
        assert line.held() == [2.0, None, 5.0]
        assert [time for time, _ in line.read(*SHIPS)] == [NOON, None, NOON - US]

    def test_of_rows_of_one_instant_the_last_created_counts_then_the_last_of_the_table(self, line: Line) -> None:
        line.tables(
            [
                draught("ada", NOON, 1.0, created=NOON + 2 * US),
                draught("ada", NOON, 2.0, created=NOON + US),
                draught("ada", NOON, 3.0),
                draught("bob", NOON, 4.0),
                draught("bob", NOON, 5.0),
            ]
        )
        line.fill(NOON)
        assert line.held("ada", "bob") == [1.0, 5.0]

    def test_rows_without_a_key_or_a_known_time_are_nobodys(self, line: Line) -> None:
        rows = draught_table([draught("ada", NOON, 1.0), draught("bob", NOON, 2.0), draught("cyd", NOON, 3.0)])
        rows.loc[1, "ship"] = pd.NA
        rows.loc[2, "known_at"] = pd.NaT
        write_table(line.workspace, draughts(), rows)
        assert line.fill(NOON).rows == {"draughts": 1}

    def test_not_a_number_is_missing(self, line: Line) -> None:
        line.workspace.feature_tables.mkdir(parents=True)
        rows = pl.from_pandas(draught_table([draught("ada", NOON, 1.0)])).with_columns(draught=pl.lit(math.nan))
        rows.write_parquet(line.workspace.feature_tables / "draughts.parquet")
        line.fill(NOON)
        assert line.held("ada") == [None]

    def test_a_key_of_two_entities_and_a_table_without_created_times(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        line = started(tmp_path / "two", monkeypatch, moorings())
        rows = pd.DataFrame({"ship": ["a", "a", "ab"], "berth": ["bc", "c", "c"], "ropes": [1, 2, 3]})
        write_table(line.workspace, moorings(), rows.assign(known_at=NOON))
        line.fill(NOON)
        keys = [key(berth=berth, ship=ship) for ship, berth in [("a", "bc"), ("a", "c"), ("ab", "c"), ("a", "b")]]
        held = read(open_store(line.params, line.workspace), moorings(), *keys)
        assert [row and row["ropes"] for _, row in held] == [1, 2, 3, None]

    def test_tells_how_far_it_is(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(materialise, "ROWS_AT_ONCE", 2)
        line.tables([draught(ship, NOON, 1.0) for ship in SHIPS])
        told: list[tuple[str, int, int]] = []
        line.fill(NOON, progress=lambda *step: told.append(step))
        assert told == [("draughts", 2, 3), ("draughts", 3, 3)]

    def test_a_time_without_a_zone_is_refused(self, line: Line) -> None:
        with pytest.raises(ValueError, match="no time zone"):
            line.fill(datetime(2024, 6, 1))


class TestIncrementally:
    def test_only_keys_with_new_rows_are_written(self, line: Line) -> None:
        line.tables([draught("ada", NOON, 1.0), draught("bob", NOON, 2.0), draught("bob", NOON + HOUR, 3.0)])
        assert line.fill(NOON).rows == {"draughts": 2}
        later = line.fill(NOON + HOUR)
        assert (later.rows, later.full) == ({"draughts": 1}, False)
        assert line.held() == [1.0, 3.0, None]

    def test_rows_added_to_the_table_later_on_are_found(self, line: Line) -> None:
        rows = [draught("ada", NOON, 1.0)]
        line.tables(rows)
        line.fill(NOON)
        line.tables([draught("cyd", NOON + US, 2.0), *rows])
        later = line.fill(NOON + HOUR)
        assert (later.rows, later.full) == ({"draughts": 1}, False)
        assert line.held() == [1.0, None, 2.0]

    def test_again_with_nothing_changed_asks_neither_feast_nor_the_tables(
        self, line: Line, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        line.tables([draught("ada", NOON, 1.0)])
        line.fill(NOON)
        assert is_filled(line.params, line.workspace, NOON)
        monkeypatch.setattr(materialise, "open_store", None)
        again = line.fill(NOON)
        assert (again.rows, again.full, again.as_of) == ({"draughts": 0}, False, NOON)

    def test_is_told_without_importing_feast(self, line: Line) -> None:
        line.tables([draught("ada", NOON, 1.0)])
        line.fill(NOON)
        (line.workspace.root / "params.yaml").write_text(line.params.model_dump_json(by_alias=True))
        code = (
            "import sys; from datetime import datetime; from pathlib import Path\n"
            "from clearway.online_record import is_filled; from clearway.params import load_params\n"
            "from clearway.workspace import Workspace\n"
            f"folder = Path({str(line.workspace.root)!r}); params = load_params(folder / 'params.yaml')\n"
            f"known = is_filled(params, Workspace(folder), datetime.fromisoformat({NOON.isoformat()!r}))\n"
            "print(known, 'feast' in sys.modules)"
        )
        told = subprocess.run(
            [sys.executable, "-c", code], cwd=line.workspace.root, capture_output=True, text=True, timeout=60
        )
        assert (told.stdout, told.stderr) == ("True False\n", "")

    @settings(max_examples=15, deadline=None)
    @given(st.randoms(use_true_random=False))
    def test_any_sequence_of_times_and_tables_leaves_what_a_full_fill_does(
        self, tmp_path_factory: pytest.TempPathFactory, choose: random.Random
    ) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            line = started(tmp_path_factory.mktemp("any") / "line", monkeypatch)
            monkeypatch.setattr(event_rows, "FEW", choose.choice([0, 1000]))  # few rows are treated by other code
            rows: list[dict[str, Any]] = []
            for _ in range(choose.randint(1, 4)):
                for _ in range(choose.randint(0, 6)):  # some rows are late: known before what is filled already
                    created = choose.choice([None, NOON, NOON + US])
                    row = draught(choose.choice(SHIPS), NOON + choose.randint(-3, 3) * US, None, created=created)
                    row["draught"] = choose.choice([None, float(len(rows))])
                    rows.insert(choose.randint(0, len(rows)), row)
                if rows and choose.random() < 0.3:
                    rows.pop(choose.randrange(len(rows)))
                line.tables(rows)
                as_of = NOON + choose.randint(-4, 4) * US
                line.fill(as_of)
                assert line.read(*SHIPS) == [oracle(rows, ship, as_of) for ship in SHIPS]


def oracle(rows: Sequence[Mapping[str, Any]], ship: str, as_of: datetime) -> tuple[datetime | None, Any]:
    """By plain pandas."""
    table = draught_table(rows)
    known = table[(table["ship"] == ship) & (table["known_at"] <= as_of)]
    known = known.sort_values(["known_at", "created"], kind="stable", na_position="first")
    if known.empty:
        return None, None
    row = known.iloc[-1]
    values = {name: None if pd.isna(row[name]) else row[name] for name in DRAUGHT_FIELDS}
    return row["known_at"].to_pydatetime(), values


class TestFilledWhole:
    @pytest.fixture
    def filled(self, line: Line) -> Line:
        line.tables([draught("ada", NOON, 1.0), draught("bob", NOON, 2.0), draught("bob", NOON + HOUR, 3.0)])
        line.fill(NOON + HOUR)
        assert line.held() == [1.0, 3.0, None]
        return line

    def test_when_time_goes_back(self, filled: Line) -> None:
        assert filled.fill(NOON - US).full
        assert filled.held() == [None, None, None]
        assert not filled.fill(NOON).full
        assert filled.held() == [1.0, 2.0, None]

    def test_when_an_event_arrives_late(self, filled: Line) -> None:
        rows = [draught("ada", NOON, 1.0), draught("bob", NOON, 2.0), draught("bob", NOON + HOUR, 3.0)]
        filled.tables([*rows, draught("ada", NOON + US, 4.0)])
        assert filled.fill(NOON + HOUR).full
        assert filled.held() == [4.0, 3.0, None]

    def test_when_an_event_was_corrected_or_taken_back(self, filled: Line) -> None:
        filled.tables([draught("ada", NOON, 1.5), draught("bob", NOON, 2.0)])
        assert filled.fill(NOON + HOUR).full
        assert filled.held() == [1.5, 2.0, None]

    def test_when_a_value_became_missing(self, filled: Line) -> None:
        filled.tables([draught("ada", NOON, None), draught("bob", NOON, 2.0), draught("bob", NOON + HOUR, 3.0)])
        assert filled.fill(NOON + HOUR).full
        assert filled.read("ada") == [(NOON, dict.fromkeys(DRAUGHT_FIELDS))]

    def test_when_the_definitions_changed(self, filled: Line) -> None:
        fewer = draughts({"draught": Float64, "towed": Bool})
        filled.project = Harbour(fewer)
        package = filled.workspace.root / "harbour_package" / "__init__.py"
        package.write_text(package.read_text() + "FIELDS = 2\n")
        assert filled.fill(NOON + HOUR).full
        assert filled.read("ada") == [(NOON, {"draught": 1.0, "towed": None})]

    def test_not_when_only_other_code_of_the_package_changed(self, filled: Line) -> None:
        package = filled.workspace.root / "harbour_package" / "__init__.py"
        package.write_text(package.read_text() + "FOUNDED = 1843\n")
        assert filled.fill(NOON + HOUR) == Filled({"draughts": 0}, full=False, as_of=NOON + HOUR)

    def test_when_a_view_was_added_and_removed(self, filled: Line) -> None:
        more = draughts({"length": Float64}, name="lengths")
        package = filled.workspace.root / "harbour_package" / "__init__.py"
        rows = pd.DataFrame({"ship": ["ada"], "known_at": [NOON], "created": [NOON], "length": [80.0]})
        write_table(filled.workspace, more, rows)
        filled.project = Harbour(draughts(), more)
        package.write_text('"""Two views."""\n')
        assert filled.fill(NOON + HOUR).rows == {"draughts": 2, "lengths": 1}
        assert filled.read("ada", view=more)[0][1] == {"length": 80.0}
        filled.project = Harbour(draughts())
        package.write_text('"""One view."""\n')
        assert filled.fill(NOON + HOUR).rows == {"draughts": 2}
        with pytest.raises(ClearwayError, match="no table harbour_lengths"):
            filled.read("ada", view=more)

    def test_when_the_configuration_changed(self, filled: Line) -> None:
        path = filled.workspace.root / "feature_store.yaml"
        path.write_text(path.read_text().replace("online.db", "other.db"))
        assert filled.fill(NOON + HOUR).full
        assert filled.held() == [1.0, 3.0, None]

    def test_when_the_configuration_changed_and_back_though_the_rows_looked_up_are_there(
        self, filled: Line, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(materialise, "KEYS_LOOKED_UP", 1)  # ada's
        path = filled.workspace.root / "feature_store.yaml"
        first = path.read_text()
        filled.fill(NOON)
        path.write_text(first.replace("online.db", "other.db"))
        filled.fill(NOON + HOUR)
        path.write_text(first)
        assert filled.fill(NOON + 2 * HOUR).full
        assert filled.held() == [1.0, 3.0, None]

    def test_when_the_type_of_a_field_changed(self, filled: Line) -> None:
        view = draughts({**DRAUGHT_FIELDS, "draught": Float32})
        filled.project = Harbour(view)
        (filled.workspace.root / "harbour_package" / "__init__.py").write_text('"""Half as exact."""\n')
        assert filled.fill(NOON + HOUR).full

    @pytest.mark.parametrize("as_of", [NOON + HOUR, NOON + 2 * HOUR])
    def test_when_the_store_was_lost(self, filled: Line, as_of: datetime) -> None:
        for path in filled.workspace.feature_store.glob("online.db*"):
            path.unlink()
        assert filled.fill(as_of).full
        assert filled.held() == [1.0, 3.0, None]

    def test_when_the_store_lost_its_rows(self, filled: Line) -> None:
        store = open_store(filled.params, filled.workspace)
        online, config = store._get_provider().online_store, store.config
        online.teardown(config, [draughts()], [])
        online.update(config, [], [draughts()], [], [], partial=False)
        assert filled.fill(NOON + 2 * HOUR).full
        assert filled.held() == [1.0, 3.0, None]

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda path: os.truncate(path, 0), id="emptied"),
            pytest.param(lambda path: path.write_bytes(b"not a database" * 1000), id="overwritten"),
            pytest.param(lambda path: os.truncate(path, path.stat().st_size - 4096), id="cut short"),
            pytest.param(lambda path: run_sql(path, "DROP TABLE harbour_draughts"), id="a table dropped"),
            pytest.param(lambda path: run_sql(path, "DELETE FROM harbour_draughts WHERE event = 1"), id="nothing"),
            pytest.param(
                lambda path: run_sql(path, f"DELETE FROM harbour_draughts WHERE event = {NOON_US}"), id="a row"
            ),
        ],
    )
    def test_when_the_file_of_the_store_was_damaged(
        self, filled: Line, request: pytest.FixtureRequest, damage: Callable[[Path], None]
    ) -> None:
        path = filled.workspace.feature_store / "online.db"
        gc.collect()  # connections of stores that were read
        run_sql(path, "PRAGMA wal_checkpoint(TRUNCATE)")  # all is in the one file
        damage(path)
        case = request.node.callspec.id
        assert is_filled(filled.params, filled.workspace, NOON + HOUR) == (case == "nothing")
        if case in ("overwritten", "cut short"):
            with pytest.raises(
                ClearwayError, match=r"online\.db cannot be used .*: delete it and run scripts/build_fea"
            ):
                filled.fill(NOON + HOUR)
            path.unlink()
        assert filled.fill(NOON + HOUR).full == (case != "nothing")
        assert filled.held() == [1.0, 3.0, None]
        assert is_filled(filled.params, filled.workspace, NOON + HOUR)

    def test_when_a_row_that_is_not_looked_up_was_lost(self, filled: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(materialise, "KEYS_LOOKED_UP", 1)  # ada's
        path = filled.workspace.feature_store / "online.db"
        run_sql(path, f"DELETE FROM harbour_draughts WHERE event > {NOON_US}")  # bob's
        assert filled.fill(NOON + 2 * HOUR).full
        assert filled.held() == [1.0, 3.0, None]

    def test_when_the_record_is_of_before_rows_were_counted(self, filled: Line) -> None:
        path = record_path(filled.workspace)
        record = json.loads(path.read_text())
        assert record.pop("held") == {"harbour_draughts": 2}
        path.write_text(json.dumps(record))
        assert not is_filled(filled.params, filled.workspace, NOON + HOUR)
        assert filled.fill(NOON + HOUR).full

    def test_not_when_another_project_keeps_rows_in_the_same_file(self, filled: Line) -> None:
        run_sql(filled.workspace.feature_store / "online.db", "CREATE TABLE quay_draughts (key BLOB)")
        assert is_filled(filled.params, filled.workspace, NOON + HOUR)

    @pytest.mark.parametrize("content", [None, "", "{}", '{"state": "filled"}'])
    def test_when_the_record_is_lost_or_broken(self, filled: Line, content: str | None) -> None:
        record_path(filled.workspace).unlink()
        if content is not None:
            record_path(filled.workspace).write_text(content)
        assert filled.fill(NOON).full
        assert filled.held() == [1.0, 2.0, None]


def run_sql(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


class TestCrash:
    @pytest.mark.parametrize("method", ["update", "teardown", "write_encoded"])
    @pytest.mark.parametrize("again", [NOON, NOON + HOUR, NOON + 2 * HOUR])
    def test_in_any_call_of_the_store_is_repaired_by_the_next_fill(
        self, line: Line, monkeypatch: pytest.MonkeyPatch, method: str, again: datetime
    ) -> None:
        rows = [draught("ada", NOON - HOUR, 1.0), draught("ada", NOON + HOUR, 2.0), draught("bob", NOON, 3.0)]
        line.tables(rows)
        line.fill(NOON + 2 * HOUR)
        original = getattr(EmbeddedOnlineStore, method)

        def crash(*arguments: Any, **options: Any) -> None:
            original(*arguments, **options)
            raise OSError("power cut")

        with monkeypatch.context() as broken:
            broken.setattr(EmbeddedOnlineStore, method, crash)
            with pytest.raises(ClearwayError, match=r"the online store \(clearway.*\) failed: OSError: power cut"):
                line.fill(NOON)  # back: whole
        line.fill(again)
        assert line.held() == [oracle_value(rows, ship, again) for ship in SHIPS]

    @pytest.mark.parametrize("whole", [True, False])
    def test_between_the_store_and_the_record_is_repaired(
        self, line: Line, monkeypatch: pytest.MonkeyPatch, whole: bool
    ) -> None:
        line.tables([draught("ada", NOON, 1.0), draught("ada", NOON + HOUR, 2.0), draught("ada", NOON - HOUR, 0.0)])
        line.fill(NOON)
        write = materialise.write_record

        def crash(workspace: Any, record: Any) -> None:
            if record.state == "filled":
                raise KeyboardInterrupt
            write(workspace, record)

        with monkeypatch.context() as broken:
            broken.setattr(materialise, "write_record", crash)
            with pytest.raises(KeyboardInterrupt):
                line.fill(NOON - HOUR if whole else NOON + HOUR)
        assert line.held("ada") == [0.0 if whole else 2.0]
        record = read_record(line.workspace)
        assert record is not None
        assert record.state == "filling"
        assert line.fill(NOON).full
        assert line.held("ada") == [1.0]

    def test_readers_see_the_old_state_until_the_new_one_is_whole(
        self, line: Line, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(materialise, "ROWS_AT_ONCE", 1)
        line.tables([draught(ship, NOON + number * HOUR, float(number)) for number in range(2) for ship in SHIPS])
        line.fill(NOON + HOUR)
        seen: list[list[Any]] = []
        line.fill(NOON, progress=lambda *_: seen.append(line.held()))
        assert seen == [[1.0, 1.0, 1.0]] * 3
        assert line.held() == [0.0, 0.0, 0.0]


def oracle_value(rows: Sequence[Mapping[str, Any]], ship: str, as_of: datetime) -> Any:
    values = oracle(rows, ship, as_of)[1]
    return None if values is None else values["draught"]


class TestTablesThatDoNotFit:
    def test_a_missing_table_says_what_to_run(self, line: Line) -> None:
        with pytest.raises(ClearwayError, match=r"draughts\.parquet is missing: run scripts/build_features\.py"):
            line.fill(NOON)

    def test_a_file_that_is_no_table_is_named(self, line: Line) -> None:
        line.workspace.feature_tables.mkdir(parents=True)
        (line.workspace.feature_tables / "draughts.parquet").write_text("no table")
        with pytest.raises(ClearwayError, match=r"^[^\n]*draughts\.parquet is not a Parquet file [^\n]*$"):
            line.fill(NOON)

    def test_a_missing_column_is_named(self, line: Line) -> None:
        write_table(line.workspace, draughts(), draught_table([]).drop(columns="towed"))
        with pytest.raises(ClearwayError, match="view 'draughts': column 'towed' is missing"):
            line.fill(NOON)

    @pytest.mark.parametrize(
        ("column", "values"),
        [
            ("draught", ["deep"]),
            ("draught", ["1.5"]),
            ("containers", [1.5]),
            ("containers", ["1"]),
            ("flag", [3]),
            ("towed", ["yes"]),
            ("ship", [4]),
            ("known_at", ["2024-06-01"]),
            ("flag", ["no", 3]),
        ],
    )
    def test_values_of_another_type_are_refused_and_named(self, line: Line, column: str, values: list[Any]) -> None:
        rows = draught_table([draught("ada", NOON, 1.0)] * len(values)).astype({column: object})
        rows[column] = values
        line.tables([])
        line.fill(NOON)
        with pytest.raises(ClearwayError, match=f"^event rows of view 'draughts'[^\n]*({column}|another type)[^\n]*$"):
            push(line.params, line.workspace, line.project, "draughts", rows)
        assert is_filled(line.params, line.workspace, NOON)

    def test_after_a_table_that_did_not_fit_the_next_fill_works(self, line: Line) -> None:
        line.tables([draught("ada", NOON, 1.0)])
        line.fill(NOON)
        rows = [draught("ada", NOON, 1.0), draught("ada", NOON + HOUR, 2.0)]
        write_table(line.workspace, draughts(), draught_table(rows).drop(columns="flag"))
        with pytest.raises(ClearwayError, match="flag"):
            line.fill(NOON + HOUR)
        line.tables(rows)
        line.fill(NOON + HOUR)
        assert line.held("ada") == [2.0]

    def test_another_fill_that_does_not_end_is_named(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(materialise, "LOCK_SECONDS", 0.01)
        line.workspace.feature_store.mkdir(parents=True)
        with (
            FileLock(line.workspace.feature_store / "online.lock"),
            pytest.raises(ClearwayError, match="another process fills the online store"),
        ):
            line.fill(NOON)


class TestFeed:
    ROWS = (
        draught("ada", NOON, 1.0),
        draught("ada", NOON + HOUR, 2.0),
        draught("ada", NOON + HOUR + US, 3.0),
        draught("bob", NOON + HOUR, 4.0),
        draught("bob", NOON + 3 * HOUR, 5.0),
    )

    def test_holds_at_each_time_what_was_known_then(self, line: Line) -> None:
        feed = line.feed(self.ROWS)
        feed.start_at(NOON - US)
        assert line.held("ada", "bob") == [None, None]
        assert feed.advance(NOON - US) == 0
        assert feed.advance(NOON) == 1
        assert line.held("ada", "bob") == [1.0, None]
        assert feed.advance(NOON + 2 * HOUR) == 2  # of ada's two rows only the newer
        assert line.held("ada", "bob") == [3.0, 4.0]
        assert feed.advance(NOON + 2 * HOUR) == 0

    def test_starts_anywhere_and_goes_back(self, line: Line) -> None:
        feed = line.feed(self.ROWS)
        feed.start_at(NOON + 3 * HOUR)
        assert line.held("ada", "bob") == [3.0, 5.0]
        feed.start_at(NOON + HOUR)
        assert line.held("ada", "bob") == [2.0, 4.0]
        assert feed.advance(NOON + 4 * HOUR) == 2

    def test_goes_on_from_what_was_filled_from_the_same_rows(self, line: Line) -> None:
        line.tables(self.ROWS[:1])
        line.fill(NOON)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(EmbeddedOnlineStore, "teardown", None)
            line.feed(self.ROWS).start_at(NOON + HOUR)
        assert line.held("ada", "bob") == [2.0, 4.0]

    @pytest.mark.parametrize("as_of", [NOON, NOON + 5 * HOUR])
    def test_what_it_pushed_is_gone_after_the_next_fill(self, line: Line, as_of: datetime) -> None:
        line.tables(self.ROWS[:1])
        line.fill(NOON)
        feed = line.feed(self.ROWS)
        feed.start_at(NOON)
        feed.advance(NOON + 3 * HOUR)
        assert not is_filled(line.params, line.workspace, NOON)
        assert line.fill(as_of).full
        assert line.held("ada", "bob") == [1.0, None]

    def test_what_it_pushed_is_gone_even_where_the_rows_looked_up_are_right(
        self, line: Line, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(materialise, "KEYS_LOOKED_UP", 1)  # ada's
        line.tables(self.ROWS[:1])
        feed = line.feed([self.ROWS[0], *self.ROWS[3:]])
        feed.start_at(NOON)
        feed.advance(NOON + HOUR)
        assert line.fill(NOON + HOUR).full
        assert line.held("ada", "bob") == [1.0, None]

    def test_stops_where_the_store_is_filled_meanwhile(self, line: Line) -> None:
        line.tables(self.ROWS[:1])
        feed = line.feed(self.ROWS)
        feed.start_at(NOON)
        line.fill(NOON)
        with pytest.raises(ClearwayError, match=r"online\.json was written by another process"):
            feed.advance(NOON + HOUR)
        assert line.held("ada", "bob") == [1.0, None]
        feed.start_at(NOON)
        assert feed.advance(NOON + HOUR) == 2

    def test_wants_to_be_started_and_never_goes_back_by_itself(self, line: Line) -> None:
        feed = line.feed(self.ROWS)
        with pytest.raises(ClearwayError, match="call start_at first"):
            feed.advance(NOON)
        feed.start_at(NOON)
        with pytest.raises(ClearwayError, match="call start_at to go back"):
            feed.advance(NOON - US)

    def test_a_view_without_rows_is_named(self, line: Line) -> None:
        with pytest.raises(ClearwayError, match="no event table is given for the views: draughts"):
            OnlineFeed(line.params, line.workspace, line.project, {}).start_at(NOON)


class TestPush:
    def test_writes_the_newest_row_of_each_key_and_never_an_older_one(self, line: Line) -> None:
        line.tables([draught("ada", NOON, 1.0)])
        line.fill(NOON)
        rows = [draught("ada", NOON - US, 2.0), draught("bob", NOON, 3.0), draught("bob", NOON - US, 4.0)]
        assert line.push(rows) == 2
        assert line.held("ada", "bob") == [1.0, 3.0]
        assert line.push([]) == 0

    @pytest.mark.parametrize("as_of", [NOON, NOON + 2 * HOUR])
    def test_is_undone_by_the_next_fill(self, line: Line, monkeypatch: pytest.MonkeyPatch, as_of: datetime) -> None:
        monkeypatch.setattr(materialise, "KEYS_LOOKED_UP", 1)  # ada's
        line.tables([draught("ada", NOON, 1.0), draught("bob", NOON, 2.0)])
        line.fill(NOON)
        line.push([draught("bob", NOON + HOUR, 9.0)])  # as many rows as before
        assert not is_filled(line.params, line.workspace, NOON)
        assert line.fill(as_of).full
        assert line.held("ada", "bob") == [1.0, 2.0]
        assert is_filled(line.params, line.workspace, as_of)

    def test_is_marked_before_it_writes(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        line.tables([draught("ada", NOON, 1.0)])
        line.fill(NOON)

        def crash(*arguments: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(EmbeddedOnlineStore, "write_encoded", crash)
        with pytest.raises(KeyboardInterrupt):
            line.push([draught("ada", NOON + HOUR, 9.0)])
        assert not is_filled(line.params, line.workspace, NOON)

    def test_stops_a_replay(self, line: Line) -> None:
        feed = line.feed([draught("ada", NOON, 1.0), draught("ada", NOON + HOUR, 2.0)])
        feed.start_at(NOON)
        line.push([draught("ada", NOON + 2 * HOUR, 9.0)])
        assert not feed.can_advance(NOON + HOUR)
        with pytest.raises(ClearwayError, match="written by another process"):
            feed.advance(NOON + HOUR)

    def test_waits_for_a_fill(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        line.tables([draught("ada", NOON, 1.0)])
        line.fill(NOON)
        monkeypatch.setattr(materialise, "LOCK_SECONDS", 0.01)
        with (
            FileLock(line.workspace.feature_store / "online.lock"),
            pytest.raises(ClearwayError, match="another process fills the online store"),
        ):
            line.push([draught("ada", NOON + HOUR, 9.0)])
        assert line.held("ada") == [1.0]

    def test_to_a_view_that_is_not_there_names_those_that_are(self, line: Line) -> None:
        with pytest.raises(UsageError, match=r"no feature view 'lengths' is kept online: there are draughts$"):
            push(line.params, line.workspace, line.project, "lengths", draught_table([]))

    def test_to_a_store_that_was_never_filled_says_what_to_run(self, line: Line) -> None:
        with pytest.raises(ClearwayError, match=r"no table harbour_draughts: .*run scripts/build_features\.py"):
            line.push([draught("ada", NOON, 1.0)])

    def test_values_come_back_as_they_were_given(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fields = {"f64": Float64, "f32": Float32, "i64": Int64, "i32": Int32, "text": String, "yes": Bool}
        view = draughts({**fields, "many": Array(Float64)}, created=False)
        line = started(tmp_path / "types", monkeypatch, view)
        rows = pd.DataFrame(
            {
                "ship": ["ada", "bob", "cyd", "dot"],
                "known_at": [NOON] * 4,
                "f64": [0.1 + 0.2, math.nan, None, math.inf],
                "f32": [0.5, None, math.nan, -0.0],
                "i64": pd.array([2**63 - 1, None, -1, 0], dtype="Int64"),
                "i32": [1.0, None, math.nan, -5.0],
                "text": ["Å", None, pd.NA, ""],
                "yes": [True, None, False, True],
                "many": [[1.0], None, [2.0, 3.0], None],
            }
        )
        write_table(line.workspace, view, rows.astype({"text": "string", "yes": "boolean"}))
        line.fill(NOON)
        expected = [
            {"f64": 0.1 + 0.2, "f32": 0.5, "i64": 2**63 - 1, "i32": 1, "text": "Å", "yes": True},
            dict.fromkeys(fields),
            {"f64": None, "f32": None, "i64": -1, "i32": None, "text": None, "yes": False},
            {"f64": math.inf, "f32": -0.0, "i64": 0, "i32": -5, "text": "", "yes": True},
        ]
        for filled in ("from Parquet", "from memory"):
            held = [row for _, row in line.read("ada", "bob", "cyd", "dot", view=view)]
            lists = [None if row["many"] is None else list(row.pop("many").val) for row in held]
            assert [{name: row[name] for name in fields} for row in held] == expected, filled
            assert [values or None for values in lists] == [[1.0], None, [2.0, 3.0], None], filled
            line.project = Harbour(view)
            push(line.params, line.workspace, line.project, view.name, rows.assign(known_at=NOON + HOUR))

    def test_times_are_read_as_utc_and_a_part_of_a_microsecond_is_not_known_early(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        view = draughts({"draught": Float64}, created=False)
        line = started(tmp_path / "times", monkeypatch, view)
        naive = pd.Timestamp("2024-06-01 12:00:00")
        times = {
            "ada": naive,
            "bob": pd.Timestamp("2024-06-01 21:00:00", tz="Asia/Tokyo"),
            "cyd": naive + pd.Timedelta(1, "ns"),
            "dot": pd.Timestamp("1066-10-14 09:00:00.000001").as_unit("us"),
        }
        line.project = Harbour(view)
        write_table(line.workspace, view, pd.DataFrame({"ship": ["x"], "known_at": [NOON], "draught": [0.0]}))
        line.fill(NOON)
        for ship, known in times.items():
            rows = pd.DataFrame({"ship": [ship], "known_at": [known], "draught": [1.0]})
            push(line.params, line.workspace, line.project, view.name, rows)
        exact = datetime(1066, 10, 14, 9, 0, 0, 1, tzinfo=UTC)
        assert [time for time, _ in line.read(*times, view=view)] == [NOON, NOON, NOON + US, exact]


class TestFilesOfOurOwn:
    """What is wrong with them is not said of the store."""

    @pytest.mark.parametrize("name", ["write_record", "register"])
    def test_a_full_disk_is_named(self, line: Line, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        line.tables([draught("ada", NOON, 1.0)])
        line.fill(NOON)

        def full(*arguments: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr(materialise, name, full)
            with pytest.raises(ClearwayError, match=r"feature_store\S* cannot be written \(No space left") as caught:
                line.fill(NOON - HOUR)
        assert "is it up?" not in str(caught.value)
        assert line.held("ada") == [1.0]

    def test_a_fill_starts_with_an_empty_log_so_that_a_full_disk_gets_its_space_back(self, line: Line) -> None:
        line.tables([draught("ada", NOON, 1.0), draught("ada", NOON + HOUR, 2.0)])
        line.fill(NOON)
        log = line.workspace.feature_store / "online.db-wal"
        sizes: list[int] = []
        with closing(sqlite3.connect(log.with_name("online.db"))) as server:
            server.execute("SELECT count(*) FROM harbour_draughts").fetchall()
            line.fill(NOON - HOUR)
            assert log.stat().st_size > 0
            line.fill(NOON + HOUR, progress=lambda *_: sizes.append(log.stat().st_size))
        assert sizes == [0]

    def test_a_folder_that_cannot_be_made_is_named(self, line: Line) -> None:
        line.workspace.feature_store.parent.mkdir(parents=True, exist_ok=True)
        line.workspace.feature_store.write_text("a file")
        with pytest.raises(ClearwayError, match=r"^\S*feature_store cannot be written \([^\n]*$"):
            line.fill(NOON)

    def test_no_password_is_shown_of_a_store_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        address = {"type": "redis", "connection_string": "127.0.0.1:1,username=ada,password=tide"}
        params, workspace = harbour_workspace(tmp_path / "h", address)
        settings = open_store(params, workspace).config
        with pytest.raises(ClearwayError) as caught, materialise._asked(settings):
            raise ValueError("wrong: 'tide' of\nada@127.0.0.1")
        assert (
            str(caught.value) == "the online store (redis) failed: ValueError: wrong: '***' of ***@127.0.0.1: is it up?"
        )


class TestKeysInRedis:
    @pytest.mark.parametrize(
        "entity",
        [key(ship="ada"), key(ship="ada", berth="7"), key(ship="", berth="quay_harbour"), key(**{"s" * 91: "x" * 300})],
    )
    def test_are_exactly_one_projects(self, entity: Any) -> None:
        made = _redis_key("harbour", entity)
        assert is_redis_key_of(made, b"harbour")
        for other in (b"arbour", b"xharbour", b"my_harbour", b"", b"harbour2"):
            assert not is_redis_key_of(made, other)
        assert not is_redis_key_of(_redis_key("old_harbour", entity), b"harbour")

    @pytest.mark.parametrize("foreign", [b"", b"harbour", b"x:harbour", b"\xff" * 40 + b"harbour", b"\1\0\0\0harbour"])
    def test_are_told_from_what_others_keep(self, foreign: bytes) -> None:
        assert not is_redis_key_of(foreign, b"harbour")


def test_rows_encoded_for_the_embedded_store_are_those_that_feast_would_write(tmp_path: Path) -> None:
    rows = [
        draught("ada", NOON, 0.1, created=NOON, containers=-3, flag="Å", towed=False),
        draught("bob", NOON + US, None),
        draught("a much longer name of a ship", NOON, 2.0, containers=0, flag="", towed=True),
    ]
    events = EventRows(draughts(), pl.from_pandas(draught_table(rows)))
    everything = events.newest(0, len(events))
    stores = [EmbeddedOnlineStore(), EmbeddedOnlineStore()]
    configs = [config(tmp_path / name) for name in ("encoded", "feast")]
    for store, repo in zip(stores, configs, strict=True):
        store.update(repo, [], [draughts()], [], [], partial=False)
    stores[0].write_encoded(configs[0], draughts(), events.encoded(everything, 3))
    stores[1].online_write_batch(configs[1], draughts(), events.for_feast(everything), None)
    dumps = []
    for store, repo in zip(stores, configs, strict=True):
        with store.transaction(repo) as connection:
            dumps.append(connection.execute("SELECT key, event, created FROM harbour_draughts").fetchall())
    assert dumps[0] == dumps[1]
    keys = events.entity_keys(everything)
    answers = [store.online_read(repo, draughts(), keys) for store, repo in zip(stores, configs, strict=True)]
    assert answers[0] == answers[1]
    assert [plain(row["draught"]) for _, row in answers[0] if row] == [2.0, 0.1, None]
