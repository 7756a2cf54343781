"""Feature tables of two tiny projects made here: one that knows time, and one flat table."""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clearway.columns import ENTITY, LABEL, LABEL_TIME, PREDICTION_TIME, RESERVED, ROW_ID
from clearway.errors import ClearwayError, UsageError
from clearway.features import ask, build_features, content_hash, replay_questions, split
from clearway.files import sha256_file
from clearway.params import Params, SplitParams
from clearway.project import definitions_sha256, load_project
from clearway.snapshot import take_snapshot
from clearway.workspace import Workspace

FEATURES = ("load", "recent_failures", "machine")
AS_OF = datetime(2024, 3, 1, tzinfo=UTC)
WEEK = (pd.Timestamp(AS_OF), pd.Timestamp(AS_OF) + pd.Timedelta(days=7, seconds=-1))

PROJECT_CODE = '''
"""Machines that may fail within six hours of being asked about."""
import pandas as pd
from clearway.point_in_time import KNOWN_AT, trailing_mean

class Machines:
    numeric = ("load", "recent_failures")
    categorical = ("machine",)

    def known_at(self, table, frame, as_of):
        if as_of is None:
            return frame
        known = frame[frame["asked"] <= as_of].copy()
        late = known["asked"] + pd.Timedelta(hours=6) > as_of
        known["failed"] = known["failed"].astype("float64").mask(late)
        return known

    def questions(self, tables):
        readings = tables["readings"]
        return pd.DataFrame({
            "row_id": readings["id"], "entity": readings["machine"], "prediction_time": readings["asked"],
            "label_time": (readings["asked"] + pd.Timedelta(hours=6)).where(readings["failed"].notna()),
            "label": readings["failed"],
        })

    def features(self, questions, tables):
        readings = tables["readings"]
        events = readings.assign(**{KNOWN_AT: readings["asked"] + pd.Timedelta(hours=6)})
        asked = questions.join(readings[["machine", "load"]])
        recent = trailing_mean(asked, events, "machine", "failed", window=pd.Timedelta(days=2))
        return asked[["load", "machine"]].assign(recent_failures=recent)

PROJECT = Machines()
'''


def readings(days: int) -> pd.DataFrame:
    random = np.random.default_rng(1)
    asked = pd.date_range("2024-01-01", periods=days * 8, freq="3h", tz="UTC")
    return pd.DataFrame(
        {
            "id": [f"r{i}" for i in range(len(asked))],
            "asked": asked,
            "machine": random.choice(["lathe", "press"], len(asked)),
            "load": random.normal(size=len(asked)).round(3) + 0.1,
            "failed": random.integers(0, 2, len(asked)),
        }
    )


def settings(**changes: object) -> dict[str, object]:
    made: dict[str, object] = {
        "project": {"name": "machines", "package": "machines_for_features_test"},
        "as_of": AS_OF.isoformat(),
        "sources": {"readings": {"kind": "csv", "path": "readings.csv", "timestamps": ["asked"]}},
        "split": {"holdout_days": 10, "current_days": 5},
        "replay": {"days": 7},
        "environments": {"production": {"port": 0}},
    }
    return {**made, **changes}


SCHEMA = """
tables:
  readings:
    columns:
      id: { kind: str, unique: true }
      asked: { kind: timestamp }
      machine: { kind: str }
      load: { kind: float }
      failed: { kind: int, nullable: true }
features:
  load: { kind: float, min: -10, max: 10 }
  machine: { kind: str, values: [lathe, press] }
"""

FLAT_SCHEMA = """
tables:
  patients:
    columns:
      age: { kind: int, min: 0, max: 120, unique: false, mean: { min: 20, max: 90 } }
      size: { kind: float, nullable: true }
      colour: { kind: str, nullable: true, values: [red, blue] }
      sick: { kind: int, nullable: true }
"""


class Made:
    """A project folder and what its scripts would hold in hand."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.workspace = Workspace(folder)
        self.params = Params.model_validate(settings(**changes))
        columns = {"age": "int", "size": "float", "colour": "str", "sick": "int"}
        self.project = load_project(self.params, columns)

    def build(self) -> dict[str, pd.DataFrame]:
        take_snapshot(self.params, self.workspace, self.project)
        build_features(self.params, self.workspace, self.project)
        return {
            name: pd.read_parquet(self.workspace.features / f"{name}.parquet")
            for name in ("training", "holdout", "current")
        }

    def replay_after_snapshot(self) -> pd.DataFrame:
        take_snapshot(self.params, self.workspace, self.project)
        return self.replay()

    def replay(self) -> pd.DataFrame:
        return replay_questions(self.params, self.workspace, self.project)


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a project that knows time: readings every three hours for 80 days."""
    (tmp_path / "machines_for_features_test.py").write_text(PROJECT_CODE)
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    monkeypatch.syspath_prepend(tmp_path)
    readings(80).to_csv(tmp_path / "readings.csv", index=False)
    return tmp_path


