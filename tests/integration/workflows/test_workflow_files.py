"""What the local runner ignores, read from the files themselves; and the linters that know GitHub's rules."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

GITHUB = Path(__file__).parents[3] / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTIONS = sorted((GITHUB / "actions").glob("*/action.yml"))
FILES = [*WORKFLOWS, *ACTIONS]
OUTSIDE = re.compile(r"\$\{\{")


def name(path: Path) -> str:
    return str(path.relative_to(GITHUB))


def load(path: Path) -> dict[str, Any]:
    content = yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # every value as text, so that `on` stays a word
    assert isinstance(content, dict)
    return content


def steps(path: Path) -> Iterator[dict[str, Any]]:
    content = load(path)
    for job in content.get("jobs", {}).values():
        yield from job["steps"]
    yield from content.get("runs", {}).get("steps", [])


def complaints(*command: str) -> str:
    """What a linter says; empty where nothing is wrong."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        cwd=GITHUB.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else f"exit code {done.returncode}: {done.stdout}{done.stderr}"


def actionlint(*paths: Path) -> str:
    return complaints("actionlint", "-shellcheck=", "-pyflakes=", *map(str, paths))


def zizmor(path: Path) -> str:
    return complaints("zizmor", "--offline", "--quiet", "--persona", "pedantic", str(path))


def check_schema(schema: str, *paths: Path) -> str:
    return complaints("check-jsonschema", "--builtin-schema", schema, *map(str, paths))


def test_actionlint() -> None:
    assert WORKFLOWS
    assert actionlint(*WORKFLOWS) == ""


def test_zizmor() -> None:
    assert zizmor(GITHUB) == ""


@pytest.mark.parametrize(
    ("schema", "paths"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        ("vendor.github-actions", ACTIONS),
        ("vendor.dependabot", [GITHUB / "dependabot.yml"]),
    ],
)
def test_schemas(schema: str, paths: list[Path]) -> None:
    assert check_schema(schema, *paths) == ""


def test_a_bad_workflow_does_not_get_past_the_linters(tmp_path: Path) -> None:
    bad = tmp_path / ".github" / "workflows" / "bad.yml"
    bad.parent.mkdir(parents=True)
    title = "${{ github.event.issue.title }}"
    bad.write_text(
        f"on: issues\njobs: {{ a: {{ runs-on: ubuntu-latest, steps: [{{ runs: x, run: 'echo {title}' }}] }} }}"
    )
    assert 'unexpected key "runs"' in actionlint(bad)
    assert "template-injection" in zizmor(bad)
    assert "jobs.a" in check_schema("vendor.github-workflows", bad)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_action_is_pinned_by_commit_and_says_its_version(path: Path) -> None:
    lines = re.findall(r"uses: (.*)", path.read_text())
    assert lines
    for line in lines:
        assert line.startswith("./.github/actions/") or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", line), (
            line
        )


def test_one_action_has_one_commit_everywhere() -> None:
    found: dict[str, set[str]] = {}
    for path in FILES:
        for action, commit in re.findall(r"uses: ([\w-]+/[\w-]+)@([0-9a-f]{40})", path.read_text()):
            found.setdefault(action, set()).add(commit)
    assert {action: len(commits) for action, commits in found.items()} == dict.fromkeys(found, 1)


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_a_workflow_may_do_nothing_and_a_job_what_it_names(path: Path) -> None:
    content = load(path)
    assert content["permissions"] == {}
    for job in content["jobs"].values():
        assert job["permissions"]
        assert int(job["timeout-minutes"]) <= 60


