"""pull_request.yml: what the file promises, and the real file run for a fork's pull request and for one of a branch."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from act_runner import WorkflowRun
from forked_repository import Fork

from clearway.sticky_comment import MARKER

ROOT = Path(__file__).parents[3]
JOBS: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/pull_request.yml").read_text())["jobs"]
COMMENT = JOBS["comment"]


def uses(job: dict[str, Any]) -> list[str]:
    return [step["uses"].split("@")[0] for step in job["steps"] if "uses" in step]


def runs(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_only_the_job_that_comments_may_write_and_only_for_a_branch_of_this_repository() -> None:
    assert [name for name, job in JOBS.items() if "write" in job["permissions"].values()] == ["comment"]
    assert COMMENT["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert COMMENT["if"].endswith("&& github.event.pull_request.head.repo.full_name == github.repository")


def test_the_job_that_comments_runs_the_base_branch_and_installs_nothing() -> None:
    assert uses(COMMENT) == ["actions/checkout", "actions/download-artifact"]
    checkout, download = COMMENT["steps"][:2]
    assert checkout["with"]["ref"] == "${{ github.event.pull_request.base.sha }}"
    assert download["with"]["path"] == "report", "beside the code, and not over it"
    assert runs(COMMENT) == ['python3 scripts/comment.py report/change.md --number "$NUMBER"']


def test_no_step_sees_what_a_stranger_may_write() -> None:
    text = (ROOT / ".github/workflows/pull_request.yml").read_text()
    for outside in ("head.ref", "head_ref", "title", "body", "label", "user.login", "message"):
        assert f".{outside}" not in text


def test_the_line_reads_mains_state_and_nothing_saves_it() -> None:
    assert "./.github/actions/restore-state" in uses(JOBS["line"])
    assert JOBS["line"]["permissions"] == {"contents": "read", "actions": "read"}
    (line,) = [step for step in JOBS["line"]["steps"] if "dvc repro package" in step.get("run", "")]
    assert line["env"]["CLEARWAY_CHAMPION"] == "kept", "a pull request has no token for production"
    for job in JOBS.values():
        assert not any("state.py" in command or "--sample" in command for command in runs(job) if job is JOBS["line"])
        assert "./.github/actions/hand-on" not in uses(job)


def test_unit_tests_run_on_every_python_that_is_promised() -> None:
    assert JOBS["unit"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    (setup,) = [step for step in JOBS["unit"]["steps"] if step.get("uses") == "./.github/actions/setup"]
    assert setup["with"] == {"python-version": "${{ matrix.python }}"}
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()
    action = yaml.safe_load((ROOT / ".github/actions/setup/action.yml").read_text())
    assert action["inputs"]["python-version"]["default"] == "3.11"
    assert action["runs"]["steps"][0]["with"]["python-version"] == "${{ inputs.python-version }}"


def pull_request(head: str, base: str, marker: Path) -> dict[str, Any]:
    """The event of a pull request from the repository ``head``, whose words try to run a command."""
    evil = f"$(touch {marker})`touch {marker}`'; touch {marker}; '\n::set-output name=report::1"
    return {
        "repository": {"full_name": "team/model", "default_branch": "main"},
        "pull_request": {
            "number": 7,
            "title": evil,
            "body": evil,
            "head": {"ref": evil, "sha": "c0ffee" * 7, "repo": {"full_name": head}},
            "base": {"ref": "main", "sha": base, "repo": {"full_name": "team/model"}},
        },
    }


@contextmanager
def github() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """An API with no comments yet; yields its address and what is written: path, token and body."""
    written: list[tuple[str, str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer([])

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            written.append((self.path, self.headers["Authorization"], sent["body"]))
            self.answer({"html_url": "https://github.test/comment"})

        def answer(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", written
        server.shutdown()
        thread.join()


def run_line(fork: Fork, head: str, address: str, marker: Path) -> WorkflowRun:
    """The jobs ``line`` and ``comment``, as GitHub would run them at ``address``; the work tree is the change."""
    (fork.work / ".actrc").write_text(f"--env STANDIN_REPOSITORY={fork.origin}\n")
    script = fork.work / "scripts" / "comment.py"
    script.write_text(f"open({str(marker)!r}, 'w')\n{script.read_text()}")  # what a change would try
    base = fork.git("rev-parse", "origin/main").strip()
    event = pull_request(head, base, marker)
    return fork.run("pull_request.yml", "pull_request", event, job="comment", api=address)


@pytest.mark.lines
def test_a_pull_request_of_a_fork_is_reported_in_the_summary_and_writes_nothing(
    make_fork: Callable[[Path], Fork], tmp_path: Path
) -> None:
    fork, marker = make_fork(tmp_path / "fork"), tmp_path / "executed"
    with github() as (address, written):
        run = run_line(fork, "mallory/model", address, marker)
    assert run.code == 0, run.explain()
    assert run.jobs["line"] == "success"
    assert run.jobs.get("comment", "skipped") == "skipped"
    assert "## Model of this pull request: passed" in run.summary
    assert "**Compared with nothing**: main has no champion: nothing was ever deployed to production" in run.summary
    assert "commit c0ffeec0ffee" in run.summary
    kept = {path.name for path in (fork.folder / "artifacts").rglob("*") if path.is_file()}
    assert {"data_validation.json", "decision.json", "model_validation.json", "change.md"} <= kept
    assert written == []
    assert fork.on_branch("run.json") is None, "a pull request writes no state"
    assert not marker.exists()


@pytest.mark.lines
def test_a_pull_request_of_a_branch_is_compared_with_mains_champion_and_commented(
    delivered: tuple[Fork, WorkflowRun], tmp_path: Path
) -> None:
    fork, _ = delivered
    marker = tmp_path / "executed"
    champion, state = fork.ledger("production")[-1].stable, fork.on_branch("run.json")
    fork.change_params(train={"arguments": {"max_iter": 30}})
    with github() as (address, written):
        run = run_line(fork, "team/model", address, marker)
    assert run.code == 0, run.explain()
    assert {job: run.jobs[job] for job in ("line", "comment")} == {"line": "success", "comment": "success"}
    assert f"Compared with main's champion `{champion[:12]}`, stable in production" in run.summary
    assert "| train.arguments.max_iter | 20       | 30          |" in run.summary
    (roc_auc,) = [line for line in run.summary.splitlines() if line.startswith("| roc_auc ")]
    assert roc_auc.count("–") == 0, "challenger, champion, difference and baseline are all measured"
    ((path, token, body),) = written
    assert path == "/repos/team/model/issues/7/comments"
    assert token == "Bearer a-token-that-opens-nothing"
    assert body.startswith(f"{MARKER}\n## Model of this pull request: ")
    assert body.split("\n", 1)[1].strip() in run.summary
    assert fork.on_branch("run.json") == state, "a pull request writes no state"
    assert not marker.exists()