FLAT = {
    "project": {"name": "patients"},
    "as_of": None,
    "sources": {"patients": {"kind": "csv", "path": "patients.csv"}},
    "data": {"table": "patients", "label": "sick"},
}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """A folder with one flat table of 400 rows, some of them without an answer."""
    random = np.random.default_rng(2)
    patients = pd.DataFrame(
        {
            "age": random.integers(20, 90, 400),
            "size": random.normal(size=400),
            "colour": random.choice(["red", "blue", None], 400),
            "sick": random.integers(0, 2, 400).astype("float64"),
        }
    )
    patients.loc[:19, "sick"] = np.nan
    (tmp_path / "schema.yaml").write_text(FLAT_SCHEMA)
    patients.to_csv(tmp_path / "patients.csv", index=False)
    return tmp_path


def test_windows_hold_what_was_asked_and_answered_in_time(timed):
    tables = Made(timed).build()
    held_from = AS_OF - timedelta(days=10)
    assert (tables["training"][PREDICTION_TIME] < held_from).all()
    assert (tables["training"][LABEL_TIME] < held_from).all()
    # asked in the six hours before the holdout begins: answered too late to train on
    assert tables["training"][PREDICTION_TIME].max() == pd.Timestamp(held_from - timedelta(hours=9))
    assert tables["holdout"][PREDICTION_TIME].min() == pd.Timestamp(held_from)
    assert (tables["holdout"][LABEL_TIME] <= AS_OF).all()
    assert tables["holdout"][LABEL].notna().all()
    assert len(tables["current"]) == 5 * 8
    assert tables["current"][LABEL].isna().sum() == 1  # asked at 21:00, answered at 03:00: not known at midnight
    assert list(tables["training"].columns) == [*RESERVED, "load", "recent_failures", "machine"]


def test_features_json_describes_the_tables(timed):
    made = Made(timed)
    tables = made.build()
    described = json.loads((made.workspace.features / "features.json").read_text())
    assert described["numeric"] == ["load", "recent_failures"]
    assert described["categorical"] == ["machine"]
    assert described["rows"] == {name: len(table) for name, table in tables.items()}
    assert described["windows"]["holdout"] == ["2024-02-20T00:00:00+00:00", "2024-03-01T00:00:00+00:00"]
    last = {name: tables[name][LABEL_TIME].max().isoformat() for name in ("training", "holdout")}
    assert described["answers_until"] == last
    assert len(described["definitions_sha256"]) == 64


def test_the_same_data_gives_the_same_bytes(timed):
    made = Made(timed)
    made.build()
    first = {path.name: sha256_file(path) for path in made.workspace.features.iterdir()}
    made.build()
    assert {path.name: sha256_file(path) for path in made.workspace.features.iterdir()} == first
    assert set(first) == {"training.parquet", "holdout.parquet", "current.parquet", "features.json"}


def test_numbers_are_what_float32_holds(timed):
    load = Made(timed).build()["training"]["load"].to_numpy()
    assert (load.astype(np.float32).astype(np.float64) == load).all()


def asked_on(*days: str, label: float | None = 1.0) -> pd.DataFrame:
    """Questions asked on these days and answered an hour later."""
    times = pd.to_datetime(pd.Series(days), utc=True).astype("datetime64[ns, UTC]")
    labels = pd.Series(label, index=times.index, dtype="float64")
    return pd.DataFrame(
        {PREDICTION_TIME: times, LABEL_TIME: (times + timedelta(hours=1)).where(labels.notna()), LABEL: labels}
    )