def test_only_the_jobs_that_save_state_comment_sign_or_release_may_write() -> None:
    writers = {
        (path.name, job, right)
        for path in WORKFLOWS
        for job, content in load(path)["jobs"].items()
        for right, level in content["permissions"].items()
        if level == "write"
    }
    assert writers == {
        ("delivery.yml", "save-state", "contents"),
        ("delivery.yml", "train", "id-token"),
        ("pull_request.yml", "comment", "pull-requests"),
        ("release.yml", "release", "contents"),
        ("release.yml", "release", "id-token"),
        ("release.yml", "release", "attestations"),
    }


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_step_is_one_line_of_shell_without_outside_text(path: Path) -> None:
    for step in steps(path):
        run = step.get("run", "true")
        assert "\n" not in run.strip(), run
        assert not OUTSIDE.search(run), f"{run}: pass it by env"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_checkout_leaves_no_credentials_and_no_cache_is_restored(path: Path) -> None:
    for step in steps(path):
        used = step.get("uses", "")
        if used.startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"
        assert not used.startswith("actions/cache")
        assert "cache" not in step.get("with", {})


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_secret_is_asked_for_and_no_foreign_code_runs_with_rights(path: Path) -> None:
    text = path.read_text()
    assert "secrets." not in text
    assert "pull_request_target" not in load(path).get("on", {})
    assert "workflow_run" not in load(path).get("on", {})


def test_deliveries_run_one_at_a_time_and_a_running_one_is_not_cancelled() -> None:
    assert load(GITHUB / "workflows/delivery.yml")["concurrency"] == {
        "group": "delivery",
        "cancel-in-progress": "false",
    }


def test_delivery_starts_on_what_can_change_a_model() -> None:
    on = load(GITHUB / "workflows/delivery.yml")["on"]
    assert on["push"]["branches"] == ["main"]
    assert {"src/**", "scripts/**", "params.yaml", "schema.yaml", "dvc.yaml"} <= set(on["push"]["paths"])
    assert set(on["workflow_dispatch"]["inputs"]) == {"force_retrain", "as_of"}
    assert on["workflow_dispatch"]["inputs"]["force_retrain"]["type"] == "boolean"
    assert len(on["schedule"]) == 1


def runs(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_versioned_data_is_asked_for_on_a_pull_request_and_before_a_delivery_touches_any_state() -> None:
    asked = "python scripts/check_data.py"
    assert runs(load(GITHUB / "workflows/pull_request.yml")["jobs"]["data"]) == [asked]
    first = load(GITHUB / "workflows/delivery.yml")["jobs"]["validate"]["steps"]
    used = [step.get("run", step.get("uses")) for step in first]
    assert used.index("./.github/actions/setup") < used.index(asked) < used.index("./.github/actions/restore-state")
    assert not any(key in step for step in first if step.get("run") == asked for key in ("if", "continue-on-error"))


def test_a_pull_request_builds_a_model_and_builds_it_again() -> None:
    job = load(GITHUB / "workflows/pull_request.yml")["jobs"]["rebuild"]
    commands = runs(job)
    built, again = commands.index("dvc repro package"), commands.index('python scripts/reproduce.py "$DIGEST"')
    assert built < again
    (rebuild,) = [step for step in job["steps"] if "reproduce.py" in step.get("run", "")]
    assert rebuild["if"] == "steps.package.outputs.verdict == 'passed'"
    assert rebuild["env"] == {"DIGEST": "${{ steps.package.outputs.digest }}"}
    assert not any("continue-on-error" in step for step in job["steps"])
    insisted = [step.get("if") for step in job["steps"] if step.get("run") == "exit 1"]
    assert insisted == ["steps.package.outputs.verdict == ''"], "without a verdict nothing is green"


def test_deployments_happen_in_their_environments_one_after_the_other() -> None:
    jobs = load(GITHUB / "workflows/delivery.yml")["jobs"]
    assert {job: content["environment"] for job, content in jobs.items() if "environment" in content} == {
        "deploy-staging": "staging",
        "deploy-production": "production",
    }
    assert "deploy-staging" in jobs["deploy-production"]["needs"]
    assert jobs["save-state"]["if"].startswith("always()")
    assert set(jobs["save-state"]["needs"]) == set(jobs) - {"save-state"}
