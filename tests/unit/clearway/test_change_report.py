"""The report on a pull request: what stands in it, and that nothing in it is more than text."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from clearway.champion import Champion
from clearway.change_report import Change, read_change, render, table, warning
from clearway.comparison import Row
from clearway.params import load_params
from clearway.workspace import Workspace

DIGEST = "ab" * 32
LINEAGE: dict[str, Any] = {"as_of": datetime(2013, 7, 1, tzinfo=UTC), "role": "challenger"}


def gate(name: str, status: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "status": status, "detail": f"what {name} saw", **more}


VALIDATION: dict[str, Any] = {
    "verdict": "rejected",
    "reason": "1 of 3 gates failed: champion_roc_auc",
    "rows": 26768,
    "metrics": {
        "challenger": {"roc_auc": 0.75, "log_loss": 0.52, "brier": 0.2},
        "champion": {"roc_auc": 0.7838, "log_loss": 0.53, "brier": 0.2},
        "baseline": {"roc_auc": 0.7473, "log_loss": 0.5296},
    },
    "measured": {"intervals": {"roc_auc": {"estimate": 0.75, "lower": 0.73, "upper": 0.77}}},
    "gates": [
        gate("rows", "pass", estimate=26768, threshold=50),
        gate("noise", "unknown"),
        gate("champion_roc_auc", "fail", estimate=-0.0338, lower=-0.05, upper=-0.02, threshold=-0.01),
    ],
}
CHANGE = Change(
    champion=Champion.model_construct(
        environment="production",
        bootstrap=False,
        reason="stable",
        digest=DIGEST,
        lineage=type("L", (), LINEAGE)(),
    ),
    validation=VALIDATION,
    delivered={"gates": [gate("champion_roc_auc", "pass")]},
    params=[Row("train.arguments.max_iter", 100, 10)],
    tables={
        "roc": [
            {"false_positive_rate": str(x), "true_positive_rate": str(y)}
            for x, y in ((0, 0), (0, 0.2), (0.5, 0.8), (1, 1))
        ],
        "calibration": [{"mean_score": "0.1", "share_positive": "0.2"}, {"mean_score": "0.6", "share_positive": "0.5"}],
        "importances": [{"feature": "temp", "importance": "0.03"}, {"feature": "wind", "importance": "-0.001"}],
    },
)


def said(change: Change = CHANGE, artifact: str = "https://github.test/artifacts/5") -> str:
    return render(change, commit="c0ffee" * 7, run_url="https://github.test/runs/4", artifact_url=artifact)


def cells(text: str, first: str) -> list[str]:
    """The cells of the row that begins with ``first``."""
    (line,) = [line for line in text.splitlines() if re.match(rf"\| {re.escape(first)} +\|", line)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_verdict_comes_first_with_its_reason_and_whom_it_was_compared_with() -> None:
    lines = said().splitlines()
    assert lines[0] == "## Model of this pull request: rejected ❌"
    assert lines[2] == "1 of 3 gates failed: champion_roc_auc."
    assert lines[4] == "Compared with main's champion `abababababab`, stable in production, trained as of 2013-07-01."
    assert lines[-1].startswith("commit c0ffeec0ffee · [this run](https://github.test/runs/4) · [all reports](")


def test_each_metric_says_by_how_much_it_differs_and_whether_that_is_better() -> None:
    assert cells(said(), "roc_auc") == [
        "roc_auc", "0.7500", "0.7300 to 0.7700", "0.7838", "-0.0338", "worse", "0.7473",
    ]  # fmt: skip
    assert cells(said(), "log_loss ↓")[4:6] == ["-0.0100", "better"]
    assert cells(said(), "brier ↓")[4:] == ["+0.0000", "same", "–"]


def test_gates_that_did_not_pass_stand_first_and_those_that_did_are_folded() -> None:
    text = said()
    assert "### Gates: 1 of 3 passed" in text
    places = [text.index(f"| {name} ") for name in ("champion_roc_auc", "noise", "rows")]
    assert places == sorted(places)
    assert text.index("noise") < text.index("<details><summary>1 that passed") < text.index("| rows ")
    assert cells(text, "champion_roc_auc") == [
        "champion_roc_auc", "❌ fail", "-0.0338", "-0.0500 to -0.0200", "-0.01", "what champion_roc_auc saw", "pass",
    ]  # fmt: skip


def test_params_that_differ_from_the_champions_are_listed() -> None:
    assert cells(said(), "train.arguments.max_iter")[1:] == ["100", "10"]
    assert "### Params\n\nThe same as the champion's." in said(replace(CHANGE, params=()))


@pytest.mark.parametrize("digest", [None, DIGEST])
def test_without_a_champion_it_says_so_and_compares_with_nothing(digest: str | None) -> None:
    reason = "nothing was ever deployed to production"
    nobody = Champion.model_construct(
        environment="production", bootstrap=True, reason=reason, digest=digest, lineage=None
    )
    metrics = {**VALIDATION["metrics"], "champion": None}
    text = said(replace(CHANGE, champion=nobody, validation={**VALIDATION, "metrics": metrics}, delivered=None))
    assert f"**Compared with nothing**: main has no champion: {reason}." in text
    assert cells(text, "roc_auc")[3:6] == ["–", "–", ""]
    assert "when delivered" not in text


def test_a_line_that_stopped_is_no_pass() -> None:
    text = said(Change())
    assert text.startswith("## Model of this pull request: not judged ❌\n")
    assert "The line stopped before the gates" in text
    assert "Compared with nothing" in text
    assert "✅" not in text
    assert "###" not in text


def test_plots_are_charts_that_github_draws_and_no_image() -> None:
    text = said()
    charts = re.findall(r"```mermaid\n(.*?)\n```", text, re.DOTALL)
    assert [re.findall(r'title "(.*)"', chart) for chart in charts] == [
        ["ROC on the holdout"],
        ["Calibration on the holdout"],
        ["Permutation importance"],
    ]
    roc, calibration, importance = charts
    read = [float(value) for value in re.findall(r"bar \[(.*)\]", roc)[0].split(", ")]
    assert (len(read), read[0], read[10], read[-1]) == (21, 0.2, 0.8, 1.0), "a step is read off at its top"
    assert 'x-axis "mean score" ["1: 0.10", "2: 0.60"]' in calibration
    assert "bar [0.2000, 0.5000]\n    line [0.1000, 0.6000]" in calibration
    assert 'x-axis ["1: temp", "2: wind"]' in importance
    assert "-0.001000 --> 0.030000" in importance
    assert not re.search(r"!\[|<img|<svg|data:", text)


def test_text_of_others_stays_text() -> None:
    evil = 'x" ]\n```\n<script>| [a](javascript:x)'
    text = said(
        replace(
            CHANGE,
            validation={**VALIDATION, "reason": evil, "gates": [gate(evil, "fail")]},
            params=[Row(evil, evil, [evil])],
            tables={"importances": [{"feature": evil, "importance": "1"}]},
        )
    )
    assert "<script>" not in text
    assert "[a](" not in text.replace(r"\[a\]", "")
    assert text.count("\n```") == 2, "one chart, opened and closed"
    rows = [line for line in text.splitlines() if "script" in line and line.startswith("|")]
    assert rows
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 2, "the columns of two tables"


def test_columns_of_a_table_stand_below_each_other() -> None:
    text = said()
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = block.splitlines()
        assert len({len(line) for line in lines}) == 1, block
        bars = [[m.start() for m in re.finditer(r"(?<!\\)\|", line)] for line in lines]
        assert all(one == bars[0] for one in bars), block
    assert table(("a", "b"), [("x", "1")], flush_right=[1]).splitlines()[1] == "| -- | -: |"


def test_only_a_rejected_model_is_warned_of() -> None:
    assert warning(CHANGE) == "The gates reject the model of this change: 1 of 3 gates failed: champion_roc_auc"
    assert warning(replace(CHANGE, validation={**VALIDATION, "verdict": "passed"})) is None
    assert warning(Change()) is None


def test_what_the_line_did_not_reach_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(
        "project: {name: a}\nsources: {t: {kind: csv, path: t.csv}}\ndata: {table: t, label: y}\n"
        "environments: {live: {port: 0}}\n"
    )
    params, workspace = load_params(tmp_path / "params.yaml"), Workspace(tmp_path)
    assert read_change(params, workspace) == Change()
    workspace.champion.mkdir(parents=True)
    record = {"environment": "live", "bootstrap": True, "reason": "nothing yet"}
    (workspace.champion / "champion.json").write_text(json.dumps(record))
    (workspace.reports / "plots").mkdir(parents=True)
    (workspace.reports / "plots" / "importances.csv").write_text("feature,importance\na,0.5\n")
    found = read_change(params, workspace)
    assert found.champion is not None
    assert found.champion.bootstrap
    assert found.validation is None
    assert found.tables == {"importances": [{"feature": "a", "importance": "0.5"}]}
