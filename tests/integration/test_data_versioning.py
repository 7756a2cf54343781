"""Versioned data travels through real remotes, an S3 API and a folder; what is lost or damaged on the way is named."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo
from s3_server import S3Server, s3_server

from clearway.data_remote import Moved, check, pull, push
from clearway.errors import ClearwayError, UsageError
from clearway.workspace import Workspace

STAGES = """
stages:
  features:
    cmd: mkdir -p data/tables && tail -n +2 table.csv > data/tables/all.csv && head -3 table.csv > data/tables/few.csv
    deps: [table.csv]
    outs: [data/tables]
  report:
    cmd: wc -l < data/tables/all.csv > report.txt && echo 7 > here.json
    deps: [data/tables]
    outs: [report.txt]
    metrics: [{here.json: {cache: false}}]
"""
FILES = ("data/tables/all.csv", "data/tables/few.csv", "report.txt", "table.csv")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine with credentials in its environment, and no other."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "HOME": str(tmp_path),
        "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
    }.items():
        monkeypatch.setenv(name, value)


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def configure(project: Path, url: str, **options: str) -> None:
    """What `dvc remote add -d store URL` writes."""
    lines = ["[core]", "    remote = store", "['remote \"store\"']", f"    url = {url}"]
    (project / ".dvc" / "config").write_text("\n".join([*lines, *(f"    {k} = {v}" for k, v in options.items()), ""]))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose stages have run, with one file that was added, all committed; no remote."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / ".gitignore").write_text("/data/\n/report.txt\n/table.csv\n")
    (folder / "table.csv").write_text("".join(f"{n},{n * n}\n" for n in range(2000)))
    (folder / "dvc.yaml").write_text(STAGES)
    with monkeypatch.context() as there:
        there.chdir(folder)
        with Repo.init() as repo:
            repo.add("table.csv")
            repo.reproduce()
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "start")
    return folder


def clone(project: Path, name: str = "clone") -> Path:
    git(project, "add", "-A")
    git(project, "commit", "-q", "--allow-empty", "-m", "remote")
    folder = project.with_name(name)
    git(project, "clone", "-q", ".", str(folder))
    return folder


def md5s(project: Path) -> dict[str, str]:
    """The hash that names each file, by its path."""
    with Repo(str(project)) as repo:
        outs = [out for out in repo.index.outs if out.use_cache]
        found = {str(Path(out.fs_path).relative_to(project)): out.hash_info.value for out in outs}
    listing = found["data/tables"]
    content = project / ".dvc" / "cache" / "files" / "md5" / listing[:2] / listing[2:]
    items = json.loads(content.read_bytes())
    return found | {f"data/tables/{item['relpath']}": item["md5"] for item in items}


def key(md5: str) -> str:
    return f"bucket-of-tests/models/files/md5/{md5[:2]}/{md5[2:]}"


@pytest.fixture
def stored(project: Path, s3: S3Server) -> Path:
    """The project, configured for an S3 remote whose bucket is empty."""
    s3.start_again("bucket-of-tests")
    configure(project, "s3://bucket-of-tests/models", endpointurl=s3.url)
    return project


def assert_nothing_to_do(project: Path) -> None:
    with Repo(str(project)) as repo:
        assert repo.status() == {}
        assert repo.reproduce(all_pipelines=True) == []


def test_what_one_clone_pushes_another_pulls_and_has_nothing_left_to_run(stored: Path) -> None:
    verdict = check(Workspace(stored))
    assert verdict.status == "incomplete"
    assert {(entry.path, entry.oid) for entry in verdict.missing} == {
        (path + "/" * oid.endswith(".dir"), oid) for path, oid in md5s(stored).items()
    }
    assert push(Workspace(stored)) == Moved(5, 3, ("store (s3://bucket-of-tests/models)",))
    assert push(Workspace(stored)).moved == 0
    other = clone(stored)
    assert check(Workspace(other)).status == "complete", "of a clone that has no cache"
    assert pull(Workspace(other)).moved == 5
    assert all((other / name).read_bytes() == (stored / name).read_bytes() for name in FILES)
    assert_nothing_to_do(other)
    assert pull(Workspace(other)).moved == 0


def test_what_is_damaged_or_lost_in_the_bucket_is_named_and_pushed_again(stored: Path, s3: S3Server) -> None:
    push(Workspace(stored))
    names = md5s(stored)
    damaged, listing = names["data/tables/few.csv"], names["data/tables"]
    s3.ask("PUT", key(damaged), b"0,0\n1,1\n2,5\n")
    other = clone(stored)
    with pytest.raises(ClearwayError, match=rf"damaged in the remote .*data/tables/few.csv \(md5 {damaged}\)"):
        pull(Workspace(other))
    assert not (other / "data").exists()
    with pytest.raises(ClearwayError, match="damaged"):
        pull(Workspace(other))
    s3.ask("DELETE", key(damaged))
    with pytest.raises(ClearwayError, match=rf"not in the remote .*few.csv \(md5 {damaged}\): run `make data-push`"):
        pull(Workspace(other))
    assert push(Workspace(stored)).moved == 1, "though DVC has noted that it is there"

    s3.ask("PUT", key(listing), b"[{")
    third = clone(stored, "third")
    assert [entry.path for entry in check(Workspace(third)).missing] == ["data/tables/"]
    with pytest.raises(ClearwayError, match=r"damaged in the remote .*data/tables/ "):
        pull(Workspace(third))
    s3.ask("DELETE", key(listing))
    assert push(Workspace(stored)).moved == 1
    pull(Workspace(third))
    assert_nothing_to_do(third)


def test_a_push_that_is_killed_on_the_way_is_completed_by_the_next(
    stored: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(stored, "s3://bucket-of-tests/models", endpointurl=s3.url, jobs="1")
    many = stored / "many"
    many.mkdir()
    for n in range(40):
        (many / f"{n}").write_text(f"{n}\n")
    with monkeypatch.context() as there:
        there.chdir(stored)
        with Repo() as repo:
            repo.add("many")
    script = Path(__file__).parents[2] / "scripts" / "push_data.py"
    command = [sys.executable, str(script), "--project", str(stored)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while len(s3.keys("bucket-of-tests")) < 8:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)
    there = s3.keys("bucket-of-tests")
    assert 8 <= len(there) < 40
    left = check(Workspace(stored)).missing
    assert "many/" in [entry.path for entry in left], "a folder's list is written after its files"
    assert push(Workspace(stored)).moved == len({entry.oid for entry in left})
    other = clone(stored)
    pull(Workspace(other))
    assert len(list((other / "many").iterdir())) == 40
    assert_nothing_to_do(other)


def test_credentials_that_are_wrong_or_not_there_a_bucket_that_is_not_and_a_server_that_is_not(
    stored: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3.looking_at_credentials(), pytest.raises(ClearwayError, match=r"refused access: .*Access Key"):
        push(Workspace(stored))
    configure(stored, "s3://no-such-bucket/models", endpointurl=s3.url)
    with pytest.raises(ClearwayError, match=r"the bucket of the remote .*no-such-bucket.* does not exist"):
        push(Workspace(stored))
    configure(stored, "s3://bucket-of-tests/models", endpointurl="http://127.0.0.1:1")
    with pytest.raises(ClearwayError, match=r"cannot be reached: .*127.0.0.1:1"):
        check(Workspace(stored))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    configure(stored, "s3://bucket-of-tests/other", endpointurl=s3.url, region="eu-west-1")
    with pytest.raises(ClearwayError, match=r"no usable credentials .*AWS_ACCESS_KEY_ID"):
        push(Workspace(stored))


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(project: Path) -> None:
    configure(project, "oss://bucket/models")
    with pytest.raises(ClearwayError, match=r"uv pip install 'dvc\[oss\]'"):
        check(Workspace(project))


def test_a_folder_is_a_remote_too(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "share"
    configure(project, "../../share")
    with pytest.raises(ClearwayError, match=f"{folder}.* does not exist: make the folder, mount its disk"):
        push(Workspace(project))
    assert not folder.exists()
    folder.mkdir()
    assert push(Workspace(project)).moved == 5
    other = clone(project)
    damaged = md5s(project)["data/tables/all.csv"]
    path = folder / "files" / "md5" / damaged[:2] / damaged[2:]
    path.chmod(0o644)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    path.chmod(0o444)
    with pytest.raises(ClearwayError, match=rf"damaged in the remote .*data/tables/all.csv \(md5 {damaged}\)"):
        pull(Workspace(other))
    path.unlink()
    assert push(Workspace(project)).moved == 1
    (other / "report.txt").write_text("changed here")
    with pytest.raises(ClearwayError, match=r"changed here, and kept nowhere else: report.txt: move it away"):
        pull(Workspace(other))
    (other / "report.txt").unlink()
    pull(Workspace(other))
    assert_nothing_to_do(other)


def test_data_that_is_nowhere_is_named_by_push(project: Path, tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    configure(project, str(tmp_path / "share"))
    md5 = md5s(project)["report.txt"]
    (project / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]).unlink()
    with pytest.raises(ClearwayError, match=rf"neither .* here nor in the remote .*report.txt \(md5 {md5}\)"):
        push(Workspace(project))


def test_without_a_remote_the_check_passes_and_a_push_says_how_to_configure_one(project: Path) -> None:
    verdict = check(Workspace(project))
    assert (verdict.status, verdict.passed) == ("no_remote", True)
    for move in (push, pull):
        with pytest.raises(UsageError, match=r"no remote is configured: `dvc remote add -d NAME URL`"):
            move(Workspace(project))
    (project / ".dvc" / "config").write_text("['remote \"store\"']\n    url = /tmp\n")
    with pytest.raises(UsageError, match=r"of the remotes store none is the default"):
        check(Workspace(project))


def test_without_a_committed_lock_there_is_nothing_to_look_for(project: Path) -> None:
    git(project, "rm", "-q", "--cached", "dvc.lock", "table.csv.dvc")
    verdict = check(Workspace(project))
    assert (verdict.status, verdict.passed) == ("nothing_named", True)
    assert "no dvc.lock" in verdict.sentence
    (project / "dvc.lock").unlink()
    with pytest.raises(ClearwayError, match=r"has no dvc.lock"):
        push(Workspace(project))


def test_a_folder_without_dvc_is_not_taken_for_the_one_around_it(project: Path) -> None:
    inner = project / "inner"
    inner.mkdir()
    (inner / "dvc.lock").write_text("schema: '2.0'\n")
    git(project, "add", "-A")
    with pytest.raises(UsageError, match=r"inner has no .dvc folder"):
        check(Workspace(inner))


def test_the_job_turns_red_and_its_summary_names_what_is_missing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(expected: int) -> str:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "check_data.py"), run_name="__main__")
        assert ended.value.code == expected
        said = capsys.readouterr()
        return said.out + said.err

    (tmp_path / "share").mkdir()
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setattr(sys, "argv", ["check_data.py", "--project", str(project)])
    assert "no remote is configured" in run(0)
    configure(project, str(tmp_path / "share"))
    said = run(1)
    for path, md5 in md5s(project).items():
        assert f"(md5 {md5})" in said, path
    assert "make data-push" in summary.read_text()
    push(Workspace(project))
    assert "all 5 files and folders" in run(0)


def test_make_asks_for_the_data_of_the_project_it_is_given() -> None:
    home = Path(__file__).parents[2]
    for target, script in (("data-push", "push_data.py"), ("data-pull", "pull_data.py")):
        done = subprocess.run(
            ["make", "-n", target, "PROJECT=models/cells"], cwd=home, check=True, capture_output=True, text=True
        )
        assert f"python scripts/{script} --project models/cells" in done.stdout