@pytest.mark.parametrize(
    ("days", "message"),
    [
        (("2024-02-25", "2024-02-28"), r"training window is empty.*, 2024-02-20.*as_of, split.holdout_days = 10"),
        (("2024-01-05", "2024-01-06"), r"holdout window is empty.*\[2024-02-20.*2024-03-01.*split.holdout_days = 10"),
        (("2024-01-05", "2024-02-22"), r"current window is empty.*\[2024-02-25.*2024-03-01.*split.current_days = 5"),
    ],
)
def test_an_empty_window_is_named_with_its_bounds_and_key(days, message):
    with pytest.raises(ClearwayError, match=message) as caught:
        split(asked_on(*days), SplitParams(holdout_days=10, current_days=5), AS_OF, 0, ())
    assert "\n" not in str(caught.value)


def test_nothing_is_written_when_a_window_is_empty(timed):
    made = Made(timed, as_of="2024-01-02T00:00:00Z")
    take_snapshot(made.params, made.workspace, made.project)
    with pytest.raises(ClearwayError, match="training window is empty"):
        build_features(made.params, made.workspace, made.project)
    assert not made.workspace.features.exists()


def test_an_answer_from_after_as_of_is_refused(timed):
    made = Made(timed)
    tables = {"readings": readings(80)}  # never cut by known_at
    with pytest.raises(ClearwayError, match="a label that becomes known only after 2024-03-01"):
        ask(made.project, tables, known_until=AS_OF)
    assert len(ask(made.project, tables, known_until=AS_OF + timedelta(days=60))) == 640


class Broken:
    """A working project with one column of its questions, or its features, replaced."""

    numeric = ("load",)
    categorical = ()

    def __init__(self, questions: dict[str, object] | None = None, features: object = 1.0) -> None:
        self._questions = questions or {}
        self._features = features

    def known_at(self, table, frame, as_of):
        return frame

    def questions(self, tables):
        made = asked_on("2024-01-01", "2024-01-02").assign(**{ROW_ID: ["a", "b"], ENTITY: None})
        return made.assign(**self._questions)

    def features(self, questions, tables):
        return pd.DataFrame({"load": self._features}, index=questions.index)


@pytest.mark.parametrize(
    ("project", "message"),
    [
        (Broken({ROW_ID: "a"}), "repeats 1 row_ids.*'a'"),
        (Broken({ROW_ID: None}), "2 rows without row_id"),
        (Broken({LABEL: 2.0}), r"label = .*2\.0"),
        (Broken({LABEL_TIME: pd.Series([pd.NaT, pd.NaT], dtype="datetime64[ns, UTC]")}), "no label_time"),
        (Broken({LABEL_TIME: pd.Timestamp("2023-01-01", tz="UTC")}), "before the question was asked"),
        (Broken({PREDICTION_TIME: pd.to_datetime(pd.Series(["2024-01-01", None]), utc=True)}), "1 questions have no"),
        (Broken(features=np.inf), "feature load = inf"),
        (Broken(features=1e300), "feature load = 1e\\+300"),
        (Broken(features="many"), "feature load is not numeric"),
        (Broken(features=pd.to_datetime(["2024-01-01", None], utc=True)), "feature load is a time.*data.ignore"),
        (Broken(features=pd.to_timedelta(["1h", None])), "feature load is a time or a span"),
    ],
)
def test_a_project_that_breaks_its_contract_is_told_how(project, message):
    with pytest.raises(ClearwayError, match=message):
        ask(project, {}, known_until=AS_OF)


def test_time_in_questions_and_as_of_in_params_go_together():
    with pytest.raises(UsageError, match="as_of is missing"):
        ask(Broken(), {}, known_until=None)
    timeless = Broken({PREDICTION_TIME: pd.Series([pd.NaT, pd.NaT], dtype="datetime64[ns, UTC]")})
    with pytest.raises(UsageError, match="knows no time"):
        ask(timeless, {}, known_until=AS_OF)


def test_replayed_questions_come_after_as_of_with_the_features_training_would_give(timed):
    replayed = Made(timed).replay_after_snapshot()
    assert replayed[PREDICTION_TIME].min() == pd.Timestamp(AS_OF)
    assert replayed[PREDICTION_TIME].max() < pd.Timestamp(AS_OF + timedelta(days=7))
    assert replayed[PREDICTION_TIME].is_monotonic_increasing
    assert len(replayed) == 7 * 8
    later = Made(timed, as_of=(AS_OF + timedelta(days=10)).isoformat(), split={"holdout_days": 10, "current_days": 10})
    trained = later.build()["current"].set_index(ROW_ID)
    same = replayed.set_index(ROW_ID)
    pd.testing.assert_frame_equal(same[["load", "recent_failures", "machine"]], trained.loc[same.index, list(FEATURES)])


