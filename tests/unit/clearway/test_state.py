"""State carried through a real git remote (a bare repository on disk), with real ledgers and real bundles."""

import json
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from clearway.bundle import keep, pack
from clearway.errors import ClearwayError
from clearway.ledger import Action, Change, append, head_hash, quarantined, read_ledger
from clearway.routing import project_routing, read_routing, write_routing
from clearway.state import (
    BRANCH,
    Remote,
    RunRecord,
    Store,
    join,
    last_run,
    needed_digests,
    pack_store,
    rejoin,
    replan_rollback,
    restore,
    save,
    verify_bundles,
)
from clearway.workspace import Workspace


@dataclass(frozen=True)
class Checkout:
    """A clone: what one run on one runner has."""

    workspace: Workspace
    remote: Remote

    def deploy(self, name: str, environment: str = "production") -> str:
        """Make a bundle whose payload is ``name``, keep it, and make it stable in the ledger."""
        payload = self.workspace.build / f"payload-{name}"
        payload.mkdir(parents=True)
        (payload / "model.onnx").write_text(name)
        bundle = pack(
            payload, {"note.txt": b"made by a test", "dvc.lock": b"stages: {}"}, self.workspace.build / f"bundle-{name}"
        )
        digest = keep(bundle.path, self.workspace.bundles)
        folder = self.workspace.environment(environment)
        change = Change(action="deploy", stable=digest, actor="test", reason="a test deploys")
        append(folder, environment, change, expected_head=head_hash(read_ledger(folder, environment)))
        return digest

    def record(self, action: Action, stable: str, environment: str = "production", *quarantines: str) -> None:
        folder = self.workspace.environment(environment)
        change = Change(action=action, stable=stable, quarantines=quarantines, actor="test", reason=f"a test: {action}")
        append(folder, environment, change, expected_head=head_hash(read_ledger(folder, environment)))
        table = project_routing(read_ledger(folder, environment), "salt")
        assert table is not None
        write_routing(folder / "routing.json", table)

    def save(self, run_id: str) -> str:
        pack_store(self.workspace)
        return save(self.workspace, self.remote, record(run_id), "clearway-store")


