"""What the local runner ignores, read from the files themselves; and the linters that know GitHub's rules."""

import hashlib
import os
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


def test_only_the_jobs_that_save_state_comment_vouch_watch_or_release_may_write() -> None:
    writers = {
        (path.name, job, right)
        for path in WORKFLOWS
        for job, content in load(path)["jobs"].items()
        for right, level in content["permissions"].items()
        if level == "write"
    }
    assert writers == {
        ("delivery.yml", "save-state", "contents"),
        ("delivery.yml", "decide", "id-token"),
        ("delivery.yml", "train", "id-token"),
        ("delivery.yml", "train", "attestations"),
        ("delivery.yml", "deploy-staging", "id-token"),
        ("delivery.yml", "deploy-production", "id-token"),
        ("monitor.yml", "production", "issues"),
        ("monitor.yml", "production", "actions"),
        ("monitor.yml", "production", "id-token"),
        ("rollback.yml", "rollback", "contents"),
        ("rollback.yml", "rollback", "id-token"),
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
def test_a_secret_is_asked_for_in_jobs_of_an_environment_only_and_no_foreign_code_runs_with_rights(path: Path) -> None:
    content = load(path)
    jobs = content.pop("jobs", {})
    assert "secrets." not in str(content), "not for every job of a workflow, nor in a composite action"
    for name, job in jobs.items():
        assert job.get("environment") or "secrets." not in str(job), name
        for step in job["steps"]:
            assert "secrets." not in f"{step.get('run')} {step.get('with')}", "by the environment of the process only"
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
    assert set(on["workflow_dispatch"]["inputs"]) == {"force_retrain", "as_of", "environment"}
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
        "decide": "${{ vars.CLEARWAY_PRODUCTION_URL && 'watch' || '' }}",
        "deploy-staging": "staging",
        "deploy-production": "production",
        "save-state": "alerts",
    }
    assert jobs["deploy-production"]["if"] == "inputs.environment != 'staging'"
    assert "deploy-staging" in jobs["deploy-production"]["needs"]
    assert jobs["save-state"]["if"] == "always()"
    assert set(jobs["save-state"]["needs"]) == set(jobs) - {"save-state"}


def test_whatever_happened_state_is_saved_and_the_ending_is_told() -> None:
    steps = load(GITHUB / "workflows/delivery.yml")["jobs"]["save-state"]["steps"]
    by_name = {step.get("name"): step for step in steps}
    restored = "needs.validate.outputs.state != ''"
    assert by_name["Save state"]["if"] == restored
    assert by_name["Say how it ended"]["if"] == "always()"
    assert by_name["Say how it ended"]["env"]["CLEARWAY_JOBS"] == "${{ toJSON(needs) }}"
    doctor = by_name["Say which protections are inactive"]
    assert (doctor["if"], doctor["continue-on-error"]) == ("always()", "true")


def test_a_bundle_is_attested_once_and_verified_before_each_deployment() -> None:
    jobs = load(GITHUB / "workflows/delivery.yml")["jobs"]
    (attest,) = [step for step in jobs["train"]["steps"] if step.get("id") == "attest"]
    assert attest["with"] == {"subject-path": "build/bundle/*/*.json"}
    for name in ("deploy-staging", "deploy-production"):
        used = [step.get("uses", step.get("run", "")) for step in jobs[name]["steps"]]
        deployed = next(index for index, what in enumerate(used) if what.startswith("python scripts/deploy.py"))
        assert used.index("./.github/actions/fetch-bundle") < deployed
        assert jobs[name]["permissions"]["attestations"] == "read"
    fetch = load(GITHUB / "actions/fetch-bundle/action.yml")["runs"]["steps"]
    (verify,) = [step for step in fetch if "gh attestation verify" in step.get("run", "")]
    assert verify["if"] == "inputs.attested == 'success'"
    assert "continue-on-error" not in verify
    checked = [step.get("run", "") for step in fetch].index(
        'python scripts/check_bundle.py "$DIGEST" --baseline "$BASELINE"'
    )
    assert "if" not in fetch[checked], "with provenance or without"