def test_a_planted_future_value_moves_no_feature(timed):
    made = Made(timed)
    before = ask(made.project, {"readings": readings(80)}, known_until=datetime.max.replace(tzinfo=UTC))
    changed = readings(80)
    planted = changed["asked"] >= "2024-02-01"
    changed.loc[planted, "failed"] = 1 - changed.loc[planted, "failed"]
    after = ask(made.project, {"readings": changed}, known_until=datetime.max.replace(tzinfo=UTC))
    unaffected = before[PREDICTION_TIME] < "2024-02-01T06:00:00Z"
    assert unaffected.sum() == 31 * 8 + 2
    pd.testing.assert_frame_equal(before.loc[unaffected, list(FEATURES)], after.loc[unaffected, list(FEATURES)])
    assert not before["recent_failures"].equals(after["recent_failures"])


def test_the_second_replay_is_read_from_its_cache(timed):
    made = Made(timed)
    first = made.replay_after_snapshot()
    (timed / "readings.csv").unlink()  # the source is not asked again
    pd.testing.assert_frame_equal(made.replay(), first)
    with pytest.raises(ClearwayError, match=r"readings\.csv"):
        Made(timed, replay={"days": 8}).replay()


def test_no_traffic_after_the_end_of_the_source_is_said(timed):
    made = Made(timed, as_of="2024-03-21T00:00:00Z")
    with pytest.raises(ClearwayError, match=r"no question to replay in \[2024-03-21.*replay.days = 7"):
        made.replay_after_snapshot()


def test_a_flat_table_is_split_by_content_not_by_place(flat):
    first = Made(flat, **FLAT).build()
    assert len(first["current"]) == 400
    assert len(first["training"]) + len(first["holdout"]) == 380
    assert 0.15 < len(first["holdout"]) / 380 < 0.35
    pd.read_csv(flat / "patients.csv").sample(frac=1, random_state=3).to_csv(flat / "patients.csv", index=False)
    second = Made(flat, **FLAT).build()
    held = [sorted(tables["holdout"]["size"]) for tables in (first, second)]
    assert held[0] == held[1]
    reseeded = Made(flat, **FLAT, seed=5).build()
    assert sorted(reseeded["holdout"]["size"]) != held[0]


def test_equal_rows_are_on_one_side_of_the_split():
    frame = pd.DataFrame({ENTITY: pd.array([None] * 4, dtype="string"), LABEL: [1.0, 1.0, 0.0, 1.0]})
    frame["age"] = [30.0, 30.0, 30.0, np.nan]
    frame["colour"] = pd.array(["red", "red", "red", None], dtype="string")
    hashes = content_hash(frame, ("age", "colour"), 7)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert ((hashes >= 0) & (hashes < 1)).all()


def test_flat_traffic_is_the_holdout_in_a_seeded_order(flat):
    made = Made(flat, **FLAT)
    replayed = made.replay_after_snapshot()
    held = made.build()["holdout"]
    assert sorted(replayed[ROW_ID]) == sorted(held[ROW_ID])
    assert replayed[ROW_ID].tolist() != held[ROW_ID].tolist()
    pd.testing.assert_frame_equal(replayed, made.replay())


def test_a_flat_table_without_answers_is_refused(flat):
    pd.read_csv(flat / "patients.csv").assign(sick=np.nan).to_csv(flat / "patients.csv", index=False)
    with pytest.raises(ClearwayError, match=r"training window is empty: none of 400 .*holdout_share = 0\.25"):
        Made(flat, **FLAT).build()


def test_a_feature_without_any_value_to_learn_from_is_named(flat):
    pd.read_csv(flat / "patients.csv").assign(size=np.nan).to_csv(flat / "patients.csv", index=False)
    with pytest.raises(ClearwayError, match=r"feature size has no value in the \d+ rows of the training window"):
        Made(flat, **FLAT).build()
    assert not (flat / "data" / "features").exists()