def record(run_id: str) -> RunRecord:
    return RunRecord.model_validate({"run_id": run_id, "trigger": "push", "commit": "c" * 40, "as_of": "2020-01-06"})


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A bare repository with one commit on main."""
    bare, first = tmp_path / "origin.git", tmp_path / "first"
    git(tmp_path, "init", "--quiet", "--bare", "-b", "main", str(bare))
    git(tmp_path, "init", "--quiet", "-b", "main", str(first))
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    git(first, *identity, "commit", "--quiet", "--allow-empty", "-m", "first")
    git(first, "push", "--quiet", str(bare), "main")
    return bare


def checkout(origin: Path, name: str) -> Checkout:
    folder = origin.parent / name
    git(origin.parent, "clone", "--quiet", "--single-branch", f"file://{origin}", str(folder))
    return Checkout(Workspace(folder), Remote(folder, waits=(0.0, 0.1)))


def checkout_of(origin: Path, name: str) -> Checkout:
    """One that was made before."""
    folder = origin.parent / name
    return Checkout(Workspace(folder), Remote(folder, waits=(0.0, 0.1)))


def carry_store(origin: Path, source: Checkout, target: Checkout) -> None:
    """Stand in for the artifact: what one run packed arrives in the ``var/`` of the next."""
    subprocess.run(["cp", "-r", f"{source.workspace.build / 'store'}/.", str(target.workspace.var)], check=True)


def test_a_first_run_says_so(origin: Path) -> None:
    run = checkout(origin, "run1")
    assert restore(run.workspace, run.remote).commit is None
    assert verify_bundles(run.workspace) == {}


def test_what_one_run_saves_the_next_restores(origin: Path) -> None:
    one = checkout(origin, "run1")
    restore(one.workspace, one.remote)
    old, new = one.deploy("old"), one.deploy("new")
    (one.workspace.var / "mlflow.db").write_text("runs")
    one.workspace.decisions.write_text('{"retrain":true}\n')
    one.save("1")

    two = checkout(origin, "run2")
    state = restore(two.workspace, two.remote)
    assert state.store == Store(run_id="1", artifact="clearway-store", bundles=tuple(sorted([old, new])))
    assert [entry.stable for entry in read_ledger(two.workspace.environment("production"), "production")] == [old, new]
    assert two.workspace.decisions.read_text() == '{"retrain":true}\n'
    assert last_run(two.workspace) == record("1")
    with pytest.raises(ClearwayError, match=r"bundle .* is missing: artifact clearway-store of run 1 .*expired"):
        verify_bundles(two.workspace)
    carry_store(origin, one, two)
    assert set(verify_bundles(two.workspace)) == {old, new}
    assert (two.workspace.var / "mlflow.db").read_text() == "runs"


def test_the_branch_shares_no_history_and_holds_only_small_text(origin: Path) -> None:
    one = checkout(origin, "run1")
    restore(one.workspace, one.remote)
    one.deploy("old")
    (one.workspace.environment("production") / "server.json").write_text("{}")
    one.save("1")
    assert git(origin, "ls-tree", "-r", "--name-only", BRANCH).split() == [
        "environments/production/head.json",
        "environments/production/ledger.jsonl",
        "run.json",
        "store.json",
    ]
    assert subprocess.run(["git", "-C", str(origin), "merge-base", "main", BRANCH], capture_output=True).returncode == 1
    assert not (one.workspace.build / "store/environments/production/server.json").exists()


def test_only_bundles_that_a_ledger_needs_are_packed(origin: Path) -> None:
    one = checkout(origin, "run1")
    oldest, old, new = one.deploy("oldest"), one.deploy("old"), one.deploy("new")
    assert set(needed_digests(one.workspace.var)) == {old, new}
    pack_store(one.workspace)
    assert {path.name for path in (one.workspace.build / "store/bundles").iterdir()} == {old, new}
    assert (one.workspace.bundles / oldest).is_dir()


def test_a_changed_bundle_stops(origin: Path) -> None:
    one = checkout(origin, "run1")
    digest = one.deploy("old")
    (one.workspace.bundles / digest / "payload/model.onnx").write_text("another model")
    with pytest.raises(ClearwayError, match=r"was changed on its way: .*model\.onnx has changed"):
        verify_bundles(one.workspace)


def test_a_tampered_ledger_stops_and_nothing_is_restored(origin: Path) -> None:
    one = checkout(origin, "run1")
    restore(one.workspace, one.remote)
    one.deploy("old")
    one.save("1")
    attacker = origin.parent / "attacker"
    git(origin.parent, "clone", "--quiet", "-b", BRANCH, str(origin), str(attacker))
    ledger = attacker / "environments/production/ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("a test deploys", "all is well"))
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    git(attacker, *identity, "commit", "--quiet", "-am", "nothing to see")
    git(attacker, "push", "--quiet")

    two = checkout(origin, "run2")
    with pytest.raises(ClearwayError, match=r"clearway-state at .*ledger\.jsonl line 1: hash is"):
        restore(two.workspace, two.remote)
    assert not two.workspace.var.exists()


def test_a_remote_that_does_not_answer_is_no_first_run(origin: Path) -> None:
    one = checkout(origin, "run1")
    git(one.workspace.root, "remote", "set-url", "origin", str(origin.parent / "gone.git"))
    with pytest.raises(ClearwayError, match="cannot be asked for its branches"):
        restore(one.workspace, one.remote)


def test_two_runs_that_changed_the_same_environment_do_not_both_win(origin: Path) -> None:
    one, two = checkout(origin, "run1"), checkout(origin, "run2")
    for run in (one, two):
        restore(run.workspace, run.remote)
    one.deploy("mine")
    two.deploy("yours")
    one.save("1")
    before = git(origin, "rev-parse", BRANCH)
    with pytest.raises(ClearwayError, match="both changed environments/production"):
        two.save("2")
    assert git(origin, "rev-parse", BRANCH) == before


@pytest.fixture
def overtaken(origin: Path) -> tuple[Checkout, list[str]]:
    """A run that rolled back, while another deployed to both environments and saved; and the digests in their order."""
    first = checkout(origin, "run0")
    restore(first.workspace, first.remote)
    digests = [first.deploy("good"), first.deploy("bad")]
    first.record("deploy", digests[1], "staging")
    first.save("10")
    back, delivery = checkout(origin, "run1"), checkout(origin, "run2")
    for run in (back, delivery):
        restore(run.workspace, run.remote)
        carry_store(origin, first, run)
    back.record("rollback", digests[0], "production", digests[1])
    digests.append(delivery.deploy("next", "staging"))
    delivery.record("promote", digests[2])
    delivery.save("11")
    return back, digests


def test_a_rollback_that_another_run_overtook_is_recorded_after_what_that_run_did(
    origin: Path, overtaken: tuple[Checkout, list[str]]
) -> None:
    back, (good, bad, following) = overtaken
    pack_store(back.workspace)
    with pytest.raises(ClearwayError, match="no one store holds all"):
        save(back.workspace, back.remote, record("12"), "clearway-store")  # without the bundles of the other run
    state = rejoin(back.workspace, back.remote)
    assert state is not None
    assert state.outputs == {"store_run": "11", "store_artifact": "clearway-store"}
    carry_store(origin, checkout_of(origin, "run2"), back)
    back.save("12")
    assert rejoin(back.workspace, back.remote) is not None, "its own push moved the branch"

    after = checkout(origin, "run3")
    restored = restore(after.workspace, after.remote)
    assert restored.store is not None
    assert set(restored.store.bundles) >= {good, following}
    entries = read_ledger(after.workspace.environment("production"), "production")
    assert [entry.action for entry in entries] == ["deploy", "deploy", "promote", "rollback"]
    assert entries[-1].stable == good
    assert quarantined(entries) == {bad, following}
    assert entries[-1].evidence["overtaken"].startswith("was entry 3 ")
    table = read_routing(after.workspace.environment("production") / "routing.json")
    assert (table.stable, table.revision, table.ledger_hash) == (good, 4, entries[-1].hash)
    assert read_ledger(after.workspace.environment("staging"), "staging")[-1].stable == following


def test_a_rollback_to_what_the_other_run_barred_is_not_repeated(overtaken: tuple[Checkout, list[str]]) -> None:
    back, (good, bad, _) = overtaken
    entries = read_ledger(back.workspace.environment("production"), "production")
    was = entries[:2]
    other = checkout_of(back.workspace.root.parent / "origin.git", "run2")
    other.record("quarantine", bad, "production", good)
    theirs = read_ledger(other.workspace.environment("production"), "production")
    assert replan_rollback(was, entries, theirs) is None
    assert replan_rollback(was, entries, theirs[:-1]) is not None
    assert replan_rollback(was, theirs[:-1], entries) is None, "a promotion is no rollback"
    assert replan_rollback(was, entries, theirs[1:]) is None, "not the same history"


def test_a_run_alone_has_nothing_to_join(origin: Path) -> None:
    one = checkout(origin, "run1")
    restore(one.workspace, one.remote)
    assert rejoin(one.workspace, one.remote) is None


def test_a_run_that_changed_nothing_yields_to_one_that_deployed(origin: Path) -> None:
    first = checkout(origin, "run0")
    restore(first.workspace, first.remote)
    first.deploy("first")
    first.workspace.decisions.write_text("0\n")
    first.save("10")
    one, two = checkout(origin, "run1"), checkout(origin, "run2")
    for run in (one, two):
        restore(run.workspace, run.remote)
        carry_store(origin, first, run)
        with run.workspace.decisions.open("a") as stream:
            stream.write(f"{run.workspace.root.name}\n")
    deployed = one.deploy("next")
    one.save("11")
    two.save("12")

    after = checkout(origin, "run3")
    state = restore(after.workspace, after.remote)
    assert read_ledger(after.workspace.environment("production"), "production")[-1].stable == deployed
    assert after.workspace.decisions.read_text() == "0\nrun1\nrun2\n"
    assert state.store is not None
    assert state.store.run_id == "11", "run 12 does not hold the bundle that run 11 deployed"
    assert state.run is not None
    assert state.run.run_id == "12"
    assert git(origin, "rev-list", "--count", BRANCH) == "3"


def test_another_runner_than_the_one_that_restored_may_save(origin: Path) -> None:
    first = checkout(origin, "run1")
    restore(first.workspace, first.remote)
    first.deploy("old")
    first.save("1")
    restoring, saving = checkout(origin, "run2-validate"), checkout(origin, "run2-save")
    restore(restoring.workspace, restoring.remote)
    carry_store(origin, first, restoring)
    subprocess.run(["cp", "-r", str(restoring.workspace.var), str(saving.workspace.var)], check=True)
    saving.save("2")
    assert json.loads(git(origin, "show", f"{BRANCH}:run.json"))["run_id"] == "2"


def test_a_branch_that_was_deleted_meanwhile_is_not_made_anew(origin: Path) -> None:
    first = checkout(origin, "run1")
    restore(first.workspace, first.remote)
    first.deploy("old")
    first.save("1")
    second = checkout(origin, "run2")
    restore(second.workspace, second.remote)
    carry_store(origin, first, second)
    git(origin, "branch", "-D", BRANCH)
    third = checkout(origin, "run3")
    subprocess.run(["cp", "-r", str(second.workspace.var), str(third.workspace.var)], check=True)
    with pytest.raises(ClearwayError, match="was rewritten or deleted while this run worked"):
        third.save("3")


def test_a_push_that_is_refused_is_no_lost_race(origin: Path) -> None:
    one = checkout(origin, "run1")
    restore(one.workspace, one.remote)
    hook = origin / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\necho protected branch >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(ClearwayError, match=r"refused clearway-state: .*protected branch"):
        one.save("1")


def test_a_push_that_the_network_lost_is_sent_again(origin: Path) -> None:
    one = checkout(origin, "run1")
    restore(one.workspace, one.remote)
    hook = origin / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\ntest -e tried && exit 0\ntouch tried\nexit 1\n")
    hook.chmod(0o755)
    assert "on clearway-state" in one.save("1")
    assert (origin / "tried").exists()


def test_a_remote_that_answers_late_is_asked_again(origin: Path) -> None:
    one = checkout(origin, "run1")
    away = origin.parent / "away.git"
    origin.rename(away)
    late = Remote(one.workspace.root, waits=(0.5, 2.0))
    back = threading.Timer(0.2, lambda: away.rename(origin))
    back.start()
    assert restore(one.workspace, late).commit is None
    back.join()


def test_of_two_copies_of_one_ledger_the_longer_one_stays(origin: Path) -> None:
    """A server elsewhere has the ledger; two runs saw it at different times."""
    one, two = checkout(origin, "run1"), checkout(origin, "run2")
    for run in (one, two):
        restore(run.workspace, run.remote)
    one.deploy("first")
    shutil.copytree(one.workspace.bundles, two.workspace.bundles)
    shutil.copytree(one.workspace.environment("production"), two.workspace.environment("production"))
    later = two.deploy("second")
    two.save("2")
    assert "on clearway-state" in one.save("1")
    after = checkout(origin, "run3")
    state = restore(after.workspace, after.remote)
    assert read_ledger(after.workspace.environment("production"), "production")[-1].stable == later
    assert state.store is not None
    assert state.store.run_id == "2"


def test_restore_does_not_overwrite_a_history(origin: Path) -> None:
    one, two = checkout(origin, "run1"), checkout(origin, "run2")
    restore(one.workspace, one.remote)
    one.deploy("old")
    one.save("1")
    two.deploy("local")
    with pytest.raises(ClearwayError, match="restore is for a fresh checkout"):
        restore(two.workspace, two.remote)


def test_a_link_on_the_branch_is_refused(origin: Path) -> None:
    work = origin.parent / "links"
    git(origin.parent, "clone", "--quiet", str(origin), str(work))
    git(work, "checkout", "--quiet", "--orphan", BRANCH)
    (work / "run.json").symlink_to("/etc/passwd")
    git(work, "add", "run.json")
    git(work, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "link")
    git(work, "push", "--quiet", "origin", BRANCH)
    one = checkout(origin, "run1")
    with pytest.raises(ClearwayError, match=r"run\.json is no plain file"):
        restore(one.workspace, one.remote)


def test_a_path_on_the_branch_that_leaves_its_folder_is_not_written(origin: Path) -> None:
    """Plumbing makes such a tree, and neither push nor fetch refuses it."""
    one = checkout(origin, "run1")
    restore(one.workspace, one.remote)
    one.deploy("good")
    one.save("1")
    work = origin.parent / "forger"
    git(origin.parent, "clone", "--quiet", "--branch", BRANCH, str(origin), str(work))

    def tree(*entries: str) -> str:
        made = subprocess.run(
            ["git", "-C", str(work), "mktree"], input="\n".join(entries), capture_output=True, text=True, check=True
        )
        return made.stdout.strip()

    for name in ("canary.json", "evil"):
        (work / name).write_text("{}")
    blob = git(work, "hash-object", "-w", "canary.json")
    kept = git(work, "ls-tree", "HEAD:environments").splitlines()
    leaving = tree(*kept, f"040000 tree {tree(f'100644 blob {blob}' + chr(9) + 'canary.json')}\t..")
    root = [row for row in git(work, "ls-tree", "HEAD").splitlines() if not row.endswith("\tenvironments")]
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    forged = tree(*root, f"040000 tree {leaving}\tenvironments")
    commit = git(work, *identity, "commit-tree", forged, "-p", "HEAD", "-m", "forged")
    git(work, "push", "--quiet", "origin", f"{commit}:refs/heads/{BRANCH}")
    assert "environments/../canary.json" in git(work, "ls-tree", "-r", "--name-only", commit)

    two = checkout(origin, "run2")
    restore(two.workspace, two.remote)
    assert not (two.workspace.var / "canary.json").exists()
    assert read_ledger(two.workspace.environment("production"), "production")


def test_joined_logs_must_only_grow() -> None:
    with pytest.raises(ClearwayError, match=r"lines of decisions\.jsonl were changed"):
        join({"decisions.jsonl": b"a\n"}, {"decisions.jsonl": b"b\n"}, {"decisions.jsonl": b"a\nc\n"})


def test_the_token_is_sent_to_its_own_host_and_shown_nowhere(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """git itself says which header it would send where; an error about the remote does not repeat it."""
    one = checkout(origin, "run1")
    git(one.workspace.root, "remote", "set-url", "origin", "https://127.0.0.1:1/team/model")
    remote = Remote(one.workspace.root, token="secret-token")
    with pytest.raises(ClearwayError) as caught:
        remote.head()
    assert "secret" not in str(caught.value)
    assert "secret" not in (one.workspace.root / ".git/config").read_text()
    settings = {key: value for key, value in remote._authorised.items() if key.startswith("GIT_CONFIG")}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    folder = one.workspace.root
    own = git(folder, "config", "--get-urlmatch", "http.extraheader", "https://127.0.0.1:1/team/model")
    assert own.startswith("AUTHORIZATION: basic ")
    command = [
        "git",
        "-C",
        str(folder),
        "config",
        "--get-urlmatch",
        "http.extraheader",
        "https://example.org/team/model",
    ]
    assert subprocess.run(command, capture_output=True).stdout == b""


def test_a_store_of_another_shape_is_refused(origin: Path) -> None:
    one = checkout(origin, "run1")
    restore(one.workspace, one.remote)
    one.deploy("old")
    (one.workspace.var / "store.json").write_text(json.dumps({"run_id": "1; rm -rf", "artifact": "x", "bundles": []}))
    with pytest.raises(ClearwayError, match=r"store\.json of clearway-state is damaged"):
        verify_bundles(one.workspace)
