"""A tiny project whose features are stored: its tables, the features read from them, and what is refused."""

import gc
import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from clearway.columns import LABEL, LABEL_TIME, PREDICTION_TIME
from clearway.errors import ClearwayError, UsageError
from clearway.features import ask, build_features, declared_features, summary_of
from clearway.files import read_json
from clearway.params import Params, load_params
from clearway.project import load_project
from clearway.schema import load_schema
from clearway.snapshot import load_tables, take_snapshot
from clearway.stored_features import describe, event_tables, historical_features, inputs_of, seconds
from clearway.workspace import Workspace

AS_OF = datetime(2024, 3, 1, tzinfo=UTC)
PACKAGE = "kilns_for_stored_features_test"
CODE = '''
"""Will a firing crack? Asked when the kiln is lit; the gauge's last reading, and the days since the last firing."""
from datetime import timedelta

import pandas as pd
from feast import Entity, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.types import Float64, Int64, String

from clearway.feature_store.definitions import Definitions, on_demand_view

KILN = Entity(name="kiln", join_keys=["kiln"], value_type=ValueType.STRING)
GAUGE = FeatureView(
    name="gauge", entities=[KILN], ttl=timedelta(hours=12), owner="potter", description="The gauge.",
    schema=[Field(name="kiln", dtype=String), Field(name="heat", dtype=Float64), Field(name="ticks", dtype=Int64)],
    source=FileSource(path="data/feature_tables/gauge.parquet", timestamp_field="known_at"),
)
FIRING = FeatureView(
    name="firing", entities=[KILN], ttl=timedelta(0),
    schema=[Field(name="kiln", dtype=String), Field(name="fired_at", dtype=Float64)],
    source=FileSource(path="data/feature_tables/firing.parquet", timestamp_field="known_at"),
)
REQUEST = RequestSource(
    name="request",
    schema=[
        Field(name="clay", dtype=String),
        Field(name="pots", dtype=Float64),
        Field(name="prediction_time", dtype=Float64),
    ],
)


def since(given):
    return {"idle_hours": [None if at is None else (now - at) / 3600
                           for now, at in zip(given["prediction_time"], given["fired_at"])]}


SINCE = on_demand_view("since", since, [Field(name="idle_hours", dtype=Float64)], [REQUEST, FIRING[["fired_at"]]])


def gauge(tables):
    return tables["readings"].rename(columns={"read": "known_at"})


def firing(tables):
    lit = tables["firings"]
    return pd.DataFrame({"kiln": lit["kiln"], "known_at": lit["lit"] + pd.Timedelta(hours=1),
                         "fired_at": lit["lit"].astype("int64") / 1e9})


class Kilns:
    numeric = ("heat", "ticks", "idle_hours", "pots")
    categorical = ("clay", "kiln")

    def known_at(self, table, frame, as_of):
        return frame[frame["read" if table == "readings" else "lit"] <= as_of]

    def questions(self, tables):
        lit = tables["firings"]
        return pd.DataFrame({
            "row_id": lit["id"], "entity": lit["kiln"], "prediction_time": lit["lit"],
            "label_time": lit["lit"], "label": lit["cracked"],
        })

    def definitions(self):
        return Definitions((KILN,), (GAUGE, FIRING), {"gauge": gauge, "firing": firing}, REQUEST, (SINCE,))

    def inputs(self, questions, tables):
        return tables["firings"].loc[questions.index, ["kiln", "clay", "pots"]]


PROJECT = Kilns()
'''
SETTINGS: dict[str, Any] = {
    "project": {"name": "kilns", "package": PACKAGE},
    "as_of": AS_OF.isoformat(),
    "sources": {
        "firings": {"kind": "parquet", "path": "firings.parquet"},
        "readings": {"kind": "parquet", "path": "readings.parquet"},
    },
    "split": {"holdout_days": 10, "current_days": 5},
    "environments": {"production": {"port": 0}},
}
STORE = """
project: kilns
provider: local
entity_key_serialization_version: 3
registry: { path: var/feature_store/registry.db }
offline_store: { type: clearway.feature_store.offline.PointInTimeOfflineStore }
online_store: { type: clearway.feature_store.embedded.EmbeddedOnlineStore, path: var/feature_store/online.db }
"""
SCHEMA = """
tables:
  firings: { columns: { id: { kind: str }, lit: { kind: timestamp } }, extra_columns: allow }
  readings: { columns: { read: { kind: timestamp } }, extra_columns: allow }
features:
  idle_hours: { kind: float, nullable: true, min: 0 }
  clay: { kind: str, values: [red, white] }
"""


