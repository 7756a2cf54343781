"""Classes and numbers in service: the canary, the drift of answers, performance, and estimates without labels."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pytest

from clearway.canary import CanaryVerdict, draw_steps, judge, measure
from clearway.drift_reference import DriftReference, compare_with
from clearway.metrics import metric
from clearway.monitoring import Expected, judge_performance, judge_scores, logged_outputs
from clearway.params import CanaryParams, CanaryStep, DomainParams, DriftParams, PerformanceTrigger
from clearway.performance_estimate import estimate, fit_score_map
from clearway.prediction_log import read_log
from clearway.profile import ANSWER, SCORE, read_reference, write_reference
from clearway.target import Target

ABC = Target(kind="multiclass", classes=("$a$", "b", "c"))
NUMBERS = Target(kind="regression", centre=1e6, spread=1e4)
STEP = CanaryStep(weight=25, margin=0.05, min_requests=500)
ROWS, CANARY = 6000, 1500


def traffic(seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    random = np.random.default_rng(seed)
    canary = random.permutation(np.arange(ROWS) < CANARY)
    return (
        pd.DataFrame(
            {
                "id": [str(i) for i in range(ROWS)],
                "version": np.where(canary, "new", "old"),
                "role": np.where(canary, "canary", "stable"),
                "entity": None,
                "served_at": pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(ROWS), unit="ms"),
                "status": 200,
                "latency_ms": 5.0,
            }
        ),
        canary,
    )


def of_classes(shift: float = 0.0, lost: str | None = None, seed: int = 0) -> pd.DataFrame:
    """The canary gives ``shift`` of the first class's probability to the second; the largest stays the largest."""
    log, canary = traffic(seed)
    random = np.random.default_rng(seed + 1)
    rows = random.dirichlet([8, 2, 2], ROWS)
    rows[canary, :2] += np.outer(np.minimum(rows[canary, 0], shift), [-1, 1])
    said = [dict(zip(ABC.classes, row, strict=True)) for row in rows.tolist()]
    if lost is not None:
        said = [{k: v for k, v in one.items() if k != lost or not new} for one, new in zip(said, canary, strict=True)]
    return log.assign(score=[max(one.values()) for one in said], probabilities=said)


def statuses(verdict: CanaryVerdict) -> dict[str, str]:
    return {one.name: one.status for one in verdict.metrics}


def test_a_canary_of_the_same_classes_is_promoted() -> None:
    verdict = judge(of_classes(), STEP, CanaryParams(), ABC)
    assert verdict.verdict == "promote", verdict.sentence
    assert list(statuses(verdict)) == ["errors", "slow", "score of '$a$'", "score of 'b'", "score of 'c'"]


def test_a_canary_that_answers_other_classes_as_surely_is_rolled_back() -> None:
    mirrored = of_classes()
    swap = {"$a$": "b", "b": "$a$", "c": "c"}
    swapped = [
        {swap[k]: v for k, v in said.items()} if role == "canary" else said
        for said, role in zip(mirrored["probabilities"], mirrored["role"], strict=True)
    ]
    verdict = judge(mirrored.assign(probabilities=swapped), STEP, CanaryParams(), ABC)
    assert verdict.verdict == "rollback"
    assert {name for name, status in statuses(verdict).items() if status == "fail"} == {
        "score of '$a$'",
        "score of 'b'",
    }
    assert "score of 'b': canary 0.6" in verdict.sentence


def test_a_class_that_only_one_version_has_counts_as_never_likely_in_the_other() -> None:
    verdict = judge(of_classes(lost="$a$"), STEP, CanaryParams(), ABC)
    found = next(one for one in verdict.metrics if one.name == "score of '$a$'")
    assert (found.canary, found.status) == (0.0, "fail")


def test_an_answer_without_probabilities_is_an_error() -> None:
    log = of_classes()
    canary = log["role"] == "canary"
    verdict = judge(log.assign(probabilities=log["probabilities"].where(~canary, None)), STEP, CanaryParams(), ABC)
    assert verdict.verdict == "rollback"
    assert statuses(verdict)["errors"] == "fail"


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "promote"), (1.0, "rollback"), (-1.0, "rollback")])
def test_predicted_numbers_are_compared_in_spreads_of_the_labels(shift: float, verdict: str) -> None:
    log, canary = traffic()
    scores = 1e6 + 1e4 * (np.random.default_rng(2).standard_t(2, ROWS) * 0.7 + shift * canary)
    assert np.abs(scores - 1e6).max() > 1e5, "heavy tails"
    found = judge(log.assign(score=scores), STEP, CanaryParams(score_margin=0.5), NUMBERS)
    assert found.verdict == verdict
    score = found.metrics[-1]
    assert score.estimate == pytest.approx(shift, abs=0.15)
    assert score.stable == pytest.approx(float(scores[~canary].mean()))


def test_steps_of_many_classes_are_drawn_with_those_furthest_apart() -> None:
    many = Target(kind="multiclass", classes=tuple(f"k{i}" for i in range(12)))
    log, canary = traffic()
    rows = np.random.default_rng(3).dirichlet(np.ones(12), ROWS)
    rows[canary] = np.roll(rows[canary], 1, axis=1)
    log = log.assign(
        score=rows.max(axis=1), probabilities=[dict(zip(many.classes, r, strict=True)) for r in rows.tolist()]
    )
    traces = measure(log, STEP, CanaryParams(), many)
    assert len(traces) == 14
    figure = draw_steps([(STEP, measure(of_classes(), STEP, CanaryParams(), ABC)), (STEP, traces)])
    figure.canvas.draw()
    assert len([axes for axes in figure.axes if axes.get_title()]) == 5 + 6


