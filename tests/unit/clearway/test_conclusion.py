"""How a delivery ended, from what its jobs say."""

import json
from typing import Any

import pytest

from clearway.conclusion import Job, conclude, conclude_rollback, markdown, read_jobs
from clearway.errors import UsageError

DIGEST = "d" * 64


def jobs(**changes: Any) -> dict[str, Job]:
    """A delivery that promoted its model, but for what is named: a result, or a result and outputs."""
    told: dict[str, Any] = {
        "validate": "success",
        "decide": ("success", {"retrain": "true", "reasons": "drift"}),
        "train": ("success", {"verdict": "passed", "digest": DIGEST}),
        "deploy_staging": "success",
        "deploy_production": ("success", {"verdict": "promote"}),
        **changes,
    }
    pairs = {name: each if isinstance(each, tuple) else (each, {}) for name, each in told.items()}
    return {name.replace("_", "-"): Job(result=result, outputs=out) for name, (result, out) in pairs.items()}


SKIPPED = {"deploy_staging": "skipped", "deploy_production": "skipped"}


@pytest.mark.parametrize(
    ("changes", "ending", "kind", "said"),
    [
        ({}, "delivered", "success", "dddddddddddd answers everything"),
        (
            {"decide": ("success", {"retrain": "false"}), "train": "skipped", **SKIPPED},
            "skipped",
            "info",
            "nothing asked",
        ),
        ({"train": ("success", {"verdict": "rejected"}), **SKIPPED}, "rejected", "info", "champion stays"),
        ({"train": ("success", {"verdict": "unchanged"}), **SKIPPED}, "unchanged", "info", "nothing to deploy"),
        ({"deploy_production": ("success", {"verdict": "hold"})}, "held", "warning", "keeps its version"),
        ({"deploy_production": ("failure", {"verdict": "rollback"})}, "rolled_back", "failure", "rolled back"),
        ({"deploy_production": ("failure", {"verdict": "withdraw"})}, "rolled_back", "failure", "no lift"),
        ({"deploy_production": "skipped"}, "staged", "success", "no further"),
        (
            {"deploy_staging": "failure", "deploy_production": "skipped"},
            "failed",
            "failure",
            "deploy-staging (failure)",
        ),
        (
            {"deploy_production": ("failure", {"verdict": "promote"})},
            "failed",
            "failure",
            "deploy-production (failure)",
        ),
        ({"deploy_production": "cancelled"}, "failed", "failure", "cancelled"),
        ({"validate": "failure", "decide": "skipped", "train": "skipped", **SKIPPED}, "failed", "failure", "validate"),
        ({"deploy_production": "success"}, "failed", "failure", "no verdict"),
        ({"train": "success", **SKIPPED}, "failed", "failure", "no verdict"),
    ],
)
def test_each_ending_has_its_name_and_how_loud_it_is(
    changes: dict[str, Any], ending: str, kind: str, said: str
) -> None:
    found = conclude(jobs(**changes))
    assert (found.ending, found.kind) == (ending, kind)
    assert said in found.sentence


def test_no_job_at_all_is_no_success() -> None:
    assert conclude({}).ending == "failed"
    assert conclude_rollback({}).ending == "failed"


def test_a_rollback_says_what_answers_again_and_what_was_not_done() -> None:
    done = {"rollback": Job(result="success", outputs={"stable": DIGEST, "changed": "true"})}
    assert conclude_rollback(done).ending == "rolled_back"
    assert "dddddddddddd answers everything again" in conclude_rollback(done).sentence
    unsaved = {"rollback": Job(result="failure", outputs={"stable": DIGEST, "changed": "true"})}
    assert conclude_rollback(unsaved).ending == "failed"
    assert "not all that follows was done" in conclude_rollback(unsaved).sentence


def test_the_summary_shows_every_job_and_what_data_says_stays_text() -> None:
    told = jobs(decide=("success", {"retrain": "true", "reasons": "drift | <b>"}))
    text = markdown(conclude(told), told)
    assert text.startswith("## ✅ Delivery: delivered")
    assert "drift \\| <b>" in text
    shown = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert shown[2:] == [f"| {name}" for name in told], "in the order of the line"
    shuffled = dict(sorted(told.items()))
    assert markdown(conclude(shuffled), shuffled) == text


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"train": {"outputs": {}}})])
def test_what_is_no_context_of_jobs_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="CLEARWAY_JOBS"):
        read_jobs(text)


def test_the_context_of_jobs_is_read() -> None:
    read = read_jobs(json.dumps({"train": {"result": "success", "outputs": {"digest": DIGEST}}, "a": {"result": "x"}}))
    assert read["train"].outputs["digest"] == DIGEST
    assert read["a"].outputs == {}
