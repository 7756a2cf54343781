"""The verdict for people: a page that stands alone, a table for any terminal, a summary for a job."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from clearway.files import read_json
from clearway.gates import Gate, ModelVerdict
from clearway.measurements import Measurements, Part
from clearway.metrics import measure
from clearway.model_report import gate_table, number, show, summary, write_reports
from clearway.model_validation import Contender, Validation
from clearway.paired import Interval
from clearway.params import Params, load_params
from clearway.plots import Importance
from clearway.workspace import Workspace

RANDOM = np.random.default_rng(7)
LABELS = (RANDOM.random(400) < 0.4).astype(float)
SCORES = np.clip(0.4 + 0.3 * LABELS + 0.2 * RANDOM.normal(size=400), 0, 1)
EVIL = "<script>alert(1)</script>"
GATES = (
    Gate("rows", "pass", "400 rows", 400, threshold=50, n=400),
    Gate("champion", "unknown", f"too uncertain {EVIL} [b]x[/b]", 0.0123, -0.02, 0.0446, -0.01, 400),
    Gate(f"slice_colour={EVIL}", "fail", "surely worse", -0.2, -0.3, -0.1, -0.05, 120),
    Gate("onnx_parity", "pass", "alike", 3.4e-7, threshold=1e-5, n=400),
    Gate("memory", "fail", "memory was not measured", threshold=512),
)


def validation(gates: tuple[Gate, ...] = GATES, verdict: str = "rejected") -> Validation:
    metrics = measure(LABELS, SCORES, 0.5)
    part = Part(
        "colour=red", "colour", EVIL, 120, {"challenger": metrics, "champion": metrics}, Interval(0.8, 0.7, 0.9)
    )
    return Validation(
        verdict=ModelVerdict(verdict, f"champion is too uncertain {EVIL}", gates),
        digest="a" * 64,
        baseline_digest="b" * 64,
        champion_digest="c" * 64,
        metrics={"challenger": metrics, "champion": metrics, "baseline": None},
        rows=400,
        measured=Measurements(
            metric="roc_auc",
            confidence=0.95,
            training={"challenger": {"roc_auc": 0.99}},
            intervals={"roc_auc": Interval(0.9, 0.85, 0.95)},
            parts=(part,),
            left_out=3,
            importances=(Importance(EVIL, 0.2, 0.01),),
        ),
    )


def said(width: int, found: Validation | None = None, **options) -> str:
    stream = io.StringIO()
    show(found or validation(), Console(file=stream, width=width, **options))
    return stream.getvalue()


@pytest.fixture
def project(tmp_path: Path) -> tuple[Params, Workspace]:
    content = {
        "project": {"name": "toy"},
        "sources": {"things": {"kind": "csv", "path": "things.csv"}},
        "data": {"table": "things", "label": "answer"},
        "environments": {"production": {"port": 0}},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    return load_params(tmp_path / "params.yaml"), Workspace(tmp_path)


def test_the_reports_are_written_whole(project: tuple[Params, Workspace]) -> None:
    params, workspace = project
    contenders = [Contender("challenger", "a" * 64, SCORES, 0.5), Contender("champion", "c" * 64, None, 0.5, "away")]
    write_reports(params, workspace, validation(), contenders, LABELS)
    page = (workspace.reports / "model_validation.html").read_text()
    assert "<script" not in page
    assert not re.search(r"(src|href)=", page), "the page needs no other file"
    for expected in ("ROC curve", "Precision and recall", "Calibration", "Confusion", "Importance", "by part of the"):
        assert expected in page
    assert page.count('role="img"') == page.count("aria-label=") >= 9
    drawn = sorted(path.name for path in (workspace.reports / "drawings").iterdir())
    assert drawn == [
        "calibration.svg",
        "confusion.svg",
        "importances.svg",
        "precision_recall.svg",
        "roc.svg",
        "scores.svg",
    ]
    assert len(list((workspace.reports / "plots").iterdir())) == 5
    report = read_json(workspace.reports / "model_validation.json")
    assert report["measured"]["parts"][0]["interval"] == {"estimate": 0.8, "lower": 0.7, "upper": 0.9}
    assert report["measured"]["intervals"]["roc_auc"]["lower"] == 0.85


def test_drawings_of_an_earlier_model_do_not_stay(project: tuple[Params, Workspace]) -> None:
    params, workspace = project
    broken = Contender("challenger", "a" * 64, np.full(400, np.nan), 0.5)
    write_reports(params, workspace, validation(), [replace(broken, scores=SCORES)], LABELS)
    found = validation()
    unknown = replace(found, measured=replace(found.measured, importances=(), parts=()))
    write_reports(params, workspace, unknown, [broken], LABELS)
    assert list((workspace.reports / "drawings").iterdir()) == []
    assert (workspace.reports / "plots" / "roc.csv").read_text().count("\n") == 1


def test_gates_are_drawn_failed_first_and_slices_on_one_scale() -> None:
    table = gate_table(GATES)
    assert list(table.status) == ["fail", "fail", "unknown", "pass", "pass"]
    assert 'aria-label="estimate -0.2, interval -0.3 to -0.1, needed -0.05"' in table.rows[0][2]
    assert "<svg" not in table.rows[1][2], "what was not measured is not drawn"
    assert 'class="detail" open' in table.rows[2][0]
    assert " open" not in table.rows[3][0]
    assert "no gate was judged" in gate_table(()).note


def test_a_wide_terminal_aligns_intervals_and_needs() -> None:
    text = said(120)
    rows = {line.split()[1]: line for line in text.splitlines() if line.startswith("│")}
    points = [
        rows[name].index(".", 30) for name in ("champion", "slice_colour=<script>alert(1)</script>") if name in rows
    ]
    assert len(set(points)) == 1
    assert "[-0.0200, " in rows["champion"]
    assert "-0.01" in rows["champion"]
    assert "unknown champion: too uncertain <script>alert(1)</script> [b]x[/b]" in " ".join(text.split())
    assert "fail memory: memory was not measured" in text
    assert "400 rows" not in text, "what passed needs no words"


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100])
def test_no_line_is_wider_than_the_terminal_and_no_status_is_lost(width: int) -> None:
    text = said(width)
    assert max(map(len, text.splitlines())) <= width
    assert [text.count(word) >= 1 for word in ("pass", "fail", "unknown")] == [True] * 3
    assert ("interval" in text) == (width >= 76)
    assert ("estimate" in text) == (width >= 48)


def test_colour_is_only_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in said(100)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in said(100, force_terminal=True, color_system="standard", _environ={})
    assert not re.search(
        r"\x1b\[(3\d|9\d|1;3\d)m", said(100, force_terminal=True, _environ={"NO_COLOR": "1", "TERM": "xterm-256color"})
    )


def test_a_pipe_gets_a_table_of_a_fixed_width(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show(validation())
    text = capsys.readouterr().out
    assert "interval" in text
    assert max(map(len, text.splitlines())) <= 110


def test_an_unchanged_model_has_metrics_and_no_gates() -> None:
    text = said(100, validation((), "unchanged"))
    assert "Gates" not in text
    assert "roc_auc" in text


def test_the_summary_of_a_job_names_every_gate() -> None:
    text = summary(validation())
    assert sum(line.startswith("| ") for line in text.splitlines()) == len(GATES) + 2
    assert text.index("slice_colour") < text.index("| rows")


def test_numbers_are_as_long_as_they_need() -> None:
    values = [None, float("nan"), 26768, 0.0, 0.65, 3.4e-7, 512.0, -0.05]
    assert [number(value) for value in values] == ["–", "–", "26,768", "0", "0.6500", "3.4e-07", "512.0", "-0.0500"]
