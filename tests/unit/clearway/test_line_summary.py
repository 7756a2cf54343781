"""What a run of the line says at its end, whatever became of the model."""

import io
from pathlib import Path

import yaml
from rich.console import Console

from clearway.files import write_json
from clearway.line import LineRun
from clearway.line_summary import print_summary
from clearway.params import load_params
from clearway.workspace import Workspace


def test_a_model_without_any_metric_is_told_beside_those_that_have_some(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    settings = {
        "project": {"name": "flat"},
        "sources": {"things": {"kind": "csv", "path": "things.csv"}},
        "data": {"table": "things", "label": "answer"},
        "environments": {"production": {"port": 0}},
    }
    workspace.params_file.write_text(yaml.safe_dump(settings))
    write_json(workspace.reports / "decision.json", {"sentence": "Retrain: a person forced it."})
    write_json(workspace.reports / "drift.json", {"verdict": "no_drift", "sentence": "0 of 5 features drifted."})
    metrics = {"challenger": {}, "champion": None, "baseline": {"roc_auc": 0.75}}
    report = {"digest": "a" * 64, "champion_digest": None, "baseline_digest": "b" * 64, "metrics": metrics}
    write_json(workspace.reports / "model_validation.json", report)
    shown = io.StringIO()
    run = LineRun("rejected", "finite_scores failed: 20 of 970 scores are not a number from 0 to 1", ())
    print_summary(run, load_params(workspace.params_file), workspace, Console(file=shown, width=120), None)
    assert "rejected: finite_scores failed" in shown.getvalue()
    assert "0.7500" in shown.getvalue()
