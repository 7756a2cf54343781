"""A model card says what is known, what people wrote, and what nobody knows; no text in it becomes markup."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from clearway.lineage import Lineage
from clearway.model_card import CardContent, render
from clearway.params import load_params
from clearway.snapshot import Snapshot

EVIL = "<img src=x onerror=alert(1)> | cell\n# heading"
GATES = [
    {"name": "champion", "status": "unknown", "detail": "too uncertain", "estimate": 0.001, "lower": -0.02,
     "upper": 0.022, "threshold": -0.01, "n": 400},
    {"name": "noise_robustness", "status": "pass", "detail": "stands", "estimate": 0.99, "lower": 0.98, "upper": 1.0,
     "threshold": 0.95, "n": 400},
    {"name": f"slice_colour={EVIL}", "status": "pass", "detail": EVIL, "estimate": 0.1, "lower": None, "upper": None,
     "threshold": -0.05, "n": 40},
    {"name": "memory", "status": "pass", "detail": "adds 12 MB", "estimate": 12.0, "lower": None, "upper": None,
     "threshold": 512, "n": None},
]  # fmt: skip
BOUNDS = {"estimate": 0.8, "lower": 0.75, "upper": 0.85}
VALIDATION = {
    "verdict": "passed",
    "reason": "all gates passed",
    "rows": 400,
    "metrics": {"challenger": {"roc_auc": 0.8}, "champion": {"roc_auc": 0.79}, "baseline": {"roc_auc": 0.7}},
    "calibration": {"error": BOUNDS, "brier": BOUNDS, "slope": {**BOUNDS, "lower": None}, "intercept": BOUNDS},
    "gates": GATES,
    "measured": {
        "metric": "roc_auc",
        "confidence": 0.95,
        "training": {"challenger": {"roc_auc": 0.95}, "baseline": {"roc_auc": 0.71}},
        "intervals": {"roc_auc": BOUNDS},
        "left_out": 2,
        "importances": [{"feature": f"f{i}", "mean": 0.1 / (i + 1), "spread": 0.0} for i in range(12)],
        "parts": [
            {"name": "colour=red", "column": "colour", "value": EVIL, "rows": 90, "interval": BOUNDS,
             "metrics": {"challenger": {"roc_auc": 0.77, "recall": 0.5}, "baseline": {"roc_auc": 0.6}}}
        ],
    },
}  # fmt: skip
ROLE = {"training_metrics": {"roc_auc": 0.95}, "seconds": 1.5, "warnings": [f"did not converge {EVIL}"]}
TRAINING = {"peak_memory_mb": 90.0, "positive_share": 0.4, "challenger": ROLE, "baseline": ROLE}


@pytest.fixture
def content(tmp_path: Path) -> CardContent:
    params = {
        "project": {"name": "toy"},
        "sources": {"things": {"kind": "csv", "path": "things.csv"}},
        "data": {"table": "things", "label": "answer"},
        "train": {"arguments": {"max_iter": 30}},
        "gates": {"fairness": {"attributes": ["colour"]}},
        "model_card": {
            "intended_use": f"To choose. {EVIL}",
            "limitations": ["Few rows.", "One year."],
            "owners": ["team@example.invalid"],
            "licence": "Apache-2.0",
        },
        "environments": {"production": {"port": 0}},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    lineage = Lineage(
        project="toy",
        role="challenger",
        as_of="2013-07-01T00:00:00Z",  # type: ignore[arg-type]
        snapshot_sha256="d" * 64,
        recipe_sha256="e" * 64,
        training_rows=1000,
        labelled_rows=1400,
        metrics={"roc_auc": 0.8},
        git_commit="c" * 40 + "-dirty",
        code_commit=None,
        lock_sha256="f" * 64,
        trigger="schedule",
        reasons=("drift",),
        packages={"numpy": "2.4.6"},
    )
    table = {"rows": 1400, "bytes": 100, "sha256": "a" * 64, "source": "sql://me:pw@host/db"}
    return CardContent(
        params=load_params(tmp_path / "params.yaml"),
        digest="b" * 64,
        lineage=lineage,
        snapshot=Snapshot.model_validate({"as_of": None, "tables": {"things": table}}),
        fitted={"estimator": "sklearn.ensemble.Forest", "arguments": {"max_iter": 3}, "tune": {"trials": 7}},
        validation=VALIDATION,
        training=TRAINING,
        payload_bytes=3 * 2**20,
        runtime="scikit-learn",
        numeric=4,
        categorical=1,
    )


def sections(card: str) -> dict[str, str]:
    return {part.partition("\n")[0]: part for part in card.split("\n## ")[1:]}


def test_a_card_has_every_section_of_the_practice(content: CardContent) -> None:
    card = render(content)
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["metrics"]) == ("Apache-2.0", ["roc_auc"])
    said = sections(card)
    assert list(said) == [
        "Details", "Intended use", "Data", "Training", "Metrics", "roc_auc by part of the holdout",
        "Importance of features", "Calibration", "Fairness", "Robustness and behaviour", "Gates", "Footprint",
        "How to reproduce", "What is not known",
    ]  # fmt: skip
    assert "team@example.invalid" in said["Details"]
    assert "To choose." in said["Intended use"]
    assert "### Ethical considerations\n\n*Not said" in said["Intended use"]
    assert "| things | 1,400 | sql://***@host/db | `" + "a" * 64 in said["Data"]
    assert "`sklearn.ensemble.Forest`, arguments: {max_iter: 3} (found by a search of 7 trials)" in said["Details"]
    assert "- served by: scikit-learn: it has no ONNX, so answers are slower" in said["Details"]
    assert "| train.arguments.max_iter | 30 |" in said["Training"]
    assert "| roc_auc | 0.8000 | [0.75, 0.85] | 0.95 | 0.79 |" in said["Metrics"]
    assert "resolves a margin of 0.021 in roc_auc at best; about 1,764 rows resolve 0.01" in said["Metrics"]
    assert "2 others matter less" in said["Importance of features"]
    assert "0.5 |" in said["Fairness"]
    assert "noise_robustness" in said["Robustness and behaviour"]
    assert "3 MB" in said["Footprint"]
    assert "adds 12 MB" in said["Footprint"]
    assert f"python scripts/reproduce.py {'b' * 64}" in said["How to reproduce"]


def test_what_is_not_known_is_said(content: CardContent) -> None:
    said = sections(render(content))["What is not known"]
    assert "after 2013-07-01" in said
    assert "`champion`: too uncertain." in said
    assert "the project it was made: files differed" in said
    assert "the line it was made: it was not under git" in said
    bare = replace(content, validation={**VALIDATION, "calibration": None, "measured": None, "gates": []})
    text = render(bare)
    assert "There was no champion to compare with" in text
    assert "## Calibration\n\nNot measured." in text


def test_no_text_of_the_data_becomes_markup(content: CardContent) -> None:
    card = render(content)
    assert "<img" not in card
    assert "\n# heading" not in card
    tables = [line for line in card.splitlines() if line.startswith("| colour |")]
    assert tables
    assert {len(re.split(r"(?<!\\)\|", line)) for line in tables} == {7}, "five cells each"


def test_a_baseline_is_a_control_held_to_no_gate(content: CardContent) -> None:
    lineage = content.lineage.model_copy(update={"role": "baseline", "metrics": {"roc_auc": 0.7}})
    card = render(replace(content, lineage=lineage))
    assert "As a control" in card
    assert "held to no gate" in card
    assert "LogisticRegression" in card
    assert "noise_robustness" not in card
    assert "[0.75, 0.85]" not in card, "the intervals are the challenger's"


def test_the_same_content_gives_the_same_card(content: CardContent) -> None:
    again = replace(content, validation=json.loads(json.dumps(VALIDATION)))
    assert render(content) == render(again)