class Made:
    """A project folder, its tables and its project."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(5)
        lit = pd.date_range("2024-01-01", "2024-03-02", freq="5h", tz="UTC", unit="ns")
        names = random.choice(["bell", "drum", "cold"], len(lit))
        self.firings = pd.DataFrame(
            {
                "id": [f"f{place}" for place in range(len(lit))],
                "lit": lit,
                "kiln": pd.Series(names, dtype="string").mask(random.random(len(lit)) < 0.05),
                "clay": random.choice(["red", "white"], len(lit)),
                "pots": random.integers(1, 90, len(lit)).astype("float64"),
                "cracked": random.integers(0, 2, len(lit)).astype("float64"),
            }
        )
        read = pd.date_range("2024-01-01T00:30", "2024-03-02", freq="7h", tz="UTC", unit="ns")
        self.readings = pd.DataFrame(
            {
                "read": read,
                "kiln": random.choice(["bell", "drum"], len(read)),
                "heat": random.normal(900, 40, len(read)).round(1),
                "ticks": pd.Series(random.integers(0, 5, len(read)), dtype="Int64").mask(
                    random.random(len(read)) < 0.1
                ),
            }
        )
        self.firings.to_parquet(folder / "firings.parquet")
        self.readings.to_parquet(folder / "readings.parquet")
        (folder / f"{PACKAGE}.py").write_text(CODE)
        (folder / "schema.yaml").write_text(SCHEMA)
        (folder / "feature_store.yaml").write_text(STORE)
        (folder / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
        self.workspace = Workspace(folder)
        self.params: Params = load_params(self.workspace.params_file)
        self.project: Any = load_project(self.params, {})
        self.tables = {"firings": self.firings, "readings": self.readings}

    def found(self, **changed: pd.DataFrame) -> pd.DataFrame:
        tables = {**self.tables, **changed}
        questions = self.project.questions(tables)
        inputs = inputs_of(self.project, questions, tables)
        events = event_tables(self.project, tables)
        return historical_features(self.params, self.workspace, self.project, questions, inputs, events)


@pytest.fixture
def kilns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    import clearway.feature_store  # noqa: F401 - the package imports Feast, which this makes quick

    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield Made(tmp_path)
    sys.modules.pop(PACKAGE, None)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_features_are_what_a_loop_over_the_tables_finds(kilns: Made) -> None:
    found = kilns.found()
    assert list(found.columns) == [*kilns.project.numeric, *kilns.project.categorical]
    for place, firing in kilns.firings.iterrows():
        row, now, kiln = found.loc[place], firing["lit"], firing["kiln"]
        assert (row["pots"], row["clay"]) == (firing["pots"], firing["clay"])
        none = pd.isna(kiln)
        read = kilns.readings[
            (kilns.readings["read"] <= now) & (kilns.readings["read"] >= now - pd.Timedelta(hours=12))
        ]
        last = read[read["kiln"] == ("" if none else kiln)].tail(1)
        for name in ("heat", "ticks"):
            value = None if last.empty or pd.isna(last[name].iloc[0]) else last[name].iloc[0]
            assert (pd.isna(row[name]) and value is None) or row[name] == value
        before = kilns.firings[(kilns.firings["kiln"] == ("" if none else kiln)).fillna(False)]
        before = before[before["lit"] + pd.Timedelta(hours=1) <= now].tail(1)
        idle = None if before.empty else (now - before["lit"].iloc[0]) / pd.Timedelta(hours=1)
        assert (pd.isna(row["idle_hours"]) and idle is None) or row["idle_hours"] == idle


def test_the_stage_writes_tables_features_and_how_they_are_defined(kilns: Made) -> None:
    take_snapshot(kilns.params, kilns.workspace, kilns.project)
    made = build_features(kilns.params, kilns.workspace, kilns.project)
    described = json.loads((kilns.workspace.features / "features.json").read_text())
    definitions = describe(kilns.project)
    assert described["feature_service"] == f"kilns_{described['definitions_sha256'][:12]}"
    assert described["definitions"] == {name: each.model_dump(mode="json") for name, each in definitions.items()}
    training = pd.read_parquet(kilns.workspace.features / "training.parquet")
    assert len(training) == made.rows["training"] > 100
    tables = load_tables(kilns.workspace, kilns.params)
    again = ask(
        kilns.project, tables, known_until=AS_OF,
        features=lambda questions, _: kilns.found(**tables).loc[questions.index],
    )  # fmt: skip
    same = again.set_index("row_id").loc[list(training["row_id"])].reset_index()
    pd.testing.assert_frame_equal(training, same.astype({"row_id": "string"}))
    for view in ("gauge", "firing"):
        rows = pd.read_parquet(kilns.workspace.feature_tables / f"{view}.parquet")
        assert (rows["known_at"] <= AS_OF).all()
        assert rows["known_at"].is_monotonic_increasing
        assert not rows[["kiln", "known_at"]].duplicated().any()
        assert str(rows["known_at"].dtype) == "datetime64[us, UTC]"
    assert declared_features(load_schema(kilns.workspace.root / "schema.yaml"), kilns.params, kilns.project)


def test_the_stage_writes_the_same_bytes_again(kilns: Made) -> None:
    take_snapshot(kilns.params, kilns.workspace, kilns.project)
    build_features(kilns.params, kilns.workspace, kilns.project)
    first = hashes(kilns.workspace.features) | hashes(kilns.workspace.feature_tables)
    build_features(kilns.params, kilns.workspace, kilns.project)
    assert hashes(kilns.workspace.features) | hashes(kilns.workspace.feature_tables) == first
    assert {"gauge.parquet", "firing.parquet", "features.json", "training.parquet"} <= set(first)


def test_how_fresh_and_complete_the_views_are(kilns: Made) -> None:
    take_snapshot(kilns.params, kilns.workspace, kilns.project)
    made = build_features(kilns.params, kilns.workspace, kilns.project)
    report = read_json(kilns.workspace.reports / "features.json")
    assert report["as_of"] == AS_OF.isoformat()
    assert list(report["views"]) == ["firing", "gauge", "since"]
    gauge = report["views"]["gauge"]
    known = kilns.readings[kilns.readings["read"] <= AS_OF]
    assert gauge["rows"] == len(known)
    assert gauge["keys"] == 2
    assert gauge["ttl_hours"] == 12
    assert gauge["age_hours"] == pytest.approx((AS_OF - known["read"].max()) / pd.Timedelta(hours=1), abs=1e-3)
    shown = pd.concat(
        pd.read_parquet(kilns.workspace.features / f"{w}.parquet") for w in ("training", "holdout", "current")
    )
    shown = shown.drop_duplicates("row_id")
    assert gauge["null_share"] == pytest.approx(shown[["heat", "ticks"]].isna().to_numpy().mean(), abs=1e-6)
    assert report["views"]["since"]["rows"] is None
    assert report["views"]["firing"]["null_share"] is None  # none of its fields is a feature itself
    assert summary_of(made.views).startswith("3; oldest newest row: gauge, ")


def test_other_tables_leave_the_projects_own_store_alone(kilns: Made) -> None:
    take_snapshot(kilns.params, kilns.workspace, kilns.project)
    build_features(kilns.params, kilns.workspace, kilns.project)
    gc.collect()  # SQLite empties its log when the last connection is let go of
    before = hashes(kilns.workspace.feature_tables) | hashes(kilns.workspace.feature_store)
    kilns.found(readings=kilns.readings.assign(heat=1.0))
    assert hashes(kilns.workspace.feature_tables) | hashes(kilns.workspace.feature_store) == before


def test_of_rows_known_at_once_the_last_one_stays_and_a_row_without_key_is_left_out(kilns: Made) -> None:
    twice = pd.concat([kilns.readings, kilns.readings.tail(2).assign(heat=5.0)], ignore_index=True)
    twice.loc[0, "kiln"] = None
    rows = event_tables(kilns.project, {**kilns.tables, "readings": twice})["gauge"]
    assert len(rows) == len(kilns.readings) - 1
    assert rows["heat"].tail(2).tolist() == [5.0, 5.0]


def test_a_row_that_is_created_later_is_left_out_before_it_can_replace_another(kilns: Made) -> None:
    gauge = kilns.project.definitions().views[0]
    gauge.batch_source.created_timestamp_column = "made"
    known = kilns.readings["read"].iloc[-1]
    last = kilns.readings.tail(1)
    corrected = pd.concat(
        [
            kilns.readings.assign(made=pd.Series(pd.NaT, kilns.readings.index, dtype="datetime64[ns, UTC]"), heat=1.0),
            last.assign(made=known, heat=2.0),
            last.assign(made=known + pd.Timedelta(1, "us"), heat=3.0),
        ]
    )
    tables = {**kilns.tables, "readings": corrected}
    rows = event_tables(kilns.project, tables, known_until=known.to_pydatetime())["gauge"]
    assert (len(rows), rows["heat"].iloc[-1]) == (len(kilns.readings), 2.0)
    assert event_tables(kilns.project, tables)["gauge"]["heat"].iloc[-1] == 3.0


def test_a_time_finer_than_microseconds_is_rounded_up(kilns: Made) -> None:
    finer = kilns.readings.assign(read=kilns.readings["read"] + pd.Timedelta(1, "ns"))
    rows = event_tables(kilns.project, {**kilns.tables, "readings": finer})["gauge"]
    assert (rows["known_at"] - kilns.readings["read"] == pd.Timedelta(1, "us")).all()


def test_a_time_as_a_value_is_what_a_server_counts_to_the_bit() -> None:
    rng = np.random.default_rng(7)
    micros = rng.integers(1_300_000_000_000_000, 1_900_000_000_000_000, 20_000)
    times = pd.Series(pd.to_datetime(micros, unit="us", utc=True))
    counted = [time.to_pydatetime().timestamp() for time in times]
    for unit in ("us", "ns"):
        assert seconds(times.astype(f"datetime64[{unit}, UTC]")).tolist() == counted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.drop(columns="heat"), r"the rows of feature view gauge lack the column heat"),
        (lambda rows: rows.assign(read=rows["read"].mask(rows.index == 3)), r"gauge: 1 of \d+ have no known_at"),
        (lambda rows: rows.assign(read=rows["read"].dt.tz_localize(None)), r"gauge: known_at must be a UTC time"),
        (lambda rows: rows.assign(heat="hot"), r"gauge: heat must be Float64"),
        (lambda rows: rows.assign(ticks=0.5), r"gauge: ticks must be Int64"),
        (lambda rows: rows.assign(kiln=7), r"gauge: kiln must be String"),
        (lambda rows: rows.rename(columns={"ticks": "heat"}).assign(ticks=1), r"gauge have more than one column heat"),
        (lambda rows: None, r"the rows of feature view gauge are NoneType, not a DataFrame"),
        (lambda rows: {}["nope"], r"the rows of feature view gauge cannot be made: KeyError: 'nope'"),
    ],
)  # fmt: skip
def test_rows_that_are_not_what_the_view_declares_are_named(
    kilns: Made, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    definitions = kilns.project.definitions()

    def gauge(tables: Any) -> Any:
        rows = change(tables["readings"])
        return rows if rows is None else rows.rename(columns={"read": "known_at"})

    changed = replace(definitions, events={**definitions.events, "gauge": gauge})
    monkeypatch.setattr(kilns.project, "definitions", lambda: changed)
    with pytest.raises(ClearwayError, match=said) as raised:
        event_tables(kilns.project, kilns.tables)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda inputs: inputs.drop(columns=["kiln", "pots"]), r"inputs\(\) lacks kiln, pots"),
        (lambda inputs: inputs.head(3), r"inputs\(\) returned 3 rows that are not its \d+ questions"),
        (lambda inputs: inputs.assign(kiln=1), r"inputs\(\): kiln must be String"),
        (lambda inputs: inputs.assign(pots="many"), r"inputs\(\): pots must be Float64"),
    ],
)
def test_inputs_that_are_not_what_a_caller_sends_are_named(
    kilns: Made, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    given = kilns.project.inputs
    monkeypatch.setattr(kilns.project, "inputs", lambda questions, tables: change(given(questions, tables)))
    with pytest.raises(ClearwayError, match=said):
        inputs_of(kilns.project, kilns.project.questions(kilns.tables), kilns.tables)


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (lambda rows: rows.assign(heat=rows["heat"] - rows["heat"].mean()), r"heat of \w+ at .* was -?\d.*, and is"),
        (lambda rows: rows.assign(known_at=rows["known_at"] - pd.Timedelta(days=3)), "has a row only with what became"),
        (lambda rows: rows.assign(heat=rows.groupby("kiln")["heat"].shift(-1)), r"heat of \w+ at .* was nan, and is"),
        (lambda rows: rows.drop_duplicates("kiln", keep="last"), "has a row only without what became known later"),
    ],
    ids=["a mean of the whole table", "a time too early", "the next value", "the last row of all"],
)  # fmt: skip
def test_a_view_that_looks_ahead_stops_the_line(
    kilns: Made, monkeypatch: pytest.MonkeyPatch, ahead: Any, said: str
) -> None:
    module = sys.modules[PACKAGE]
    honest = module.gauge

    def gauge(tables: Any) -> pd.DataFrame:
        return ahead(honest(tables))

    monkeypatch.setattr(module, "gauge", gauge)
    take_snapshot(kilns.params, kilns.workspace, kilns.project)
    with pytest.raises(ClearwayError, match=f"feature view gauge looks ahead: .*{said}"):
        build_features(kilns.params, kilns.workspace, kilns.project)
    assert not kilns.workspace.feature_tables.exists()


def test_a_function_that_leaves_out_a_feature_is_named_with_its_view(
    kilns: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(given: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"something_else": [0.0] * len(given["prediction_time"])}

    forgetful.__name__ = forgetful.__qualname__ = "since"
    monkeypatch.setattr(sys.modules[PACKAGE], "since", forgetful)
    with pytest.raises(ClearwayError, match=r"^on-demand view \w+ gives no '\w+': have its function return"):
        kilns.found()


def test_a_function_that_fails_is_one_line(kilns: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[PACKAGE]

    def broken(given: dict[str, list[Any]]) -> dict[str, list[Any]]:
        raise KeyError("rain")

    broken.__name__ = broken.__qualname__ = "since"
    monkeypatch.setattr(module, "since", broken)
    with pytest.raises(ClearwayError, match=r"features of \d+ questions cannot be read: KeyError: 'rain'") as raised:
        kilns.found()
    assert "\n" not in str(raised.value)


def test_stored_features_need_a_time_and_a_way_to_be_found(kilns: Made) -> None:
    take_snapshot(kilns.params, kilns.workspace, kilns.project)
    timeless = kilns.params.model_copy(update={"as_of": None})
    with pytest.raises(UsageError, match="as_of is missing: stored features"):
        build_features(timeless, kilns.workspace, kilns.project)
    with pytest.raises(UsageError, match="the project's features are stored"):
        ask(kilns.project, kilns.tables, known_until=AS_OF + pd.Timedelta(days=9))


def test_a_missing_configuration_is_named(kilns: Made) -> None:
    (kilns.workspace.root / "feature_store.yaml").unlink()
    with pytest.raises(UsageError, match=r"feature_store.yaml is missing"):
        kilns.found()


def test_labels_and_times_are_those_of_the_questions(kilns: Made) -> None:
    take_snapshot(kilns.params, kilns.workspace, kilns.project)
    build_features(kilns.params, kilns.workspace, kilns.project)
    holdout = pd.read_parquet(kilns.workspace.features / "holdout.parquet").set_index("row_id")
    firings = kilns.firings.set_index("id").loc[list(holdout.index)]
    assert holdout[LABEL].tolist() == firings["cracked"].tolist()
    assert holdout[PREDICTION_TIME].tolist() == holdout[LABEL_TIME].tolist() == firings["lit"].tolist()