def test_the_log_keeps_probabilities_and_refuses_what_are_none(tmp_path: Path) -> None:
    good = {"id": "1", "revision": 1, "version": "v", "role": "stable", "served_at": "2026-01-01T00:00:00Z"}
    good |= {"status": 200, "score": 0.7, "probabilities": {"a b": 0.7, "c": 0.3}}
    lines = [
        orjson.dumps({**good, **change}) for change in ({}, {"probabilities": None}, {"probabilities": {"a": "x"}})
    ]
    (tmp_path / "20260101-1.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    log = read_log(tmp_path)
    assert log["probabilities"].tolist() == [{"a b": 0.7, "c": 0.3}, None]
    assert log.attrs["damaged_lines"] == 1
    assert "probabilities" in log.attrs["damaged"]


def labelled(right: float, seed: int = 4) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, 600)
    answered = np.where(random.random(600) < right, truth, (truth + 1) % 3)
    rows = 0.1 + 0.7 * np.eye(3)[answered]
    names = np.array(ABC.classes, dtype=object)
    said = [dict(zip(ABC.classes, row, strict=True)) for row in rows.tolist()]
    return pd.DataFrame({"label": pd.Series(names[truth], dtype="string"), "score": 0.8, "probabilities": said})


def test_performance_of_classes_and_of_numbers_in_service() -> None:
    limits = PerformanceTrigger(metric="accuracy", max_drop=0.05, min_rows=100)
    for right, status in ((0.9, "pass"), (0.7, "alarm")):
        expected = Expected(metric("accuracy", kind="multiclass"), 0.9, 0.5, ABC)
        assert judge_performance(labelled(right), expected, limits, seed=1).status == status
    new = labelled(0.9)
    new.loc[:120, "label"] = "never seen"
    assert (
        judge_performance(new, Expected(metric("accuracy", kind="multiclass"), 0.9, 0.5, ABC), limits, 1).status
        == "alarm"
    )
    gone = labelled(0.9).assign(probabilities=None)
    assert np.isnan(logged_outputs(gone, ABC)).all()
    unknown = judge_performance(gone, Expected(metric("accuracy", kind="multiclass"), 0.9, 0.5, ABC), limits, seed=1)
    assert unknown.status == "unknown"

    random = np.random.default_rng(5)
    labels = 1e6 + 1e4 * random.normal(size=600)
    limits = PerformanceTrigger(metric="rmse", max_drop=500, min_rows=100)
    for error, status in ((2000, "pass"), (4000, "alarm")):
        rows = pd.DataFrame({"label": labels, "score": labels + error * random.normal(size=600)})
        expected = Expected(metric("rmse", kind="regression"), 2000.0, 0.5, NUMBERS)
        assert judge_performance(rows, expected, limits, seed=1).status == status


def test_drift_of_the_classes_answered_is_seen_where_the_score_stays(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    features, scores = pd.DataFrame({"x": random.normal(size=2000)}), np.full(2000, 0.8)
    answers = random.choice(ABC.classes, 2000, p=[0.6, 0.2, 0.2])
    write_reference(features, scores, tmp_path / "r.parquet", labels=answers.astype(object), answers=answers)
    rows = read_reference(tmp_path / "r.parquet")
    past = DriftReference(rows, None, None, "multiclass")
    served = pd.DataFrame({"score": np.full(800, 0.8), "asked_at": pd.Timestamp(datetime(2026, 1, 1, tzinfo=UTC))})
    for shares, status in (([0.6, 0.2, 0.2], "pass"), ([0.2, 0.2, 0.6], "alarm")):
        named = random.choice(ABC.classes, 800, p=shares)
        said = [{k: 0.8 if k == name else 0.1 for k in ABC.classes} for name in named]
        check = judge_scores(past, served.assign(probabilities=said), DriftParams(), seed=1)
        assert check.status == status
    assert "classes answered by the stable model" in check.sentence


def test_labels_drift_as_what_they_are() -> None:
    random = np.random.default_rng(7)
    quiet = DriftParams(domain=DomainParams(enabled=False))
    numbers = pd.DataFrame({SCORE: random.normal(size=900), "label": random.normal(size=900)})
    report = compare_with(DriftReference(numbers, None, None, "regression"), numbers + 0.5, [], [], quiet, 1)
    assert [(one.name, one.kind, one.status) for one in report.outputs] == [
        (SCORE, "numeric", "drift"),
        ("label", "numeric", "drift"),
    ]
    names = pd.DataFrame({SCORE: 0.5, ANSWER: random.choice(["a", "b"], 900), "label": random.choice(["a", "b"], 900)})
    report = compare_with(DriftReference(names, None, None, "multiclass"), names.assign(label="b"), [], [], quiet, 1)
    assert [(one.name, one.kind, one.status) for one in report.outputs] == [
        (SCORE, "numeric", "no_drift"),
        (ANSWER, "categorical", "no_drift"),
        ("label", "categorical", "drift"),
    ]


def test_the_accuracy_of_classes_is_estimated_without_labels() -> None:
    random = np.random.default_rng(8)
    scores = random.uniform(0.4, 1.0, 4000)
    right = (random.random(4000) < scores).astype(np.float64)
    found = estimate(scores[:1000], fit_score_map(scores, right), 0.5, target=ABC)
    assert list(found.metrics) == ["accuracy"]
    assert found.metrics["accuracy"] == pytest.approx(right[:1000].mean(), abs=0.04)