@pytest.mark.parametrize("forged", ["", "challenger/evidence.json", "baseline/manifest.json"])
def test_a_manifest_that_nobody_attested_stops_before_a_deployment(tmp_path: Path, forged: str) -> None:
    """The very line of the action, with a stand-in for ``gh``, which knows what was attested."""
    folder, attested = tmp_path / "build" / "bundle", tmp_path / "artifacts" / "attested"
    attested.mkdir(parents=True)
    for role in ("challenger", "baseline"):
        (folder / role).mkdir(parents=True)
        for name in ("manifest.json", "evidence.json"):
            (folder / role / name).write_text(f"{role} {name}")
            (attested / hashlib.sha256(f"{role} {name}".encode()).hexdigest()).touch()
    if forged:
        (folder / forged).write_text("forged, with every hash made to fit")
    fetch = load(GITHUB / "actions/fetch-bundle/action.yml")["runs"]["steps"]
    (verify,) = [step["run"] for step in fetch if "gh attestation verify" in step.get("run", "")]
    gh = Path(__file__).with_name("standins") / "setup-python" / "bin"
    environment = {"PATH": f"{gh}:{os.environ['PATH']}", "GITHUB_REPOSITORY": "team/model"}
    environment["STANDIN_ARTIFACTS"] = str(tmp_path / "artifacts")
    done = subprocess.run(["bash", "-e", "-c", verify], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, "no attestations found" in done.stderr) == (int(bool(forged)), bool(forged))


def test_nothing_cancels_a_rollback_or_makes_it_wait_and_it_installs_nothing_that_trains() -> None:
    rollback = load(GITHUB / "workflows/rollback.yml")
    assert rollback["concurrency"] == {"group": "rollback-${{ github.run_id }}", "cancel-in-progress": "false"}
    assert set(rollback["on"]) == {"workflow_dispatch"}
    assert set(rollback["on"]["workflow_dispatch"]["inputs"]) == {"environment", "digest", "reason"}
    steps = rollback["jobs"]["rollback"]["steps"]
    (setup,) = [step for step in steps if step.get("uses") == "./.github/actions/setup"]
    assert setup["with"] == {"what": "setup-serve"}
    assert "needs" not in rollback["jobs"]["rollback"]
    first, again = [step for step in steps if step.get("uses") == "./.github/actions/save-state"]
    assert first["if"].startswith("always()")
    assert first["continue-on-error"] == "true"
    assert again["if"] == "always() && steps.save.outcome == 'failure'"
    assert "continue-on-error" not in again


def test_the_monitor_looks_every_hour_off_the_hour_and_only_where_a_server_lives_on() -> None:
    monitor = load(GITHUB / "workflows/monitor.yml")
    (cron,) = monitor["on"]["schedule"]
    minute, *rest = cron["cron"].split()
    assert rest == ["*", "*", "*", "*"]
    assert minute not in ("0", "00", "*")
    (job,) = monitor["jobs"].values()
    assert job["if"] == "vars.CLEARWAY_PRODUCTION_URL"
    assert monitor["concurrency"]["cancel-in-progress"] == "false"


def test_commands_of_the_small_environment_need_nothing_else() -> None:
    """rollback.yml installs requirements-serve.txt alone: what its scripts import must be there."""
    names = re.findall(r"^([a-z0-9-]+)==", (GITHUB.parent / "requirements-serve.txt").read_text(), flags=re.MULTILINE)
    installed = {name.replace("-", "_") for name in names} | {"yaml", "jwt"}
    asked = (
        "import sys; sys.argv = ['x', '--help']\n"
        "import clearway.cli, clearway.deployment, clearway.params, clearway.state, clearway.workspace, "
        "clearway.as_of, clearway.local_target, clearway.ui, clearway.targets.http\n"
        "print(*{m.split('.')[0] for m in sys.modules if not m.startswith('_')} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    foreign = set(done.stdout.split()) - {"clearway", "cython_runtime"}
    assert foreign <= installed, foreign - installed
