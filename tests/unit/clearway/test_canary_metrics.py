"""Metrics from elsewhere: labels of each kind of target, and functions of the project."""

import sys
import types

import numpy as np
import pandas as pd
import pytest

from clearway.canary_metrics import business_metric, label_metric
from clearway.errors import UsageError
from clearway.params import BusinessMetric, CanaryLabels
from clearway.target import BINARY, Target


def labelled(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns).assign(id=lambda rows: [f"q{i}" for i in range(len(rows))], version="v")


def test_binary_answers_are_wrong_or_lose_the_square_of_what_they_missed() -> None:
    rows = labelled(score=[0.9, 0.2, 0.6, np.nan], label=[1.0, 1.0, np.nan, 0.0])
    wrong = label_metric(rows, CanaryLabels(), BINARY, threshold=0.3)
    assert (wrong.name, wrong.kind, wrong.late) == ("accuracy", "rate", True)
    assert wrong.values.to_dict() == {("q0", "v"): 0.0, ("q1", "v"): 1.0, ("q3", "v"): 1.0}
    loss = label_metric(rows, CanaryLabels(metric="loss"), BINARY)
    assert loss.values.to_list() == pytest.approx([0.01, 0.64, 1.0])


def test_several_classes() -> None:
    rows = labelled(score=[0.7, 0.6], label=["a", "b"], probabilities=[{"a": 0.7, "b": 0.3}, {"a": 0.6, "b": 0.4}])
    target = Target(kind="multiclass", classes=("a", "b"))
    assert label_metric(rows, CanaryLabels(), target).values.to_list() == [0.0, 1.0]
    assert label_metric(rows, CanaryLabels(metric="loss"), target).values.to_list() == pytest.approx([0.09, 0.36])
    missing = label_metric(rows.assign(probabilities=None), CanaryLabels(metric="loss"), target)
    assert missing.values.to_list() == [1.0, 1.0]


def test_numbers_lose_squared_spreads_up_to_a_limit() -> None:
    rows = labelled(score=[12.0, 1e9, np.nan], label=[10.0, 10.0, 10.0])
    found = label_metric(rows, CanaryLabels(metric="loss"), Target(kind="regression", centre=10.0, spread=2.0))
    assert (found.values * found.scale).to_list() == pytest.approx([1.0, 16.0, 16.0])


def test_a_label_that_was_corrected_counts_once() -> None:
    rows = pd.DataFrame({"id": ["q", "q"], "version": "v", "score": [0.9, 0.9], "label": [1.0, 0.0]})
    assert label_metric(rows, CanaryLabels(), BINARY).values.to_list() == [1.0]


def test_a_question_that_both_versions_answered_is_judged_for_each() -> None:
    rows = pd.DataFrame({"id": ["q", "q"], "version": ["v", "w"], "score": [0.9, 0.1], "label": [1.0, 1.0]})
    assert label_metric(rows, CanaryLabels(), BINARY).values.to_dict() == {("q", "v"): 0.0, ("q", "w"): 1.0}


RULES = {"name": "sold", "function": "a_project:sold", "low": 0.0, "high": 50.0, "margin": 1.0}


def say(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    module = types.ModuleType("a_project")
    module.sold = lambda observations: answer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_project", module)


def test_a_function_of_the_project_is_turned_into_what_is_lost_of_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, pd.Series([0, 25, 1000], index=["q0", "q1", "q2"]))
    found = business_metric(pd.DataFrame(), BusinessMetric.model_validate(RULES))
    assert (found.name, found.scale, found.margin, found.late) == ("sold", 50.0, 1.0, False)
    assert found.values.to_dict() == {"q0": 1.0, "q1": 0.5, "q2": 0.0}
    lower = business_metric(pd.DataFrame(), BusinessMetric.model_validate(RULES | {"better": "lower"}))
    assert lower.values.to_dict() == {"q0": 0.0, "q1": 0.5, "q2": 1.0}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([1.0], "must return a Series of numbers"),
        (pd.Series(["x"], index=["q0"]), "must return a Series of numbers"),
        (pd.Series([1.0, 2.0], index=["q0", "q0"]), "more than one number for a request"),
    ],
)
def test_a_function_that_answers_otherwise_is_refused(
    answer: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, answer)
    with pytest.raises(UsageError, match=said):
        business_metric(pd.DataFrame(), BusinessMetric.model_validate(RULES))


@pytest.mark.parametrize("function", ["no_such_module:sold", "clearway.canary:no_such_function"])
def test_a_function_that_is_not_there_is_named(function: str) -> None:
    with pytest.raises(UsageError, match=rf"canary\.business\.sold\.function: {function} cannot be imported"):
        business_metric(pd.DataFrame(), BusinessMetric.model_validate(RULES | {"function": function}))
