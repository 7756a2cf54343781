"""A snapshot holds what was known at as_of, always in the same bytes, and is read back only if nobody touched it."""

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clearway.errors import ClearwayError, UsageError
from clearway.files import sha256_file
from clearway.params import Params
from clearway.project import FlatProject, Tables
from clearway.snapshot import load_tables, read_tables_at, take_snapshot
from clearway.workspace import Workspace

VISITS = "2024-01-0{day}T12:00:00Z,{who},{paid}\n"


class Visits:
    """A project whose visits are known when they happen, and paid for a day later."""

    numeric = ("paid",)
    categorical = ("who",)

    def known_at(self, table: str, frame: pd.DataFrame, as_of: datetime | None) -> pd.DataFrame:
        if table != "visits" or as_of is None:
            return frame
        known = frame[frame["at"] <= as_of].copy()
        known.loc[known["at"] + pd.Timedelta(days=1) > as_of, "paid"] = None
        return known

    def questions(self, tables: Tables) -> pd.DataFrame:
        raise NotImplementedError

    def features(self, questions: pd.DataFrame, tables: Tables) -> pd.DataFrame:
        raise NotImplementedError


def params(as_of: str | None = "2024-01-05", **sources: Any) -> Params:
    return Params.model_validate(
        {
            "project": {"name": "visits", "package": "visits"},
            "as_of": as_of,
            "sources": sources
            or {
                "visits": {"kind": "csv", "path": "visits.csv", "timestamps": ["at"]},
                "people": {"kind": "csv", "path": "people.csv"},
            },
            "environments": {"production": {"port": 8080}},
        }
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    days = [(3, "cyd", 30), (1, "ann", 10), (2, "bob", 20), (8, "ann", 80), (5, "bob", 50), (4, "ann", 40)]
    lines = [VISITS.format(day=day, who=who, paid=paid) for day, who, paid in days]
    (tmp_path / "visits.csv").write_text("at,who,paid\n" + "".join(lines))
    (tmp_path / "people.csv").write_text("who,age\ncyd,30\nann,\nbob,20\n")
    return Workspace(tmp_path)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def test_a_snapshot_holds_what_was_known_and_nothing_later(workspace: Workspace) -> None:
    take_snapshot(params(), workspace, Visits())
    visits = load_tables(workspace, params())["visits"]
    assert visits["at"].max() <= pd.Timestamp("2024-01-05", tz="UTC")
    assert visits["who"].tolist() == ["ann", "bob", "cyd", "ann"]
    assert visits["paid"].tolist()[:3] == [10.0, 20.0, 30.0]
    assert pd.isna(visits["paid"][3])
    assert str(visits["at"].dtype) == "datetime64[ns, UTC]"


def test_the_snapshot_file_records_rows_bytes_hash_and_source(workspace: Workspace) -> None:
    snapshot = take_snapshot(params(), workspace, Visits())
    recorded = json.loads(workspace.snapshot.read_text())
    assert recorded["as_of"] == "2024-01-05T00:00:00Z"
    assert recorded["tables"]["visits"] == {
        "rows": 4,
        "bytes": workspace.raw_table("visits").stat().st_size,
        "sha256": sha256_file(workspace.raw_table("visits")),
        "source": "visits.csv",
    }
    assert snapshot.rows == 7
    assert {path.name for path in workspace.raw.iterdir()} == {"visits.parquet", "people.parquet", "snapshot.json"}
    assert [path.name for path in workspace.raw.parent.iterdir()] == ["raw"]


def test_the_same_as_of_gives_the_same_bytes_whatever_the_order_of_rows(workspace: Workspace) -> None:
    take_snapshot(params(), workspace, Visits())
    first = contents(workspace.raw)
    for name in ("visits.csv", "people.csv"):
        header, *lines = (workspace.root / name).read_text().splitlines()
        (workspace.root / name).write_text("\n".join([header, *reversed(lines)]) + "\n")
    take_snapshot(params(), workspace, Visits())
    assert contents(workspace.raw) == first
    take_snapshot(params("2024-01-06"), workspace, Visits())
    assert contents(workspace.raw)["people.parquet"] == first["people.parquet"]
    assert contents(workspace.raw)["visits.parquet"] != first["visits.parquet"]


def test_a_source_that_breaks_leaves_the_old_snapshot_whole(workspace: Workspace) -> None:
    take_snapshot(params(), workspace, Visits())
    before = contents(workspace.raw)
    (workspace.root / "people.csv").write_text("who,age\ncyd,30\nann\n")  # read second, after visits was written
    with pytest.raises(ClearwayError, match="people"):
        take_snapshot(params("2024-01-06"), workspace, Visits())
    assert contents(workspace.raw) == before
    assert [path.name for path in workspace.raw.parent.iterdir()] == ["raw"]


@pytest.mark.parametrize("as_of", ["2023-12-31", "2024-01-01T11:00:00", "2024-02-01"])
def test_an_as_of_outside_the_data_is_refused_with_its_range(workspace: Workspace, as_of: str) -> None:
    with pytest.raises(UsageError) as caught:
        take_snapshot(params(as_of), workspace, Visits())
    message = str(caught.value)
    assert f"as_of = {as_of[:10]}" in message
    assert "table visits runs from 2024-01-01T12:00:00Z to 2024-01-08T12:00:00Z" in message
    assert not workspace.raw.exists()


def test_an_as_of_shortly_after_the_end_is_fine(workspace: Workspace) -> None:
    assert take_snapshot(params("2024-01-20"), workspace, Visits()).tables["visits"].rows == 6


def test_without_time_every_row_is_kept_in_an_order_of_its_own(workspace: Workspace) -> None:
    flat = Params.model_validate(
        {
            "project": {"name": "people"},
            "data": {"table": "people", "label": "age"},
            "sources": {"people": {"kind": "csv", "path": "people.csv"}},
            "environments": {"production": {"port": 8080}},
        }
    )
    assert flat.data is not None
    snapshot = take_snapshot(flat, workspace, FlatProject(flat.data, {"who": "str", "age": "float"}))
    assert snapshot.as_of is None
    assert load_tables(workspace, flat)["people"]["who"].tolist() == ["ann", "bob", "cyd"]


def test_reading_at_as_of_equals_the_snapshot_and_later_sees_more(workspace: Workspace) -> None:
    take_snapshot(params(), workspace, Visits())
    now = read_tables_at(params(), workspace, Visits(), params().time())
    for name, table in load_tables(workspace, params()).items():
        pd.testing.assert_frame_equal(now[name], table)
    later = read_tables_at(params(), workspace, Visits(), datetime(2024, 6, 1, tzinfo=UTC))  # no range check here
    assert len(later["visits"]) == 6
    pd.testing.assert_frame_equal(later["visits"][["at", "who"]].head(4), now["visits"][["at", "who"]])


def test_a_column_of_mixed_types_is_kept_as_text(workspace: Workspace) -> None:
    with sqlite3.connect(workspace.root / "people.db") as connection:
        connection.execute("create table people (who, age)")
        connection.execute("insert into people values ('ann', 30), ('bob', '25 years'), ('cyd', null)")
    connection.close()
    chosen = params(people={"kind": "sql", "url": "sqlite:///people.db", "query": "select * from people"})
    take_snapshot(chosen, workspace, Visits())
    assert load_tables(workspace, chosen)["people"]["age"].tolist() == ["30", "25 years", None]


def test_a_table_changed_after_ingest_is_refused(workspace: Workspace) -> None:
    take_snapshot(params(), workspace, Visits())
    table = workspace.raw_table("visits")
    content = bytearray(table.read_bytes())
    content[100] ^= 1
    table.write_bytes(bytes(content))
    with pytest.raises(ClearwayError, match=r"visits\.parquet was changed after ingest .*scripts/ingest\.py"):
        load_tables(workspace, params())


def test_a_missing_table_and_a_missing_or_broken_snapshot_are_refused(workspace: Workspace) -> None:
    with pytest.raises(ClearwayError, match=r"snapshot\.json is missing: run scripts/ingest\.py"):
        load_tables(workspace, params())
    take_snapshot(params(), workspace, Visits())
    workspace.raw_table("people").unlink()
    with pytest.raises(ClearwayError, match=r"people\.parquet is missing"):
        load_tables(workspace, params())
    workspace.snapshot.write_text('{"as_of": null, "tables": {"visits": {"rows": 4}}}')
    with pytest.raises(ClearwayError, match=r"snapshot\.json: key tables\.visits\.bytes is missing"):
        load_tables(workspace, params())


def test_a_snapshot_of_another_as_of_or_other_sources_is_refused(workspace: Workspace) -> None:
    take_snapshot(params(), workspace, Visits())
    with pytest.raises(ClearwayError, match=r"is as of 2024-01-05, but .* says as_of = 2024-01-06"):
        load_tables(workspace, params("2024-01-06"))
    with pytest.raises(ClearwayError, match="has the tables people, visits, but sources are people"):
        load_tables(workspace, params(people={"kind": "csv", "path": "people.csv"}))
