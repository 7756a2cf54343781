"""Served against recomputed features, end to end: a stored project, a real server, replayed traffic, check_skew.py.

Every skew is planted in what fills the online store, never in the comparison.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from filelock import FileLock
from live_server import REPOSITORY, Server, deploy, keep, running, until

from clearway.bundle import payload_digest
from clearway.canary import CanaryVerdict
from clearway.canary_state import read_state, write_state
from clearway.encoding import InputSchema
from clearway.errors import ClearwayError
from clearway.ledger import read_ledger
from clearway.model import load_estimator
from clearway.params import load_params
from clearway.prediction_log import read_log
from clearway.replay import Replay
from clearway.skew import FeatureSkew, SkewReport
from clearway.skew_report import FUTURE, check_skew, way_on
from clearway.workspace import Workspace

pytestmark = pytest.mark.lines  # replays for two minutes

AS_OF = pd.Timestamp("2024-03-15", tz="UTC")
SAILINGS_A_DAY = 18
DAYS = 28
PACKAGE = '''
"""Ferries: will this sailing be late, asked an hour before? Weather of the pier, and the boat's last inspection."""

from datetime import timedelta

import pandas as pd
from feast import Entity, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.types import Float64, Int64, String

from clearway.columns import ENTITY, LABEL, LABEL_TIME, PREDICTION_TIME, ROW_ID
from clearway.feature_store.definitions import Definitions, on_demand_view

DAYS_OF_A_YEAR = 365

pier = Entity(name="pier", join_keys=["pier"], value_type=ValueType.STRING)
boat = Entity(name="boat", join_keys=["boat"], value_type=ValueType.STRING)


def source(name):
    return FileSource(name=name, path=f"data/feature_tables/{name}.parquet", timestamp_field="known_at")


weather = FeatureView(
    name="weather",
    entities=[pier],
    ttl=timedelta(hours=6),
    source=source("weather"),
    schema=[
        Field(name="pier", dtype=String),
        Field(name="temp", dtype=Float64),
        Field(name="dewp", dtype=Float64),
        Field(name="sky", dtype=String),
    ],
)
inspection = FeatureView(
    name="inspection",
    entities=[boat],
    ttl=timedelta(0),
    source=source("inspection"),
    schema=[
        Field(name="boat", dtype=String),
        Field(name="service_years", dtype=Float64),
        Field(name="decks", dtype=Int64),
        Field(name="inspected", dtype=Float64),
    ],
)
request = RequestSource(
    name="request",
    schema=[Field(name="distance", dtype=Float64), Field(name="prediction_time", dtype=Float64)],
)


def at_request(values):
    hours = [
        None if seen is None else (asked - seen) / 3600
        for asked, seen in zip(values["prediction_time"], values["inspected"])
    ]
    return {"inspected_hours": hours}


since_inspection = on_demand_view(
    "since_inspection",
    at_request,
    schema=[Field(name="inspected_hours", dtype=Float64)],
    sources=[inspection[["inspected"]], request],
)


def weather_rows(tables):
    return tables["weather"].rename(columns={"seen_at": "known_at"})


def inspection_rows(tables):
    rows = tables["inspections"].rename(columns={"inspected_at": "known_at"})
    return pd.DataFrame(
        {
            "boat": rows["boat"],
            "known_at": rows["known_at"],
            "service_years": rows["service_days"] / DAYS_OF_A_YEAR,
            "decks": rows["decks"],
            "inspected": rows["known_at"].astype("datetime64[us, UTC]").astype("int64") / 1e6,
        }
    )


class Ferries:
    numeric = ("temp", "dewp", "service_years", "decks", "inspected_hours", "distance")
    categorical = ("sky", "pier")

    def known_at(self, table, frame, as_of):
        columns = {"weather": "seen_at", "inspections": "inspected_at", "sailings": "asked_at"}
        known = frame[~(frame[columns[table]] > as_of)].copy()
        if table == "sailings":
            known["late"] = known["late"].where(known["landed_at"] <= as_of)
        return known

    def questions(self, tables):
        sailings = tables["sailings"]
        landed = sailings["landed_at"].where(sailings["late"].notna())
        return pd.DataFrame(
            {
                ROW_ID: sailings["sailing"].astype("string"),
                ENTITY: sailings["boat"].astype("string"),
                PREDICTION_TIME: sailings["asked_at"],
                LABEL_TIME: landed,
                LABEL: sailings["late"].astype("float64"),
            }
        )

    def definitions(self):
        return Definitions(
            entities=(pier, boat),
            views=(weather, inspection),
            events={"weather": weather_rows, "inspection": inspection_rows},
            request=request,
            on_demand=(since_inspection,),
        )

    def inputs(self, questions, tables):
        return tables["sailings"].loc[questions.index, ["pier", "boat", "distance"]]