def schema_saying(folder: Path, said: str, **changes: object) -> Made:
    """The timed project with another ``features`` section, and its snapshot taken."""
    (folder / "schema.yaml").write_text(SCHEMA.split("features:")[0] + f"features:\n  {said}\n")
    made = Made(folder, **changes)
    take_snapshot(made.params, made.workspace, made.project)
    return made


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("load: { kind: float, max: 1 }", r"640 labelled|labelled questions .* load range: "),
        ("load: { kind: int }", "load kind: "),
        ("recent_failures: { kind: float }", "recent_failures nulls: "),
        ("machine: { kind: str, values: [lathe] }", "machine values: .*press"),
        ("load: { kind: float, max: 0, severity: quarantine }", "quarantine"),
    ],
)
def test_a_feature_that_is_not_what_the_schema_declares_stops_the_line(timed, said, message):
    made = schema_saying(timed, said)
    with pytest.raises(ClearwayError, match=message) as caught:
        build_features(made.params, made.workspace, made.project)
    assert "\n" not in str(caught.value)
    assert not made.workspace.features.exists()


def test_with_the_veto_overridden_questions_that_a_server_would_refuse_are_said_and_not_learnt_from(timed):
    loads = readings(80)["load"]
    limit = round(float(loads.median()), 3)
    decision = {"override_veto": "known sensor fault, ticket 7"}
    made = schema_saying(timed, f"load: {{ kind: float, max: {limit} }}", decision=decision)
    tables = made.build()
    built = build_features(made.params, made.workspace, made.project)
    assert built.set_aside > 0
    assert all((table["load"] <= limit).all() for table in tables.values())
    (warning,) = built.warnings
    assert warning.startswith("feature load range: ")
    assert warning.endswith("; set aside")
    described = json.loads((made.workspace.features / "features.json").read_text())
    assert described["declared"]["load"] == {"kind": "float", "max": limit}  # a server goes on refusing them


def test_what_the_schema_warns_of_is_said_and_trained_on(timed):
    made = schema_saying(timed, "load: { kind: float, max: 1, severity: warn }")
    built = build_features(made.params, made.workspace, made.project)
    assert built.set_aside == 0
    (warning,) = built.warnings
    assert warning.startswith("feature load range: ")


def test_questions_that_a_server_would_refuse_are_set_aside_from_training_and_from_replay(timed):
    loads = readings(80)["load"]
    limit = float(loads.sort_values().iloc[-4])  # three of 640 are above it
    changed = readings(80).assign(load=loads.where(loads <= limit, 50.0))
    changed.loc[changed["asked"] == "2024-03-02T12:00:00Z", "load"] = 50.0  # is replayed
    changed.to_csv(timed / "readings.csv", index=False)
    made = schema_saying(timed, "load: { kind: float, max: 40, severity: quarantine }")
    tables = made.build()
    built = build_features(made.params, made.workspace, made.project)
    assert built.set_aside == int((changed.loc[changed["asked"] < AS_OF, "load"] > 40).sum()) > 0
    assert all((table["load"] <= 40).all() for table in tables.values())
    replayed = made.replay()
    assert (replayed["load"] <= 40).all()
    assert len(replayed) == 7 * 8 - int((changed.loc[changed["asked"].between(*WEEK), "load"] > 40).sum())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("laod: { kind: float }", r"schema.yaml: features.laod is no feature of the project: do you mean load\?"),
        ("load: { kind: str }", r"features.load.kind = str, but the project's feature is of kind int or float"),
        ("machine: { kind: bool }", r"features.machine.kind = bool, .* of kind str"),
    ],
)
def test_a_declaration_that_fits_no_feature_is_named(timed, said, message):
    made = schema_saying(timed, said)
    with pytest.raises(UsageError, match=message):
        build_features(made.params, made.workspace, made.project)


def test_features_of_a_flat_table_are_declared_by_its_columns(flat):
    made = Made(flat, **FLAT)
    made.build()
    described = json.loads((made.workspace.features / "features.json").read_text())
    assert described["declared"] == {
        "age": {"kind": "int", "min": 0, "max": 120},  # the mean is of the table, not of a value
        "size": {"kind": "float", "nullable": True},
        "colour": {"kind": "str", "nullable": True, "values": ["red", "blue"]},
    }
    (flat / "schema.yaml").write_text(FLAT_SCHEMA + "features:\n  age: { kind: int }\n")
    with pytest.raises(UsageError, match=r"tables\.patients\.columns"):
        build_features(made.params, made.workspace, made.project)


