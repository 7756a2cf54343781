"""Two models side by side."""

import io
from typing import Any

from rich.console import Console

from clearway.comparison import ABSENT, Row, compare, document, effective, flatten, measured, show, side_by_side
from clearway.lineage import Lineage
from clearway.model_record import ModelRecord

PARAMS: dict[str, Any] = {
    "project": {"name": "toy"},
    "as_of": "2020-01-01T00:00:00Z",
    "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
    "data": {"table": "rows", "label": "y"},
    "environments": {"production": {"port": 2}},
}


def model(digest: str = "a" * 64, **changed: Any) -> ModelRecord:
    said = {
        **{"project": "toy", "role": "challenger", "as_of": "2020-01-01T00:00:00Z", "snapshot_sha256": "1" * 64},
        **{"recipe_sha256": "e" * 64, "training_rows": 3, "labelled_rows": 4, "metrics": {"roc_auc": 0.8}},
        **{"git_commit": "2" * 40, "lock_sha256": None, "trigger": "local", "reasons": [], "packages": {}},
    }
    said.update({key: changed.pop(key) for key in list(changed) if key in Lineage.model_fields})
    known: dict[str, Any] = {
        **{"digest": digest, "lineage": Lineage.model_validate(said), "params": PARAMS, "model": {}},
        **{
            "features": {},
            "definitions_sha256": None,
            "snapshot": None,
            "verdict": "passed",
            "reason": "",
            "gates": (),
        },
    }
    return ModelRecord(**{**known, **changed})


def differing(a: ModelRecord, b: ModelRecord, section: str) -> dict[str, tuple[Any, Any]]:
    return {row.key: (row.a, row.b) for row in compare(a, b).sections[section] if row.differs}


def test_nested_params_are_flattened_to_dotted_keys() -> None:
    nested = {"train": {"arguments": {"max_iter": 60, "weights": {}}, "steps": [{"a": 1}]}, "seed": 1}
    flat = {"train.arguments.max_iter": 60, "train.arguments.weights": {}, "train.steps": [{"a": 1}], "seed": 1}
    assert flatten(nested) == flat


def test_a_key_of_one_side_alone_is_absent_on_the_other_and_that_is_not_null() -> None:
    assert side_by_side({"a": None, "b": 1}, {"b": 1, "c": 2}) == (
        Row("a", None, ABSENT),
        Row("b", 1, 1),
        Row("c", ABSENT, 2),
    )
    assert side_by_side({"a": None}, {})[0].differs


def test_a_default_that_was_written_out_is_no_difference() -> None:
    written = {**PARAMS, "seed": 20130701, "train": {"resources": {"threads": 1}}}
    assert differing(model(), model(params=written), "params") == {}


def test_a_changed_argument_is_found_under_its_key() -> None:
    changed = {**PARAMS, "train": {"arguments": {"max_iter": 50}}}
    assert differing(model(), model(params=changed), "params") == {
        "train.arguments": ({}, ABSENT),
        "train.arguments.max_iter": (ABSENT, 50),
    }


def test_params_of_another_version_are_compared_as_written_and_that_is_said() -> None:
    old = {**PARAMS, "retired": {"key": 1}}
    assert effective(old) is None
    assert differing(model(), model(params=old), "params") == {"retired.key": (ABSENT, 1)}
    assert any("as they were written" in note for note in compare(model(), model(params=old)).notes)


def test_metrics_have_a_difference_where_both_have_a_value() -> None:
    rows = measured({"roc_auc": 0.80, "f1": 0.5}, {"roc_auc": 0.85})
    assert rows[0].difference is not None
    assert round(rows[0].difference, 9) == 0.05
    assert rows[1] == Row("f1", 0.5, ABSENT)


def test_features_that_came_went_or_changed_are_named() -> None:
    number = {"kind": "numeric", "declared": None}
    ours = {"size": number, "gone": number, "same": number}
    theirs = {
        "size": {**number, "declared": {"kind": "float", "min": 0}},
        "same": number,
        "new": {"kind": "categorical"},
    }
    assert differing(model(features=ours), model(features=theirs), "features") == {
        "size.declared": (None, {"kind": "float", "min": 0}),
        "gone": ("numeric", ABSENT),
        "new": (ABSENT, "categorical"),
    }


def test_metrics_of_two_holdouts_are_not_passed_off_as_one() -> None:
    said = "two different holdouts"
    other_split = {**PARAMS, "split": {"holdout_days": 7}}
    assert not compare(model(), model()).notes
    assert any(said in note for note in compare(model(), model(snapshot_sha256="9" * 64)).notes)
    assert any(said in note for note in compare(model(), model(params=other_split)).notes)


def test_a_gate_differs_by_status_or_by_its_numbers() -> None:
    gate = {"name": "floor", "status": "pass", "estimate": 0.9, "lower": 0.8, "upper": None, "threshold": 0.7}
    found = differing(model(gates=(gate,)), model(gates=({**gate, "status": "fail", "lower": 0.6},)), "gates")
    assert found == {
        "floor": ("pass 0.9 [0.8, –], threshold 0.7", "fail 0.9 [0.6, –], threshold 0.7"),
    }


def test_only_what_differs_is_told_unless_all_is_asked_for() -> None:
    compared = compare(model(), model("b" * 64, training_rows=5))
    assert [row["key"] for row in document(compared, everything=False)["data"]] == ["training_rows"]
    assert len(document(compared, everything=True)["data"]) == 5
    for everything, expected in ((False, 0), (True, 1)):
        stream = io.StringIO()
        show(compared, Console(file=stream, width=120), everything=everything)
        assert stream.getvalue().count("labelled_rows") == expected
        assert "training_rows" in stream.getvalue()
