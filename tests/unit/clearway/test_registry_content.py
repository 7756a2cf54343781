"""What MLflow is told: names that it takes and that stay apart, values that fit, everything that was measured."""

import json
import posixpath
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearway.lineage import Lineage
from clearway.registry_content import LONGEST_DESCRIPTION, chunks, content_of, legal, name
from clearway.snapshot import Snapshot

LINEAGE = Lineage(
    project="toy",
    role="challenger",
    as_of=datetime(2013, 7, 1, tzinfo=UTC),
    snapshot_sha256="d" * 64,
    recipe_sha256="e" * 64,
    training_rows=100,
    labelled_rows=150,
    metrics={"roc_auc": 0.8},
    git_commit="c" * 40,
    lock_sha256=None,
    trigger="schedule",
    reasons=("drift",),
    packages={"numpy": "2.4.6"},
)
PART = {"column": "carrier", "rows": 40, "interval": {"estimate": 0.7, "lower": 0.6, "upper": 0.8}}
VALIDATION = {
    "verdict": "passed",
    "reason": "all gates passed",
    "rows": 50,
    "champion_digest": "f" * 64,
    "metrics": {"challenger": {"roc_auc": 0.8}, "champion": {"roc_auc": 0.7}, "baseline": None},
    "calibration": {"error": {"estimate": 0.02, "lower": 0.0, "upper": 0.04}, "slope": {"estimate": None}, "bins": 10},
    "gates": [
        {"name": "champion", "status": "unknown", "estimate": 0.1, "lower": None, "upper": None, "threshold": -0.01}
    ],
    "measured": {
        "metric": "roc_auc",
        "intervals": {"roc_auc": {"estimate": 0.8, "lower": 0.75, "upper": 0.85}},
        "importances": [{"feature": "size", "mean": 0.1, "spread": 0.0}],
        "parts": [
            {**PART, "value": "UA", "metrics": {"challenger": {"roc_auc": 0.7}, "champion": {"roc_auc": 0.6}}},
            {**PART, "value": "UA/é %", "metrics": {"challenger": {"roc_auc": 0.71}}, "interval": None},
        ],
    },
}
TRAINING = {"peak_memory_mb": 90.0, "challenger": {"training_metrics": {"roc_auc": 0.9}, "seconds": 1.5}}
MODEL = {
    "project": "toy",
    "seed": 1,
    "threshold": 0.5,
    "train": {"estimator": "a.B", "arguments": {"depth": 3}, "threads": 1},
}


def content(**changes):
    given_ = {
        "model": MODEL,
        "params": {
            "gates": {"floors": {"roc_auc": 0.65}},
            "sources": {"t": {"url": "sql://me:pw@host"}},
            "wide": ["x" * 900],
        },
        "training": TRAINING,
        "validation": VALIDATION,
        "snapshot": Snapshot(as_of=None, tables={}),
        "card": "---\nlicense: x\n---\n\n# toy\n\ntext\n",
    }
    return content_of(LINEAGE, "a" * 64, **{**given_, **changes})


def test_every_split_slice_and_role_has_its_metrics() -> None:
    metrics = content().metrics
    expected = {
        "holdout_roc_auc": 0.8,
        "holdout_roc_auc_lower": 0.75,
        "holdout_champion_roc_auc": 0.7,
        "training_roc_auc": 0.9,
        "training_seconds": 1.5,
        "holdout_rows": 50.0,
        "slice/carrier/UA/roc_auc": 0.7,
        "slice/carrier/UA/champion_roc_auc": 0.6,
        "slice/carrier/UA/roc_auc_lower": 0.6,
        "slice/carrier/UA/rows": 40.0,
        "importance/size": 0.1,
        "calibration_error": 0.02,
        "gate/champion/estimate": 0.1,
        "gate/champion/threshold": -0.01,
    }
    assert expected.items() <= metrics.items()
    odd = [key for key in metrics if key.startswith("slice/carrier/UA_") and key.endswith("/roc_auc")]
    assert len(odd) == 1
    assert [metrics[key] for key in odd] == [0.71]
    assert "calibration_slope" not in metrics


def test_params_are_all_there_fit_and_keep_no_secret() -> None:
    params = content().params
    assert params["arguments.depth"] == "3"
    assert params["estimator"] == "a.B"
    assert params["gates.floors.roc_auc"] == "0.65"
    assert params["sources.t.url"] == "sql://***@host"
    assert len(params["wide"]) == 500


def test_tags_and_texts_say_where_it_came_from() -> None:
    found = content()
    assert found.tags["package.numpy"] == "2.4.6"
    assert found.tags["gates_unknown"] == "champion"
    assert found.run_tags["mlflow.source.git.commit"] == "c" * 40
    assert found.description == "# toy\n\ntext\n"
    assert found.dataset["digest"] == "d" * 36
    assert json.loads(found.dataset["source"])["snapshot_sha256"] == "d" * 64


def test_a_long_card_is_cut_after_a_section_and_says_where_the_rest_is() -> None:
    card = "# toy\n" + "".join(f"\n## part {i}\n\n{'word ' * 100}\n" for i in range(30))
    text = content(card=card).description
    assert len(text) <= LONGEST_DESCRIPTION
    assert text.endswith("among the artifacts.*\n")
    assert text.count("## part") == 9


def test_a_bundle_of_before_has_less_and_still_registers() -> None:
    found = content(validation={}, snapshot=None, params={})
    assert found.metrics["holdout_roc_auc"] == 0.8
    assert found.tags["digest"] == "a" * 64


def test_names_that_differ_by_case_alone_stay_apart() -> None:
    made = legal({"slice/c/UA": 1, "slice/c/ua": 2, "slice/c/xx": 3})
    assert len({key.casefold() for key in made}) == 3
    assert made["slice/c/xx"] == 3


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=300), unique=True, max_size=8))
def test_any_slice_gets_a_name_of_its_own_that_mlflow_takes(values: list[str]) -> None:
    wanted = {name("slice", "column", value, "roc_auc"): place for place, value in enumerate(values)}
    made = legal(wanted)
    assert sorted(made.values()) == sorted(wanted.values())
    assert len(wanted) == len(values)
    for key in made:
        assert re.fullmatch(r"[/\w.\- ]{1,250}", key, re.ASCII), key  # as MLflow's own validation has it
        assert posixpath.normpath(key) == key
        assert key.startswith("slice/column/")


@pytest.mark.parametrize(("count", "sizes"), [(0, [0]), (1, [1]), (100, [100]), (250, [100, 100, 50])])
def test_chunks_hold_everything_once(count: int, sizes: list[int]) -> None:
    made = list(chunks(range(count), 100))
    assert [len(one) for one in made] == sizes
    assert [item for one in made for item in one] == list(range(count))
