"""Where the line ends: what becomes of a canary whose features were not those of training."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import clearway.line as line
from clearway.files import write_json
from clearway.line import Step, StepFailedError, run_line
from clearway.params import Params
from clearway.workspace import Workspace

CANARY = "c" * 64
SKEW = "check skew: skew: temp is the first feature that differs"


class Steps:
    """Stands in for the processes of a run: every step succeeds but the one named."""

    def __init__(self, fails: str) -> None:
        self.steps: list[Step] = []
        self.called: list[tuple[str, ...]] = []
        self._fails = fails

    def stages(self, target: str, *options: str) -> set[str]:
        return {"decide"}

    def script(self, title: str, *command: str, accept: Sequence[int] = (0,)) -> int:
        self.called.append(command)
        if title == self._fails:
            raise StepFailedError(SKEW, 1)
        return 0

    def endpoint_tests(self, environment: str) -> None:
        pass


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str = "") -> tuple[line.LineRun, list[tuple[str, ...]]]:
    workspace, steps = Workspace(folder), Steps(fails)
    write_json(workspace.reports / "decision.json", {"retrain": True, "sentence": "retrain"})
    write_json(workspace.champion / "champion.json", {"digest": None})
    write_json(workspace.reports / "model_validation.json", {"verdict": "passed"})
    write_json(workspace.reports / "canary.json", {"digest": CANARY, "sentence": "proven harmless"})
    values: dict[str, Any] = {
        "project": {"name": "pets", "package": "pets"},
        "sources": {"pets": {"kind": "csv", "path": "pets.csv"}},
        "environments": {"production": {"port": 0}},
    }
    monkeypatch.setattr(line, "Runner", lambda *_: steps)
    return run_line(Params.model_validate(values), workspace, Console(file=io.StringIO())), steps.called


def test_a_canary_that_was_served_other_features_is_withdrawn_and_the_feature_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, called = run(tmp_path, monkeypatch, fails="check skew")
    assert (done.outcome, done.why) == ("rolled back", SKEW)
    assert called[-1] == ("rollback.py", "--env", "production", "--reason", SKEW)


def test_a_promotion_comes_after_the_skew_check_of_this_canary_and_this_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, called = run(tmp_path, monkeypatch)
    assert (done.outcome, done.why) == ("promoted", "proven harmless")
    assert called[-2] == ("check_skew.py", "--env", "production", "--digest", CANARY, "--rollout")
    assert called[-1] == ("deploy.py", "--env", "production", "--canary", "100")