PROJECT = Ferries()
'''
TIMES = {"weather": ["seen_at"], "inspections": ["inspected_at"], "sailings": ["asked_at", "landed_at"]}
PARAMS = {
    "project": {"name": "ferries", "package": "ferries"},
    "as_of": "2024-03-15",
    "sources": {name: {"kind": "csv", "path": f"{name}.csv", "timestamps": times} for name, times in TIMES.items()},
    "split": {"holdout_days": 4, "current_days": 4},
    "train": {"arguments": {"max_iter": 5, "min_samples_leaf": 5}},
    "environments": {"staging": {"port": 0}},
    "replay": {"days": 14, "connections": 8},
}
SCHEMA = {
    "tables": {
        "weather": {"columns": {"pier": {"kind": "str"}, "seen_at": {"kind": "timestamp"}, "temp": {"kind": "float"},
                                "dewp": {"kind": "float", "nullable": True}, "sky": {"kind": "str"}}},
        "inspections": {"columns": {"boat": {"kind": "str"}, "inspected_at": {"kind": "timestamp"},
                                    "service_days": {"kind": "int"}, "decks": {"kind": "int"}}},
        "sailings": {"columns": {"sailing": {"kind": "str"}, "pier": {"kind": "str"},
                                 "boat": {"kind": "str", "nullable": True}, "asked_at": {"kind": "timestamp"},
                                 "landed_at": {"kind": "timestamp"}, "distance": {"kind": "float"},
                                 "late": {"kind": "float", "nullable": True}}},
    },
    "features": {"temp": {"kind": "float", "nullable": True, "min": -60, "max": 60}},
}  # fmt: skip
STORE = {
    "project": "ferries",
    "provider": "local",
    "entity_key_serialization_version": 3,
    "registry": {"path": "var/feature_store/registry.db"},
    "offline_store": {"type": "clearway.feature_store.offline.PointInTimeOfflineStore"},
    "online_store": {
        "type": "clearway.feature_store.embedded.EmbeddedOnlineStore",
        "path": "var/feature_store/online.db",
    },
}


def write_tables(folder: Path) -> None:
    """Four weeks: weather at irregular hours with gaps beyond its TTL, inspections of boats, sailings."""
    random = np.random.default_rng(4)
    start = AS_OF - pd.Timedelta(days=14)
    minutes = DAYS * 24 * 60

    def times(count: int) -> pd.Series:
        return pd.Series(start + pd.to_timedelta(np.sort(random.choice(minutes, count, replace=False)), unit="min"))

    weather = [
        pd.DataFrame({"pier": pier, "seen_at": times(200), "temp": random.normal(10, 5, 200), "sky": "clear"})
        for pier in ("north", "south")
    ]
    seen = pd.concat(weather, ignore_index=True)
    seen["dewp"] = (seen["temp"] - random.random(len(seen)) * 4).mask(np.arange(len(seen)) % 9 == 0)
    seen["sky"] = random.choice(["clear", "cloud", "fog"], len(seen))
    seen.to_csv(folder / "weather.csv", index=False)
    inspected = pd.DataFrame({"boat": random.choice(list("ABCDE"), 120), "inspected_at": times(120)})
    inspected["service_days"] = random.integers(500, 9_000, 120)
    inspected["decks"] = random.integers(1, 4, 120)
    inspected.to_csv(folder / "inspections.csv", index=False)
    count = SAILINGS_A_DAY * DAYS
    sailings = pd.DataFrame({"sailing": [f"s{number}" for number in range(count)], "asked_at": times(count)})
    # some at the very instant of an observation
    sailings.loc[::25, "asked_at"] = random.choice(seen["seen_at"].to_numpy(), len(sailings.loc[::25]))
    sailings["asked_at"] = pd.to_datetime(sailings["asked_at"], utc=True)
    sailings["landed_at"] = sailings["asked_at"] + pd.Timedelta(hours=2)
    sailings["pier"] = random.choice(["north", "south"], count)
    sailings["boat"] = pd.Series(random.choice(list("ABCDEZ"), count)).mask(np.arange(count) % 40 == 0)  # Z: unknown
    sailings["distance"] = random.random(count).round(3) * 20
    sailings["late"] = (random.random(count) < 0.4).astype(float)
    sailings.to_csv(folder / "sailings.csv", index=False)


def script(name: str, *arguments: str, project: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, f"scripts/{name}.py", *arguments]
    environment = {
        **os.environ,
        "CLEARWAY_PROJECT": str(project),
        "COLUMNS": "200",
        **more,
    }  # which finds the package too
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=180, env=environment)


@pytest.fixture(scope="module")
def ferries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The project from its tables to a running server, with a bundle deployed."""
    folder = tmp_path_factory.mktemp("ferries")
    (folder / "ferries").mkdir()
    (folder / "ferries" / "__init__.py").write_text(PACKAGE)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA))
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(STORE))
    write_tables(folder)
    for step in ("ingest", "build_features", "train"):
        done = script(step, project=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    workspace = Workspace(folder)
    golden = pd.read_parquet(workspace.features / "holdout.parquet").head(8)
    schema = InputSchema.model_validate_json((workspace.model / "schema.json").read_bytes())
    scores = (
        load_estimator(workspace.model, payload_digest(workspace.model))
        .predict_proba(schema.encode(golden))[:, 1]
        .tolist()
    )
    rows = json.loads(golden[list(schema.names)].to_json(orient="records", double_precision=15))
    digest = keep(workspace.model, rows, scores, workspace)
    with pytest.MonkeyPatch.context() as environment:
        environment.syspath_prepend(str(folder))
        with running(workspace) as server:
            deploy(server.folder, digest)
            ready = (200, {"ready": True})  # once Feast is imported, which takes long on a busy machine
            until(lambda: server.ask("GET", "/v2/health/ready")[:2] == ready, f"ready: {server.state()}", seconds=120)
            replay(server, 5)
            yield server
    sys.modules.pop("ferries", None)


def replay(server: Server, count: int) -> None:
    """The first ``count`` questions, asked again from the first on."""
    (server.folder / "replay.json").unlink(missing_ok=True)
    go_on(server, count)


def go_on(server: Server, count: int) -> None:
    before = len(logged(server))
    result = Replay(load_params(server.workspace.params_file), server.workspace, "staging").send(count)
    assert (result.sent, result.ok) == (count, count)
    until(lambda: len(logged(server)) == before + count, "log")


def logged(server: Server) -> pd.DataFrame:
    return read_log(server.folder / "predictions")


def check(server: Server, *arguments: str) -> tuple["subprocess.CompletedProcess[str]", SkewReport]:
    """What the script said, in a process of its own."""
    done = script("check_skew", "--env", "staging", *arguments, project=server.workspace.root)
    assert "Traceback" not in done.stderr, done.stderr
    return done, SkewReport.model_validate_json((server.workspace.reports / "skew.json").read_bytes())


def judge(server: Server, last: int | None = None, since: datetime | None = None, **which: Any) -> SkewReport:
    """The same in this process, which has imported Feast already."""
    params = load_params(server.workspace.params_file)
    report = check_skew(params, server.workspace, "staging", last=last, since=since, **which)
    assert report is not None
    return report


def ask(server: Server, **row: Any) -> tuple[int, dict[str, Any]]:
    """One question, once its record is in the log."""
    before = len(logged(server))
    server.local = threading.local()  # the server has closed a connection that was long idle
    status, answer, _ = server.predict({"pier": "north", "boat": "A", "distance": 1.5, **row})
    until(lambda: len(logged(server)) == before + 1, "log")
    return status, answer


def last_seen(server: Server) -> pd.Timestamp:
    """When the newest weather of the north pier became known, that the last replay brought into the store."""
    rows = pd.read_parquet(kept_traffic(server) / "events" / "weather.parquet")
    asked = logged(server)["asked_at"].iloc[-1]
    return rows.loc[(rows["pier"] == "north") & (rows["known_at"] <= asked), "known_at"].max()


def kept_traffic(server: Server) -> Path:
    """The newest folder of ``var/replay``: code that changes while the tests run makes another one."""
    return max((path.parent for path in (server.workspace.var / "replay").glob("*/events")), key=os.path.getmtime)


@pytest.fixture
def planted(ferries: Server) -> Iterator[Callable[[str, Callable[[pd.DataFrame], pd.DataFrame]], None]]:
    """Changes the rows of a view that fill the online store in a replay; afterwards they are as they were."""
    kept = kept_traffic(ferries)
    aside = kept.with_name("aside")
    shutil.copytree(kept / "events", aside)

    def plant(view: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        path = kept / "events" / f"{view}.parquet"
        change(pd.read_parquet(path)).to_parquet(path, index=False)

    yield plant
    shutil.rmtree(kept / "events")
    aside.rename(kept / "events")


QUESTIONS = 200
VALUES = QUESTIONS * 8


def test_nothing_compared_is_no_pass(ferries: Server) -> None:
    report = judge(ferries, since=datetime(2030, 1, 1, tzinfo=UTC))
    assert (report.verdict, report.predictions) == ("unknown", 0)
    assert report.sentence.startswith("Nothing was compared")


def test_honest_replay_has_no_skew(ferries: Server) -> None:
    replay(ferries, QUESTIONS)
    done = script("replay_traffic", "--env", "staging", "--requests", "24", project=ferries.workspace.root)
    assert done.returncode == 0, done.stdout + done.stderr  # another process goes on where the first one stopped
    until(lambda: len(logged(ferries)) >= QUESTIONS + 24 + 5, "log")
    done, report = check(ferries, "--last", str(QUESTIONS + 24))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (report.verdict, report.different, report.not_compared) == ("no_skew", 0, ())
    assert (report.predictions, report.values) == (QUESTIONS + 24, VALUES + 24 * 8)
    page = (ferries.workspace.reports / "skew.html").read_text()
    assert "no skew" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    log = logged(ferries).tail(QUESTIONS)
    assert set(log["inputs"].iloc[0]) == {"pier", "boat", "distance"}
    served = pd.DataFrame(log["features"].tolist())
    assert served["temp"].isna().any()  # stale ones
    assert served["temp"].notna().mean() > 0.5
    assert served["decks"].isna().any()  # of unknown and unnamed boats


class TestPlanted:
    """200 questions from the first on; each time the store was filled otherwise."""

    def judged(self, server: Server) -> tuple[str, dict[str, FeatureSkew]]:
        """The report's sentence, and each feature that differs."""
        replay(server, QUESTIONS)
        report = judge(server, QUESTIONS)
        assert (report.verdict, report.predictions) == ("skew", QUESTIONS)
        return report.sentence, {one.name: one for one in report.features if one.different}

    def test_years_of_360_days(self, ferries: Server, planted: Callable[..., None]) -> None:
        planted("inspection", lambda rows: rows.assign(service_years=rows["service_years"] * 365 / 360))
        said, found = self.judged(ferries)
        assert list(found) == ["service_years"]
        assert said.startswith("service_years is the first feature that differs: served values are 1.01389 times")
        done, _ = check(ferries, "--last", str(QUESTIONS))
        assert done.returncode == 1
        assert f"skew: skew: {said} → " in done.stdout
        assert "service_years  inspection" in done.stdout
        assert "service_years: served values are 1.01389 times" in done.stdout
        assert done.stderr == f"error: skew: {said.rstrip('.')}: {way_on(judge(server=ferries, last=QUESTIONS))}\n"

    def test_exchanged_columns(self, ferries: Server, planted: Callable[..., None]) -> None:
        planted("weather", lambda rows: rows.rename(columns={"temp": "dewp", "dewp": "temp"}))
        _, found = self.judged(ferries)
        assert list(found) == ["temp", "dewp"]
        assert found["temp"].hint == "served values are those of dewp: columns renamed or exchanged"
        assert found["dewp"].hint == "served values are those of temp: columns renamed or exchanged"

    def test_a_column_under_another_name(self, ferries: Server, planted: Callable[..., None]) -> None:
        planted("weather", lambda rows: rows.assign(temperature=rows["temp"], temp=np.nan))
        said, found = self.judged(ferries)
        assert list(found) == ["temp"]
        assert "nothing was served where a value is known" in said

    def test_a_late_event(self, ferries: Server, planted: Callable[..., None]) -> None:
        questions = pd.read_parquet(kept_traffic(ferries) / "questions.parquet").head(QUESTIONS).iloc[20:]

        def delay(rows: pd.DataFrame) -> pd.DataFrame:
            """The first row that answers a question reaches the store just after it, and is followed by no other."""
            rows = rows.sort_values(["pier", "known_at"], ignore_index=True)
            following = rows.groupby("pier")["known_at"].shift(-1)
            before = rows.groupby("pier")["known_at"].shift()
            for asked_at, pier in zip(questions["prediction_time"], questions["pier"], strict=True):
                row = rows.index[(rows["pier"] == pier) & (rows["known_at"] <= asked_at)][-1]
                late = asked_at + pd.Timedelta(minutes=1)
                if (
                    late < following[row]
                    and asked_at - before[row] < pd.Timedelta(hours=6)
                    and following[row] - rows["known_at"][row] < pd.Timedelta(hours=6)
                ):
                    rows.loc[row, "known_at"] = late
                    return rows
            raise AssertionError("no question will do")

        planted("weather", delay)
        said, found = self.judged(ferries)
        assert "temp" in found
        assert set(found) <= {"temp", "dewp", "sky"}
        assert all(one.different < 10 for one in found.values())
        assert "of the row before in weather: a late event, or a stale store" in said

    def test_times_of_another_zone(self, ferries: Server, planted: Callable[..., None]) -> None:
        planted("weather", lambda rows: rows.assign(known_at=rows["known_at"] + pd.Timedelta(hours=5)))
        said, found = self.judged(ferries)
        assert set(found) == {"temp", "dewp", "sky"}
        assert "count from 5 h later: times of another time zone, or rows that arrive 5 h late" in said

    def test_a_ttl_that_is_not_applied(self, ferries: Server, planted: Callable[..., None]) -> None:
        def kept_alive(rows: pd.DataFrame) -> pd.DataFrame:
            """Old values written again and again, as a job does that stamps its rows with the time at which it runs."""
            every = pd.date_range(rows["known_at"].min(), rows["known_at"].max(), freq="3h").astype(
                "datetime64[us, UTC]"
            )
            rows = rows.assign(known_at=rows["known_at"].astype("datetime64[us, UTC]")).sort_values("known_at")
            stamps = [
                pd.merge_asof(pd.DataFrame({"known_at": every}), own, on="known_at") for _, own in rows.groupby("pier")
            ]
            return pd.concat([*stamps, rows])[rows.columns].dropna(subset="pier").sort_values("known_at", kind="stable")

        planted("weather", kept_alive)
        said, found = self.judged(ferries)
        assert set(found) == {"temp", "dewp", "sky"}
        assert "rows older than the TTL of weather (6:00:00): it was not applied" in said

    def test_float32_in_the_store(self, ferries: Server, planted: Callable[..., None]) -> None:
        planted("weather", lambda rows: rows.assign(temp=rows["temp"].astype("float32").astype("float64")))
        said, found = self.judged(ferries)
        assert list(found) == ["temp"]
        assert "served values are rounded to float32" in said


def test_served_under_other_definitions_is_unknown_and_names_the_feature(ferries: Server) -> None:
    replay(ferries, 20)
    package = ferries.workspace.root / "ferries" / "__init__.py"
    package.write_text(PACKAGE.replace("DAYS_OF_A_YEAR = 365", "DAYS_OF_A_YEAR = 360"))
    try:
        done, report = check(ferries, "--last", "20")
    finally:
        package.write_text(PACKAGE)
    assert (done.returncode, report.verdict) == (1, "unknown")
    assert re.search("was served under other definitions: .*service_years: the code that computes it", done.stdout)


def test_full_rows_are_counted_not_compared(ferries: Server) -> None:
    replay(ferries, 5)
    full = logged(ferries)["features"].iloc[-1]
    ferries.local = threading.local()  # the server has closed a connection that was long idle
    for number in range(3):
        assert ferries.predict({"id": f"full{number}", **full})[0] == 200
    until(lambda: logged(ferries)["id"].iloc[-1] == "full2", "log")
    report = judge(ferries, 8)
    assert (report.verdict, report.predictions) == ("no_skew", 5)
    assert "3 predictions not compared: they carried their features themselves" in report.sentence


def test_rows_that_the_model_refused_are_compared_like_others(ferries: Server, planted: Callable[..., None]) -> None:
    planted("weather", lambda rows: rows.assign(temp=rows["temp"] + 273.15))
    (ferries.folder / "replay.json").unlink(missing_ok=True)
    before = len(logged(ferries))
    result = Replay(load_params(ferries.workspace.params_file), ferries.workspace, "staging").send(50)
    assert result.client_errors > 20
    until(lambda: len(logged(ferries)) == before + 50, "log")
    assert (logged(ferries)["status"].tail(50) == 422).sum() == result.client_errors
    report = judge(ferries, 50)
    assert (report.verdict, report.predictions, report.not_compared) == ("skew", 50, ())
    assert report.sentence.startswith(
        "temp is the first feature that differs: served values are the recomputed +273.15"
    )


def test_what_became_known_within_the_clock_tolerance_is_no_skew(ferries: Server) -> None:
    replay(ferries, QUESTIONS)
    seen = last_seen(ferries)
    status, answer = ask(ferries, boat="Z", asked_at=(seen - pd.Timedelta(seconds=3)).isoformat())
    assert (status, answer["features"]) == (200, {"inspection": "missing"}), "weather was served, and as present"
    report = judge(ferries, 1)
    assert (report.verdict, report.different) == ("no_skew", 0)
    assert report.within_tolerance > 0
    ask(ferries, boat="Z", asked_at=(seen - pd.Timedelta(seconds=8)).isoformat())
    assert judge(ferries, 1).verdict == "skew", "beyond the tolerance nothing is served where a value was known"


def test_questions_of_the_future_are_counted_not_compared(ferries: Server) -> None:
    replay(ferries, 5)
    ahead = (datetime.now(UTC) + timedelta(days=8)).isoformat()
    assert ask(ferries, id="::error::\nx", asked_at=ahead)[0] == 200
    report = judge(ferries, 1)
    assert (report.verdict, report.predictions) == ("unknown", 0)
    assert [(one.reason, one.predictions) for one in report.not_compared] == [(FUTURE, 1)]


def test_damaged_records_are_counted_and_alone_prove_nothing(ferries: Server, tmp_path: Path) -> None:
    replay(ferries, 5)
    record = json.loads(max((ferries.folder / "predictions").glob("*.jsonl")).read_text().splitlines()[-1])
    folder = tmp_path / "var" / "environments" / "staging" / "predictions"
    for name in ("params.yaml", "schema.yaml", "feature_store.yaml", *(f"{table}.csv" for table in TIMES)):
        shutil.copy(ferries.workspace.root / name, tmp_path)
    folder.mkdir(parents=True)
    damaged = [{**record, "features": [1]}, {**record, "version": None}, {**record, "version": "../../x"}]
    (folder / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in damaged))
    done = script("check_skew", "--env", "staging", project=tmp_path, PYTHONPATH=str(ferries.workspace.root))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("error: unknown: Nothing was compared, so nothing is proven: ")
    assert len(done.stderr.splitlines()) == 1
    assert (
        "2 predictions not compared: their records are damaged, the first is a.jsonl:1: features is [1]" in done.stderr
    )
    assert "1 predictions not compared: version ../../x is no digest" in done.stderr


def test_a_rollout_is_judged_by_itself_and_promoted_only_if_cleared(
    ferries: Server, planted: Callable[..., None], tmp_path: Path
) -> None:
    planted("weather", lambda rows: rows.assign(temp=rows["temp"] + 1))
    replay(ferries, 50)
    stable = ferries.state()["stable"]
    payload = shutil.copytree(ferries.workspace.model, tmp_path / "model")
    (payload / "params.json").write_text((payload / "params.json").read_text() + "\n")
    golden = json.loads((ferries.workspace.bundles / stable / "evidence" / "golden.json").read_text())
    canary = keep(payload, golden["rows"], golden["scores"], ferries.workspace)
    ferries.local = threading.local()
    began = ferries.deploy(stable, canary, 95).revision

    assert judge(ferries).verdict == "skew"
    nothing = judge(ferries, rollout=True)
    assert (nothing.verdict, nothing.rollout, nothing.version) == ("unknown", began, canary)
    entries = read_ledger(ferries.folder, "staging")
    passed = CanaryVerdict(verdict="promote", sentence="fine", weight=95, n_canary=9, n_stable=9, metrics=())
    state = read_state(ferries.folder, entries)
    assert state is not None
    write_state(ferries.folder, state.judged(passed, began, datetime.now(UTC)))
    promote = ("deploy", "--env", "staging", "--digest", canary, "--canary", "100")
    refused = script(*promote, project=ferries.workspace.root)
    assert refused.returncode == 1
    assert f"since entry {began}, where its rollout began, is 'unknown' (Nothing was compared" in refused.stderr
    assert "scripts/check_skew.py --env staging --rollout must say no skew" in refused.stderr

    kept = kept_traffic(ferries)
    shutil.copy(kept.with_name("aside") / "weather.parquet", kept / "events" / "weather.parquet")
    replay(ferries, 100)
    other = judge(ferries, rollout=True, digest="f" * 64)
    assert (other.verdict, other.lacking[0]) == ("unknown", "temp")
    assert "No value of temp and 7 others was compared of version ffffffffffff" in other.sentence
    assert script(*promote, project=ferries.workspace.root).returncode == 1, "another version's verdict"
    done, cleared = check(ferries, "--rollout", "--digest", canary)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (cleared.verdict, cleared.version, cleared.rollout) == ("no_skew", canary, began)
    promoted = script(*promote, project=ferries.workspace.root)
    assert promoted.returncode == 0, promoted.stderr
    assert read_ledger(ferries.folder, "staging")[-1].evidence["skew_verdict"] == "no_skew"


def test_only_questions_since_a_time_are_compared(ferries: Server) -> None:
    replay(ferries, 100)
    since = logged(ferries)["asked_at"].tail(100).sort_values().iloc[60].to_pydatetime()
    report = judge(ferries, since=since)
    assert report.asked_from == since


def test_a_killed_replay_and_the_next_one_are_without_skew(ferries: Server) -> None:
    (ferries.folder / "replay.json").unlink(missing_ok=True)
    before = len(logged(ferries))
    environment = {**os.environ, "CLEARWAY_PROJECT": str(ferries.workspace.root)}
    command = [sys.executable, "scripts/replay_traffic.py", "--env", "staging", "--requests", "200"]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
    try:
        until(lambda: len(logged(ferries)) > before + 20, "some answers", seconds=60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    time.sleep(0.5)  # the server writes its log
    go_on(ferries, 20)  # the rows that the dead replay claimed are skipped
    replay(ferries, 30)  # and time goes back
    asked = len(logged(ferries)) - before
    report = judge(ferries, asked)
    assert (report.verdict, report.predictions) == ("no_skew", asked)


def test_one_replay_moves_the_store_at_a_time(ferries: Server) -> None:
    with (
        FileLock(ferries.workspace.feature_store / "replay.lock"),
        pytest.raises(ClearwayError, match="another replay is moving the online store"),
    ):
        replay(ferries, 5)
    replay(ferries, 5)


def test_a_second_call_reads_what_the_first_one_kept(ferries: Server) -> None:
    kept = sorted((ferries.workspace.var / "replay").rglob("*"))
    stamps = [path.stat().st_mtime_ns for path in kept]
    replay(ferries, 5)
    assert sorted((ferries.workspace.var / "replay").rglob("*")) == kept
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    assert {path.name for path in kept} >= {"questions.parquet", "events", "weather.parquet", "inspection.parquet"}


def test_a_project_without_a_store_has_nothing_to_check(tmp_path: Path) -> None:
    pears = {
        "project": {"name": "pears"},
        "sources": {"pears": {"kind": "csv", "path": "pears.csv"}},
        "data": {"table": "pears", "label": "ripe"},
        "environments": {"staging": {"port": 0}},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(pears))
    columns = {"weight": {"kind": "float"}, "ripe": {"kind": "int"}}
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump({"tables": {"pears": {"columns": columns}}}))
    assert check_skew(load_params(tmp_path / "params.yaml"), Workspace(tmp_path), "staging") is None
    assert not (tmp_path / "reports").exists(), "silence is no report"
