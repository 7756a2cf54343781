"""Monitoring's judgements: what passes, what alarms, and what is said to be unknown."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clearway.calibration import calibrate
from clearway.drift_reference import DriftReference
from clearway.encoding import CategoricalFeature, InputSchema, NumericFeature
from clearway.labels import join_labels
from clearway.ledger import Entry
from clearway.metrics import metric
from clearway.monitoring import (
    Check,
    Expected,
    MonitoringReport,
    hidden_features,
    judge_errors,
    judge_features,
    judge_performance,
    judge_scores,
    judge_silence,
    recent,
    reconcile,
    served_features,
    summary,
    traffic,
)
from clearway.params import DomainParams, DriftParams, PerformanceTrigger
from clearway.routing import RoutingTable

NOW = datetime(2020, 6, 1, tzinfo=UTC)
STABLE, CANARY, HASH = "a" * 64, "b" * 64, "f" * 64
LIMITS = PerformanceTrigger(metric="roc_auc", max_drop=0.03, min_rows=200)
SCHEMA = InputSchema(features=(NumericFeature(name="size"), CategoricalFeature(name="kind", categories=("x", "y"))))


def log(rows: int, **changes: Any) -> pd.DataFrame:
    columns = {
        "id": [str(i) for i in range(rows)],
        "version": STABLE,
        "role": "stable",
        "asked_at": pd.date_range(NOW - timedelta(days=10), periods=rows, freq="h", tz="UTC"),
        "served_at": pd.Timestamp(NOW),
        "status": 200,
        "score": np.linspace(0, 1, rows),
        "features": [{"size": float(i), "kind": "x"} for i in range(rows)],
    }
    return pd.DataFrame({**columns, **changes})


def questions(labels: list[float | None]) -> pd.DataFrame:
    return pd.DataFrame({"row_id": [str(i) for i in range(len(labels))], "label": labels}).astype({"label": "float64"})


def test_labels_join_by_id_and_only_known_ones_count() -> None:
    joined = join_labels(log(4), questions([1.0, None, 0.0]))
    assert joined["id"].tolist() == ["0", "2"]
    assert joined["label"].tolist() == [1.0, 0.0]


def test_a_question_asked_again_counts_once_for_each_version_with_its_last_answer() -> None:
    again = pd.concat([log(2, score=[0.1, 0.2]), log(2, score=[0.7, 0.8]), log(2, version=CANARY)])
    joined = join_labels(again, questions([1.0, 0.0]))
    assert joined.groupby("version")["id"].count().to_dict() == {STABLE: 2, CANARY: 2}
    assert joined.loc[joined["version"] == STABLE, "score"].tolist() == [0.7, 0.8]


def test_a_repeated_id_of_a_replay_is_the_question_it_repeats() -> None:
    rounds = pd.concat([log(3, score=0.1), log(3, id=["0~1", "1~1", "2~1"], score=0.2), log(1, id="0~12", score=0.3)])
    joined = join_labels(rounds, questions([1.0, 0.0, None]))
    assert joined[["id", "score", "label"]].values.tolist() == [["1", 0.2, 0.0], ["0", 0.3, 1.0]]


def test_an_id_of_the_project_that_ends_like_a_repeated_one_is_its_own() -> None:
    own = pd.DataFrame({"row_id": ["a", "a~1"], "label": [0.0, 1.0]})
    assert join_labels(log(2, id=["a", "a~1"]), own)["label"].tolist() == [0.0, 1.0]
    assert join_labels(log(1, id="a~x"), own).empty


def test_a_testers_requests_and_a_shadows_copies_are_no_traffic() -> None:
    mixed = pd.concat([log(2), log(3, role="tester", status=500), log(2, role="shadow"), log(1, role="canary")])
    assert traffic(mixed)["role"].tolist() == ["stable", "stable", "canary"]


def test_recent_goes_by_event_time_and_takes_all_where_there_is_none() -> None:
    assert len(recent(log(100), days=1)) == 24
    assert len(recent(log(100, asked_at=pd.NaT), days=1)) == 100
    assert recent(log(3, status=[200, 500, 200], score=[0.5, np.nan, 0.5]), days=99)["id"].tolist() == ["0", "2"]


def labelled(rows: int, strength: float) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    label = generator.integers(0, 2, rows).astype(float)
    return pd.DataFrame({"label": label, "score": 1 / (1 + np.exp(-(strength * label + generator.normal(size=rows))))})


@pytest.mark.parametrize(("strength", "status"), [(2.0, "pass"), (0.2, "alarm")])
def test_performance_passes_or_alarms_with_an_interval(strength: float, status: str) -> None:
    check = judge_performance(labelled(1_000, strength), Expected(metric("roc_auc"), 0.9, 0.5), LIMITS, seed=1)
    assert check.status == status
    assert check.lower is not None
    assert check.upper is not None
    assert check.lower < float(check.observed or 0) < check.upper
    assert check.threshold == pytest.approx(0.87)
    assert f"(90% interval {check.lower:.3f} to {check.upper:.3f})" in check.sentence  # two bounds of 95% each


def test_a_fall_that_chance_explains_is_no_alarm() -> None:
    rows = labelled(200, 1.0)
    from sklearn.metrics import roc_auc_score

    now = float(roc_auc_score(rows["label"], rows["score"]))
    check = judge_performance(rows, Expected(metric("roc_auc"), now + 0.032, 0.5), LIMITS, seed=1)
    assert check.status == "pass"
    assert check.upper is not None
    assert check.upper > now + 0.032


def test_a_loss_alarms_when_it_rises() -> None:
    bad = labelled(1_000, 2.0).assign(score=lambda rows: 1 - rows["score"])
    check = judge_performance(bad, Expected(metric("brier"), 0.15, 0.5), LIMITS, seed=1)
    assert check.status == "alarm"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(labelled(199, 2.0), 0.9), (labelled(300, 2.0).assign(label=1.0), 0.9), (labelled(300, 2.0), None)],
)
def test_performance_is_unknown_without_enough_to_go_by(rows: pd.DataFrame, expected: float | None) -> None:
    assert judge_performance(rows, Expected(metric("roc_auc"), expected, 0.5), LIMITS, seed=1).status == "unknown"


def sample(rows: int, shift: float = 0.0) -> pd.DataFrame:
    generator = np.random.default_rng(rows)
    return pd.DataFrame(
        {
            "size": generator.normal(size=rows) + shift,
            "kind": generator.choice(["x", "y"], rows),
            "score": generator.random(rows),
        }
    )


PAST = DriftReference(sample(2_000), None, None)


def served(rows: pd.DataFrame) -> pd.DataFrame:
    return served_features(pd.DataFrame({"features": rows.to_dict("records"), "asked_at": pd.NaT}), SCHEMA)


@pytest.mark.parametrize(("shift", "status"), [(0.0, "pass"), (1.0, "alarm")])
def test_served_features_are_compared_with_the_reference(shift: float, status: str) -> None:
    check, report = judge_features(PAST, served(sample(500, shift)[["size", "kind"]]), SCHEMA, DriftParams(), seed=1)
    assert check.status == status
    assert report is not None
    assert len(report.features) == 2
    assert report.domain is not None
    assert report.domain.status == ("drift" if shift else "no_drift")


def test_a_client_that_sends_more_digits_than_the_reference_holds_is_no_drift() -> None:
    # Feature tables are rounded to float32, as the model reads them; a request says 0.1.
    tenths = sample(2_000).assign(size=sample(2_000)["size"].round(1).astype("float32").astype("float64"))
    asked = sample(900)[["size", "kind"]].round(1)
    check, report = judge_features(DriftReference(tenths, None, None), served(asked), SCHEMA, DriftParams(), seed=1)
    assert check.status == "pass", check.sentence
    assert report is not None
    assert report.domain is not None
    assert report.domain.status == "no_drift"


def test_a_change_of_the_whole_that_no_feature_shows_alarms() -> None:
    together = sample(900)
    together["kind"] = np.where(together["size"] > together["size"].median(), "x", "y")
    check, _ = judge_features(PAST, served(together[["size", "kind"]]), SCHEMA, DriftParams(), seed=1)
    assert check.status == "alarm"
    assert "together they changed" in check.sentence


def test_what_windows_of_the_reference_itself_show_is_no_alarm() -> None:
    level = np.repeat(np.random.default_rng(5).normal(size=40), 50)
    wandering = sample(2_000).assign(size=level + sample(2_000)["size"] / 4)
    wandering["score"] = wandering["size"]
    calibration = calibrate(wandering, {"size": "numeric"}, outputs={"score": ("numeric", wandering["score"])})
    week = sample(50).assign(size=0.7 + sample(50)["size"] / 4, asked_at=pd.NaT)
    week["score"] = week["size"]
    no_domain = DriftParams(domain=DomainParams(enabled=False), feature_count=1)
    for known, status in ((None, "alarm"), (calibration, "pass")):
        past = DriftReference(wandering, known, None)
        assert judge_features(past, served(week[["size", "kind"]]), SCHEMA, no_domain, seed=1)[0].status == status
        assert judge_scores(past, week, no_domain, seed=1).status == status


def test_a_log_without_features_is_unknown() -> None:
    check, report = judge_features(PAST, served_features(log(5, features=None), SCHEMA), SCHEMA, DriftParams(), seed=1)
    assert (check.status, report) == ("unknown", None)
    empty, _ = judge_features(PAST, served_features(log(5).iloc[:0], SCHEMA), SCHEMA, DriftParams(), seed=1)
    assert empty.status == "unknown"
    few, _ = judge_features(PAST, served_features(log(5), SCHEMA), SCHEMA, DriftParams(), seed=1)
    assert few.status == "unknown"


def test_a_feature_that_the_log_hides_is_not_compared_and_that_is_no_pass() -> None:
    sent = sample(500)[["size", "kind"]]
    records = sent.assign(size="hashed:00").to_dict("records")
    hiding = pd.DataFrame({"features": records, "asked_at": pd.NaT, "hidden": "entity,features.size"})
    hidden = hidden_features(hiding, SCHEMA)
    assert hidden == {"size"}
    check, report = judge_features(PAST, served_features(hiding, SCHEMA), SCHEMA, DriftParams(), 1, hidden)
    assert report is not None
    assert [feature.name for feature in report.features] == ["kind"]
    assert (check.status, check.sentence.endswith("serving.log hides them: size.")) == ("unknown", True)
    other = hiding.assign(features=sent.assign(kind="x").to_dict("records"))
    assert judge_features(PAST, served_features(other, SCHEMA), SCHEMA, DriftParams(), 1, hidden)[0].status == "alarm"
    whole = hidden_features(hiding.assign(hidden="features"), SCHEMA)
    check, report = judge_features(PAST, served_features(hiding, SCHEMA), SCHEMA, DriftParams(), 1, whole)
    assert (check.status, report, "serving.log hides them" in check.sentence) == ("unknown", None, True)


def test_scores_are_compared_with_those_of_training() -> None:
    answered = sample(500).assign(asked_at=NOW)
    assert judge_scores(PAST, answered, DriftParams(), seed=1).status == "pass"
    assert judge_scores(PAST, answered.assign(score=answered["score"] / 4), DriftParams(), seed=1).status == "alarm"
    assert judge_scores(PAST, sample(20).assign(asked_at=NOW), DriftParams(), seed=1).status == "unknown"
    seasonal = judge_scores(PAST, answered, DriftParams(season=("hour",)), seed=1)
    assert (seasonal.status, "needs the time of every row" in seasonal.sentence) == ("unknown", True)


def test_errors() -> None:
    assert judge_errors(log(0)).status == "unknown"
    assert judge_errors(log(4)).status == "pass"
    assert judge_errors(log(4, status=[200, 500, 500, 500])).status == "alarm"
    assert judge_errors(log(4, status=[200, 422, 422, 500])).status == "alarm", "the store's values were refused"


def test_silence() -> None:
    assert judge_silence(None, NOW, 24).status == "unknown"
    assert judge_silence(NOW - timedelta(hours=23), NOW, 24).status == "pass"
    assert judge_silence(NOW - timedelta(hours=25), NOW, 24).status == "alarm"


def head(**changes: Any) -> Entry:
    entry = {
        "action": "canary",
        "stable": STABLE,
        "canary": CANARY,
        "canary_weight": 10,
        "actor": "test",
        "reason": "test",
        "sequence": 4,
        "at": NOW,
        "environment": "live",
        "previous_stable": STABLE,
        "previous_hash": "0" * 64,
        "hash": HASH,
    }
    return Entry.model_validate({**entry, **changes})


ROUTING = RoutingTable(
    environment="live", revision=4, ledger_hash=HASH, salt="s", stable=STABLE, canary=CANARY, canary_weight=10
)
ANSWER = {"environment": "live", "revision": 4, "stable": STABLE, "canary": CANARY, "canary_weight": 10, "error": None}


@pytest.mark.parametrize(
    ("routing", "running", "answer", "expected"),
    [
        (ROUTING, True, ANSWER, ["pass", "pass"]),
        (None, True, ANSWER, ["alarm", "pass"]),
        (ROUTING.model_copy(update={"revision": 3}), True, ANSWER, ["alarm", "pass"]),
        (ROUTING.model_copy(update={"ledger_hash": "e" * 64}), True, ANSWER, ["alarm", "pass"]),
        (ROUTING, True, {**ANSWER, "canary_weight": 50}, ["pass", "alarm"]),
        (ROUTING, True, {**ANSWER, "stable": CANARY}, ["pass", "alarm"]),
        (ROUTING, True, {**ANSWER, "error": "no bundle"}, ["pass", "alarm"]),
        (ROUTING, True, None, ["pass", "alarm"]),
        (ROUTING, False, None, ["pass", "unknown"]),
    ],
)
def test_the_ledger_is_the_truth(
    routing: RoutingTable | None, running: bool, answer: dict[str, Any] | None, expected: list[str]
) -> None:
    assert [check.status for check in reconcile(head(), routing, running, answer)] == expected


def test_a_disagreement_names_what_differs() -> None:
    sentence = reconcile(head(), ROUTING, True, {**ANSWER, "canary_weight": 50})[1].sentence
    assert "canary_weight is 50, not 10" in sentence


def test_the_summary_names_alarms_and_unknowns_and_only_some_alarms_ask_for_a_model() -> None:
    def report(**statuses: str) -> MonitoringReport:
        checks = [Check.model_validate({"name": n, "status": s, "sentence": "."}) for n, s in statuses.items()]
        return MonitoringReport(
            environment="live",
            as_of=None,
            measured_at=NOW,
            stable=STABLE,
            canary=None,
            revision=1,
            checks=tuple(checks),
            drift=None,
        )

    mixed = report(performance="unknown", server="alarm", silence="pass")
    assert summary(mixed) == "live: 1 alarm (server); unknown: performance"
    assert mixed.retrain is False
    assert report(feature_drift="alarm").retrain is True
    assert summary(report(server="pass")) == "live: 0 alarms"