def test_raw_rows_that_the_schema_sets_aside_are_asked_neither_in_training_nor_in_replay(timed):
    made = schema_saying(timed, "load: { kind: float }")
    rows = build_features(made.params, made.workspace, made.project).rows
    asked = set(made.replay()[ROW_ID])
    schema = (timed / "schema.yaml").read_text()
    quarantined = schema.replace(
        "machine: { kind: str }", "machine: { kind: str, values: [lathe], severity: quarantine }"
    )
    (timed / "schema.yaml").write_text(quarantined)
    after = build_features(made.params, made.workspace, made.project).rows
    assert all(0 < after[window] < rows[window] for window in rows)
    replayed = made.replay()  # another schema: not from the cache
    assert set(replayed["machine"]) == {"lathe"}
    assert set(replayed[ROW_ID]) < asked


def of_kind(folder: Path, kind: str, sick: list[object], declared: str = "int") -> Made:
    table = pd.read_csv(folder / "patients.csv")
    table["sick"] = (sick * len(table))[: len(table)]
    table.to_csv(folder / "patients.csv", index=False)
    schema = (folder / "schema.yaml").read_text().replace("sick: { kind: int", f"sick: {{ kind: {declared}")
    (folder / "schema.yaml").write_text(schema)
    made = Made(folder, **FLAT, target={"kind": kind})
    columns = {"age": "int", "size": "float", "colour": "str", "sick": declared}
    made.project = load_project(made.params, columns)
    return made


def test_classes_are_text_in_the_tables_whatever_they_were_and_missing_ones_stay_missing(flat):
    windows = of_kind(flat, "multiclass", [3, 10, 7, None]).build()
    labels = pd.concat([windows["training"], windows["holdout"]])["label"]
    assert set(labels) == {"3", "7", "10"}
    assert windows["current"]["label"].isna().mean() == pytest.approx(0.25, abs=0.02)
    assert windows["training"]["label"].dtype == "string"


def test_truth_values_and_odd_names_are_classes(flat):
    names = ["Ünï $x$", "a|b\nc", "True"]
    windows = of_kind(flat, "multiclass", names, "str").build()
    assert set(windows["current"]["label"]) == set(names)


def test_numbers_are_labels_as_they_are(flat):
    windows = of_kind(flat, "regression", [1.5, -2e30, None, 7], "float").build()
    assert set(windows["training"]["label"]) == {1.5, -2e30, 7.0}
    assert windows["current"]["label"].dtype == "float64"


def test_a_number_that_float32_cannot_hold_is_no_label(flat):
    with pytest.raises(ClearwayError, match=r"label = .*1e\+39.*: too large for float32"):
        of_kind(flat, "regression", [1.5, 1e39], "float").build()


def test_text_is_no_number_to_be_learnt(flat):
    with pytest.raises(
        UsageError, match=r"data\.label 'sick' is of kind str in the schema: target\.kind = 'regression'"
    ):
        of_kind(flat, "regression", ["a"], "str")


def test_another_kind_of_target_is_another_definition(flat):
    hashes = {of_kind(flat, kind, [1, 0]).params.target.kind for kind in ("binary", "multiclass", "regression")}
    made = {definitions_sha256(Made(flat, **FLAT, target={"kind": kind}).params) for kind in hashes}
    assert len(made) == 3


@pytest.mark.parametrize(
    ("kind", "answers", "expected"),
    [
        ("multiclass", "readings['load'].gt(0).map({True: 'up', False: 'down'})", {"up", "down"}),
        ("regression", "readings['load']", None),
    ],
)
def test_a_package_asks_for_classes_and_numbers_too(timed, kind, answers, expected):
    code = PROJECT_CODE.replace(
        '"label": readings["failed"],', f'"label": {answers}.where(readings["failed"].notna()),'
    )
    (timed / "machines_for_features_test.py").write_text(code)
    sys.modules.pop("machines_for_features_test", None)
    made = Made(timed, target={"kind": kind})
    windows = made.build()
    if expected:
        assert set(windows["training"]["label"]) == expected
    else:
        np.testing.assert_allclose(windows["training"]["label"], windows["training"]["load"], rtol=1e-6)
    assert set(made.replay()["label"].dropna().map(type)) == {str if expected else float}


@pytest.mark.parametrize(
    ("kind", "label", "said"),
    [
        ("multiclass", " ", "a class needs a name"),
        ("regression", np.inf, "finite number"),
        ("regression", "x", "finite number"),
    ],
)
def test_a_label_that_fits_no_target_is_named(kind, label, said):
    with pytest.raises(ClearwayError, match=said):
        ask(Broken({LABEL: label}), {}, known_until=AS_OF, kind=kind)
