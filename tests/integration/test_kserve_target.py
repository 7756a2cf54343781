"""An environment that KServe serves: over real HTTP, held to KServe's schema and the way it moves traffic."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
from far_server import self_signed
from hand_made import make_bundle, write_params
from kube_server import Cluster, Fault, faults_of, kubernetes
from live_server import REPOSITORY, until

from clearway.bundle import Bundle
from clearway.deployment import deploy, open_shadow, quarantine, release, rollback, serve_again
from clearway.errors import ClearwayError, UsageError
from clearway.kserve import manifest
from clearway.ledger import anchor_file, ledger_file, quarantined, read_ledger
from clearway.local_target import describe_server, find_server
from clearway.params import KServeTargetParams, Params, load_params
from clearway.reconciliation import examine, repair
from clearway.rollout import tick
from clearway.targets import kserve as target_module
from clearway.targets import target_of
from clearway.workspace import Workspace

ENV = "live"
IMAGE = "registry.example.org/apples@sha256:" + "1" * 64
WHO = {"actor": "ann", "reason": "a test"}
RELEASES = {"next": {"port": 0, "requires": ENV}}
"""An environment after it, so that deploying asks no registry."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARWAY_LIVE_TOKEN", "t" * 20)
    monkeypatch.delenv("CLEARWAY_LIVE_URL", raising=False)
    monkeypatch.setattr(target_module, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(target_module, "REFUSAL_SECONDS", 0.05)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    made = tmp_path_factory.mktemp("made")
    return {name: make_bundle(made, score) for name, score in {"a": 0.25, "b": 0.26, "c": 0.27, "d": 0.28}.items()}


@dataclass
class Site:
    """A machine that commands the environment."""

    workspace: Workspace
    cluster: Cluster
    bundles: dict[str, Bundle]

    @property
    def params(self) -> Params:
        return _loaded(self.workspace.params_file, self.workspace.params_file.read_bytes())

    @property
    def folder(self) -> Path:
        return self.workspace.environment(ENV)

    @property
    def volume(self) -> Path:
        return self.workspace.root / "volume"

    def deploy(self, name: str, weight: int | None = None) -> Any:
        return deploy(self.params, self.workspace, ENV, self.bundles[name].digest, weight, **WHO)

    def rollback(self, to: str | None = None) -> Any:
        digest = None if to is None else self.bundles[to].digest
        return rollback(self.params, self.workspace, ENV, digest, **WHO)

    def served(self) -> dict[str, int]:
        names = {bundle.digest: name for name, bundle in self.bundles.items()}
        return {names.get(digest, digest): percent for digest, percent in self.cluster.shares().items()}

    def ever(self, since: int = 0) -> set[str]:
        """Who has answered anybody."""
        names = {bundle.digest: name for name, bundle in self.bundles.items()}
        return {names.get(each, each) for shares in self.cluster.answered[since:] for each in shares}

    def history(self) -> list[tuple[str, int]]:
        return [(entry.action, entry.canary_weight) for entry in read_ledger(self.folder, ENV)]

    def agrees(self) -> bool:
        return all(each.agrees for each in examine(self.params, self.workspace, ENV))

    def change(self, **target: Any) -> None:
        """Settings of the target from now on."""
        content = json.loads(json.dumps(self.params.environments[ENV].target.model_dump()))
        write_site(self.workspace.root, {**content, **target})

    def friend(self, root: Path) -> "Site":
        """Another machine with the same settings and none of the state."""
        root.mkdir()
        shutil.copy(self.workspace.params_file, root / "params.yaml")
        other = Site(Workspace(root), self.cluster, self.bundles)
        keep_here(other)
        return other

    def answers(self, name: str, count: int, first: int, status: int = 200) -> None:
        """What pods write: they know no ledger, so their revision says nothing."""
        self.volume.mkdir(exist_ok=True)
        now = datetime.now(UTC) + timedelta(seconds=1)
        with (self.volume / f"{now:%Y%m%d}-7-0000000{name}-0.jsonl").open("ab") as stream:
            for number in range(first, first + count):
                record = {"id": f"r{number}", "revision": 1, "version": self.bundles[name].digest, "role": "stable"}
                record |= {"entity": f"e{number}", "asked_at": now.isoformat(), "served_at": now.isoformat()}
                record |= {"status": status, "latency_ms": 3.0, "score": 0.25 if status == 200 else None}
                stream.write(orjson.dumps({**record, "features": {"weight": 180.5}}, option=orjson.OPT_APPEND_NEWLINE))


@cache
def _loaded(path: Path, content: bytes) -> Params:
    return load_params(path)


def write_site(root: Path, target: dict[str, Any]) -> Workspace:
    environments = {ENV: {"port": 8080, "target": target}, **RELEASES}
    log = {"log": {"compact_minutes": None}}
    return write_params(root, environments, serving=log)  # type: ignore[arg-type]


def keep_here(site: Site) -> None:
    for bundle in site.bundles.values():
        shutil.copytree(bundle.path, site.workspace.bundles / bundle.digest)


@pytest.fixture
def site(tmp_path: Path, bundles: dict[str, Bundle]) -> Iterator[Site]:
    cluster = Cluster()
    with kubernetes(cluster) as url:
        target = {
            "kind": "kserve",
            "api": url,
            "namespace": "models",
            "name": "apples",
            "image": IMAGE,
            "bundles": f"file://{tmp_path / 'store'}",
            "storage_uri": "pvc://models/apples",
            "log_claim": "predictions",
            "log_folder": "volume",
            "retries": 1,
            "timeout_seconds": 5.0,
            "ready_seconds": 5.0,
        }
        root = tmp_path / "site"
        found = Site(write_site(root, target), cluster, bundles)
        keep_here(found)
        found.volume.mkdir()
        yield found


# --- manifests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [None, 0, 10, 99])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"service_account": "reader", "log_claim": "predictions", "log_folder": "v"},
        {"min_replicas": 0, "max_replicas": 40, "cpu": "1500m", "memory": "0.5Gi", "env": {"CLEARWAY_REDIS": "r:6379"}},
    ],
)
def test_every_manifest_is_what_kserves_own_schema_asks_for(percent: int | None, more: dict[str, Any]) -> None:
    base = {"kind": "kserve", "namespace": "n", "name": "a", "image": IMAGE, "bundles": "s3://models/apples/"}
    made = manifest(KServeTargetParams.model_validate({**base, **more}), ENV, 8080, "a" * 64, percent)
    assert faults_of(made) == []
    (container,) = made["spec"]["predictor"]["containers"]
    assert {"name": "STORAGE_URI", "value": f"s3://models/apples/{'a' * 64}"} in container["env"]
    assert container["args"] == ["--bundle", "/mnt/models", "--digest", "a" * 64]
    assert made["spec"]["predictor"].get("canaryTrafficPercent") == percent


def test_the_schema_refuses_what_kserve_would_refuse() -> None:
    settings = KServeTargetParams(kind="kserve", namespace="n", name="a", image=IMAGE, bundles="s3://m")
    made = manifest(settings, ENV, 8080, "a" * 64, 10)
    predictor = made["spec"]["predictor"]
    for wrong in ({"canaryTrafficPercent": "10"}, {"canaryWeight": 10}, {"containers": [{"image": IMAGE, "arg": []}]}):
        assert faults_of({**made, "spec": {"predictor": {**predictor, **wrong}}}), wrong


def test_the_weight_is_no_part_of_a_template_so_that_a_promotion_starts_no_pod() -> None:
    settings = KServeTargetParams(kind="kserve", namespace="n", name="a", image=IMAGE, bundles="s3://m")
    ten, all_of_it = (manifest(settings, ENV, 8080, "a" * 64, percent) for percent in (10, None))
    assert ten["spec"]["predictor"].pop("canaryTrafficPercent") == 10
    assert ten == all_of_it


# --- deployments -----------------------------------------------------------------------------------------------------


def test_a_version_replaces_another_when_it_is_ready_and_not_before(site: Site) -> None:
    outcome = site.deploy("a")
    assert outcome.server.url == "http://apples.models.example.org"
    assert (site.served(), site.agrees()) == ({"a": 100}, True)
    site.deploy("b")
    assert (site.served(), site.ever(), site.history()) == ({"b": 100}, {"a", "b"}, [("deploy", 0), ("deploy", 0)])
    assert sorted(path.name for path in (site.workspace.root.parent / "store").glob("?" * 64)) == sorted(
        site.bundles[name].digest for name in "ab"
    )
    assert "canaryTrafficPercent" not in site.cluster.service()["spec"]["predictor"]
    assert not site.deploy("b").changed


def test_a_canary_is_judged_by_what_pods_logged_promoted_and_rolled_back_by_revision(site: Site) -> None:
    site.deploy("a")
    site.deploy("b", 25)
    assert (site.served(), site.agrees()) == ({"a": 75, "b": 25}, True)
    with pytest.raises(ClearwayError, match="has not been given"):
        site.deploy("b", 50)
    site.answers("a", 750, 0)
    site.answers("b", 250, 750)
    first = tick(site.params, site.workspace, ENV, actor="ann")
    assert (first.verdict.n_canary, first.verdict.n_stable, first.verdict.verdict) == (250, 750, "promote")
    site.deploy("b", 50)
    assert site.served() == {"a": 50, "b": 50}
    shutil.rmtree(site.volume)
    site.answers("a", 500, 2000)
    site.answers("b", 500, 2500)
    assert tick(site.params, site.workspace, ENV, actor="ann").verdict.verdict == "promote"
    site.deploy("b", 100)
    assert (site.served(), site.agrees(), len(site.cluster.revisions())) == ({"b": 100}, True, 2)
    back = site.rollback()
    assert (site.served(), back.entry.quarantines) == ({"a": 100}, (site.bundles["b"].digest,))
    assert (len(site.cluster.revisions()), site.agrees()) == (2, True), "KServe went back to a revision it had"
    with pytest.raises(ClearwayError, match="is quarantined in live"):
        site.deploy("b")


def test_a_bad_canary_is_rolled_back_by_its_log(site: Site) -> None:
    site.deploy("a")
    site.deploy("b", 25)
    site.answers("a", 3000, 0)
    site.answers("b", 1000, 3000, status=500)
    assert tick(site.params, site.workspace, ENV, actor="ann").verdict.verdict == "rollback"
    assert site.served() == {"a": 100}
    assert site.bundles["b"].digest in quarantined(read_ledger(site.folder, ENV))


def test_what_was_barred_answers_nobody_while_the_next_version_starts(site: Site) -> None:
    """KServe gives the newest version's share to the latest that is ready: after a rollback that is the barred one."""
    site.deploy("a")
    site.deploy("b")
    site.rollback()
    since = len(site.cluster.answered)
    site.deploy("c")
    assert site.ever(since) == {"a", "c"}
    site.rollback()
    since = len(site.cluster.answered)
    site.deploy("d", 25)
    assert (site.ever(since), site.served()) == ({"a", "d"}, {"a": 75, "d": 25})


def test_going_back_further_than_one_revision_makes_a_new_one_of_the_old_version(site: Site) -> None:
    for name in "abc":
        site.deploy(name)
    site.rollback("a")
    assert (site.served(), len(site.cluster.revisions()), site.agrees()) == ({"a": 100}, 4, True)
    assert quarantined(read_ledger(site.folder, ENV)) == {site.bundles["c"].digest}


def test_a_rollback_works_where_knative_has_removed_the_old_revision(site: Site) -> None:
    site.deploy("a")
    site.deploy("b")
    gone = next(path for path in site.cluster.objects if path.endswith("predictor-00001"))
    del site.cluster.objects[gone]
    site.rollback()
    assert (site.served(), len(site.cluster.revisions())) == ({"a": 100}, 2)


def test_a_rollback_needs_no_store_where_the_version_still_runs(site: Site) -> None:
    site.deploy("a")
    site.deploy("b")
    shutil.rmtree(site.workspace.root.parent / "store")
    shutil.rmtree(site.workspace.bundles)
    site.rollback()
    assert site.served() == {"a": 100}


def test_entries_that_move_no_traffic_start_no_pod(site: Site) -> None:
    site.deploy("a")
    other = site.bundles["d"].digest
    quarantine(site.params, site.workspace, ENV, other, **WHO)
    release(site.params, site.workspace, ENV, other, **WHO)
    assert (len(site.cluster.revisions()), site.agrees()) == (1, True)


# --- what does not come up -------------------------------------------------------------------------------------------


def test_a_version_that_does_not_start_answers_nobody_and_says_why(site: Site) -> None:
    site.deploy("a")
    site.cluster.broken[site.bundles["b"].digest] = "error: bundle 12 fails its warm-up"
    with pytest.raises(ClearwayError, match=r"recorded .* and not served yet.*fails its warm-up.*traffic goes to"):
        site.deploy("b")
    assert (site.served(), site.agrees()) == ({"a": 100}, False)
    site.rollback()
    assert (site.served(), site.agrees()) == ({"a": 100}, True)


def test_a_canary_that_does_not_start_gets_no_traffic_and_its_rollback_waits_for_nothing(site: Site) -> None:
    site.deploy("a")
    site.cluster.broken[site.bundles["b"].digest] = "out of memory"
    with pytest.raises(ClearwayError, match="out of memory"):
        site.deploy("b", 25)
    site.rollback()
    assert (site.served(), site.ever(), site.agrees()) == ({"a": 100}, {"a"}, True)


def test_a_first_version_that_does_not_start_is_made_again_with_corrected_settings(site: Site) -> None:
    site.cluster.broken[IMAGE] = "exec format error"
    with pytest.raises(ClearwayError, match="exec format error"):
        site.deploy("a")
    site.change(image="registry.example.org/apples@sha256:" + "2" * 64)
    serve_again(site.params, site.workspace, ENV)
    assert (site.served(), site.agrees()) == ({"a": 100}, True)


def test_settings_alone_restart_nothing(site: Site) -> None:
    site.deploy("a")
    site.change(memory="2Gi")
    serve_again(site.params, site.workspace, ENV)
    assert len(site.cluster.revisions()) == 1
    site.deploy("b")
    site.rollback()
    assert (site.served(), len(site.cluster.revisions())) == ({"a": 100}, 2)


@pytest.mark.parametrize("mode", ["Standard", "RawDeployment"])
def test_a_mode_that_splits_no_traffic_is_refused(mode: str, site: Site) -> None:
    site.cluster.mode = mode
    with pytest.raises(ClearwayError, match=f"mode {mode}, which splits no traffic"):
        site.deploy("a")
    with pytest.raises(ClearwayError, match="splits no traffic"):
        site.deploy("b")
    assert len(site.history()) == 1


# --- killed, and two at once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", range(4))
@pytest.mark.parametrize("action", ["deploy", "canary", "rollback"])
def test_what_a_killed_command_left_is_finished_or_was_never_begun(action: str, writes: int, site: Site) -> None:
    """Writes of a deployment: ledger, template, weight, when it was served. After so many of them nothing answers."""
    site.deploy("a")
    if action == "rollback":
        site.deploy("b")
    before = len(site.history())
    site.cluster.writes_left = writes
    with contextlib.suppress(ClearwayError):
        {"deploy": lambda: site.deploy("b"), "canary": lambda: site.deploy("b", 25), "rollback": site.rollback}[
            action
        ]()
    assert not site.ever() - {"a", "b"}
    site.cluster.writes_left = None
    other = site.friend(site.workspace.root.parent / "friend")
    recorded = json.loads(site.cluster.ledger()["data"]["ledger"].splitlines()[-1])
    assert recorded["sequence"] == before + (writes > 0), "an entry is there as soon as one write was taken"
    quarantine(other.params, other.workspace, ENV, site.bundles["d"].digest, **WHO)  # any command carries on
    serve_again(other.params, other.workspace, ENV)
    wanted = {"deploy": {"b": 100}, "canary": {"a": 75, "b": 25}, "rollback": {"a": 100}}[action]
    unchanged = {"b": 100} if action == "rollback" else {"a": 100}
    assert site.served() == (wanted if writes > 0 else unchanged)
    assert other.agrees()
    assert [entry.hash for entry in read_ledger(other.folder, ENV)][: before + 1] == [
        json.loads(line)["hash"] for line in site.cluster.ledger()["data"]["ledger"].splitlines()
    ][: before + 1]


def test_of_two_machines_at_once_one_wins_and_the_other_is_told(site: Site) -> None:
    site.deploy("a")
    other = site.friend(site.workspace.root.parent / "friend")
    outcomes: dict[str, Any] = {}
    ready = threading.Barrier(2)

    def go(who: Site, name: str) -> None:
        ready.wait()
        try:
            outcomes[name] = who.deploy(name)
        except ClearwayError as error:
            outcomes[name] = str(error)

    threads = [threading.Thread(target=go, args=each) for each in ((site, "b"), (other, "c"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [each for each in outcomes.values() if isinstance(each, str)]
    assert len(told) <= 1, outcomes
    assert all("moved" in each for each in told), outcomes
    serve_again(site.params, site.workspace, ENV)
    entries = read_ledger(site.folder, ENV)
    assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
    assert site.served() == {
        next(name for name, each in site.bundles.items() if each.digest == entries[-1].stable): 100
    }
    assert site.agrees()
    assert other.agrees()


def test_a_change_that_was_decided_on_an_older_head_is_refused_by_the_cluster(site: Site) -> None:
    """Between this machine's look at the ledger and its write, another one writes."""
    site.deploy("a")
    other = site.friend(site.workspace.root.parent / "friend")
    target = target_of(site.params, site.workspace, ENV)
    target.pull()
    seen = read_ledger(site.folder, ENV)
    other.deploy("b")
    from clearway.ledger import Change

    change = Change(action="rollback", stable=seen[-1].stable, **WHO)
    with pytest.raises(ClearwayError, match="the ledger of live moved: expected entry 1"):
        target.record(change, seen[-1].hash)
    assert other.history() == [("deploy", 0), ("deploy", 0)]
    assert len(read_ledger(site.folder, ENV)) == 1


def test_a_write_whose_answer_was_lost_is_recognised_and_not_made_twice(site: Site) -> None:
    site.deploy("a")
    site.cluster.faults.append(Fault("PUT", "configmaps", "lose"))
    site.deploy("b")
    assert (site.history(), site.served()) == ([("deploy", 0), ("deploy", 0)], {"b": 100})


@pytest.mark.parametrize(
    ("method", "kind"),
    [("GET", "503"), ("GET", "cut"), ("PATCH", "500"), ("PATCH", "429"), ("PATCH", "drop"), ("PATCH", "lose")],
)
def test_what_passes_is_asked_again(method: str, kind: str, site: Site) -> None:
    site.deploy("a")
    site.cluster.faults.append(Fault(method, "inferenceservices", kind))
    site.deploy("b")
    assert (site.served(), len(site.cluster.revisions())) == ({"b": 100}, 2)


def test_somebody_who_changes_the_service_meanwhile_is_written_over_from_a_new_look(site: Site) -> None:
    site.deploy("a")
    site.cluster.faults.append(Fault("PATCH", "inferenceservices", "409", message="the object has been modified"))
    site.deploy("b")
    assert site.served() == {"b": 100}


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("401", r"does not accept the token \(401: no\): set CLEARWAY_LIVE_TOKEN"),
        ("403", r"the token may not GET .*\(403: no\): grant it deploy/kserve-role\.yaml"),
        ("500", r"answers GET .* with 500: no"),
        ("302", r"with a redirection \(302\)"),
        ("drop", r"is out of reach \(2 attempts\)"),
        ("cut", r"is out of reach \(2 attempts\)"),
        ("drip", r"is out of reach \(2 attempts\): the answer took longer than 0\.2 s"),
    ],
)
def test_an_api_that_does_not_answer_properly_changes_nothing(fault: str, said: str, site: Site) -> None:
    site.deploy("a")
    site.change(timeout_seconds=0.2 if fault == "drip" else 5.0)
    site.cluster.faults.append(Fault("GET", "configmaps", fault, times=9, message="no"))
    with pytest.raises(ClearwayError, match=said) as caught:
        site.deploy("b")
    site.cluster.faults.clear()
    assert "\n" not in str(caught.value)
    assert "t" * 20 not in str(caught.value)
    assert len(site.history()) == 1
    assert site.agrees()
    site.cluster.faults.append(Fault("GET", "configmaps", fault, times=9, message="no"))
    found, *_ = examine(site.params, site.workspace, ENV)
    assert not found.agrees


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda cluster: setattr(cluster, "installed", False), "install KServe"),
        (lambda cluster: setattr(cluster, "token", "another"), r"does not accept the token \(401"),
        (lambda cluster: cluster.forbidden.add("PATCH"), r"cannot patch it\): grant it deploy/kserve-role\.yaml"),
        (lambda cluster: setattr(cluster, "refused", "quota exceeded"), "with 422: quota exceeded"),
    ],
)
def test_what_the_cluster_will_not_have_is_refused_before_anything_is_recorded(
    break_it: Any, said: str, site: Site
) -> None:
    break_it(site.cluster)
    with pytest.raises(ClearwayError, match=said):
        site.deploy("a")
    assert not site.cluster.objects
    assert not ledger_file(site.folder).exists()


def test_a_certificate_of_nobody_is_refused_and_a_named_authority_is_not(site: Site, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path / "authority.pem")
    with kubernetes(site.cluster, certificate) as url:
        site.change(api=url)
        with pytest.raises(ClearwayError, match=r"its certificate is not trusted .*target\.ca_file"):
            site.deploy("a")
        site.change(api=url, ca_file=str(certificate))
        site.deploy("a")
    assert site.served() == {"a": 100}


def test_tokens_are_missing_or_no_tokens(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("", "two words"):
        monkeypatch.setenv("CLEARWAY_LIVE_TOKEN", token)
        with pytest.raises(UsageError, match="CLEARWAY_LIVE_TOKEN"):
            site.deploy("a")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"image": "apples:latest"}, "image"),
        ({"name": "Apples"}, "name"),
        ({"max_replicas": 0}, "max_replicas"),
        ({"min_replicas": 5}, "less than min_replicas"),
        ({"log_folder": None}, "belong together"),
        ({"env": {"STORAGE_URI": "s3://x"}}, "the manifest does"),
        ({"bundles": "models"}, "bundles"),
        ({"api": "http://10.0.0.1"}, "unencrypted"),
        ({"api": None}, "this is no pod"),
    ],
)
def test_settings_that_cannot_be_meant(
    more: dict[str, Any], said: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    content = site.params.environments[ENV].target.model_dump()
    write_site(site.workspace.root, {**content, **more})
    with pytest.raises(UsageError, match=said):
        target_of(site.params, site.workspace, ENV)


def test_pods_that_share_a_log_may_not_compact_it(site: Site) -> None:
    target = site.params.environments[ENV].target.model_dump()
    write_params(site.workspace.root, {ENV: {"port": 8080, "target": target}})
    with pytest.raises(UsageError, match="compact_minutes: null"):
        load_params(site.workspace.params_file)


# --- what KServe cannot do -------------------------------------------------------------------------------------------


def test_without_their_log_no_canary_begins_and_nothing_is_judged(site: Site) -> None:
    site.change(log_claim=None, log_folder=None)
    site.deploy("a")
    with pytest.raises(ClearwayError, match="no canary can be judged in live"):
        site.deploy("b", 25)
    with pytest.raises(ClearwayError, match="the prediction log of live is in its pods"):
        target_of(site.params, site.workspace, ENV).pull_log()
    assert len(site.history()) == 1


def test_a_log_folder_that_is_not_mounted_gives_no_verdict(site: Site) -> None:
    site.deploy("a")
    site.deploy("b", 25)
    shutil.rmtree(site.volume)
    with pytest.raises(ClearwayError, match="there is no such folder: mount the volume"):
        tick(site.params, site.workspace, ENV, actor="ann")


def test_answers_from_before_a_version_had_its_traffic_are_no_evidence(site: Site) -> None:
    site.deploy("a")
    site.answers("a", 5, 0)
    site.deploy("b", 25)
    file = next(site.volume.glob("*.jsonl"))
    old = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [{**each, "served_at": "2020-01-01T00:00:00+00:00"} for each in old]
    file.write_text("".join(json.dumps(each) + "\n" for each in lines) + "not json\n")
    target_of(site.params, site.workspace, ENV).pull_log()
    kept = (site.folder / "predictions" / file.name).read_text().splitlines()
    assert [json.loads(line)["revision"] for line in kept[:-1]] == [0] * 5
    assert kept[-1] == "not json"


def test_shadows_switches_and_tests_of_users_are_refused_before_they_are_recorded(site: Site) -> None:
    site.deploy("a")
    with pytest.raises(ClearwayError, match="is served elsewhere"):
        open_shadow(site.params, site.workspace, ENV, site.bundles["b"].digest, **WHO)
    with pytest.raises(ClearwayError, match="nothing watches a switch"):
        deploy(site.params, site.workspace, ENV, site.bundles["b"].digest, strategy="blue-green", **WHO)
    assert (len(site.history()), site.agrees()) == (1, True)


# --- the ledger in the cluster ---------------------------------------------------------------------------------------


def test_a_machine_that_knows_nothing_takes_the_ledger_and_the_bundles_from_the_cluster(site: Site) -> None:
    site.deploy("a")
    site.deploy("b")
    root = site.workspace.root.parent / "friend"
    root.mkdir()
    shutil.copy(site.workspace.params_file, root / "params.yaml")
    other = Site(Workspace(root), site.cluster, site.bundles)
    other.rollback()
    assert (other.served(), len(other.history())) == ({"a": 100}, 3)
    target_of(other.params, other.workspace, ENV).fetch(site.bundles["b"].digest)
    assert (other.workspace.bundles / site.bundles["b"].digest).is_dir()


def test_a_bundle_that_was_changed_in_the_store_is_not_taken(site: Site) -> None:
    site.deploy("a")
    digest = site.bundles["a"].digest
    shutil.rmtree(site.workspace.bundles / digest)
    (site.workspace.root.parent / "store" / digest / "payload" / "params.json").write_text("{}")
    with pytest.raises(ClearwayError, match=r"params\.json"):
        target_of(site.params, site.workspace, ENV).fetch(digest)
    assert not (site.workspace.bundles / digest).exists()


def test_a_ledger_that_was_rewritten_cut_or_lost_is_refused(site: Site) -> None:
    site.deploy("a")
    site.deploy("b")
    path = next(path for path in site.cluster.objects if "/configmaps/" in path)
    data = site.cluster.objects[path]["data"]
    whole = data["ledger"]
    for changed, said in (
        (whole.splitlines(keepends=True)[0], "cut"),
        ("no json\n", "is no ledger entry"),
    ):
        data["ledger"] = changed
        with pytest.raises(ClearwayError, match=said):
            site.rollback()
    other = site.friend(site.workspace.root.parent / "friend")
    barred = whole.splitlines(keepends=True)
    barred[-1] = barred[-1].replace(f'"stable":"{site.bundles["b"].digest}"', f'"stable":"{site.bundles["c"].digest}"')
    data["ledger"] = "".join(barred)  # under the hash of before
    with pytest.raises(ClearwayError, match=r"damaged: ledger\.jsonl line 2"):
        other.rollback()
    serve_again(site.params, site.workspace, ENV)  # knows better
    assert site.served() == {"b": 100}
    data["ledger"], data["project"] = whole, "pears"
    with pytest.raises(ClearwayError, match="is of project 'pears'"):
        site.rollback()
    lost = site.cluster.objects.pop(path)
    with pytest.raises(
        ClearwayError, match=r"is missing, yet InferenceService apples exists.*kubectl create configmap"
    ):
        site.rollback()
    copied = ledger_file(site.folder).read_text()
    site.cluster.put(path, {**lost, "data": {"project": "apples", "ledger": copied}})  # as the message says
    site.rollback()
    assert (site.served(), site.agrees()) == ({"a": 100}, True)


def test_the_configmap_keeps_the_newest_entries_and_a_machine_with_the_rest_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_module, "LEDGER_BYTES", 1500)
    for name in "abc":
        site.deploy(name)
    site.rollback()
    kept = site.cluster.ledger()["data"]["ledger"].splitlines()
    assert len(kept) < 4
    assert json.loads(kept[-1])["sequence"] == 4
    assert len(site.history()) == 4
    assert site.agrees()
    root = site.workspace.root.parent / "friend"
    other = site.friend(root)
    with pytest.raises(ClearwayError, match=r"begins with entry \d, and .* knows 0: bring"):
        other.rollback()
    other.folder.mkdir(parents=True, exist_ok=True)
    for path in (ledger_file(site.folder), anchor_file(site.folder)):
        shutil.copy(path, other.folder / path.name)
    assert other.agrees()


# --- what it says it serves ------------------------------------------------------------------------------------------


def test_traffic_that_somebody_moved_by_hand_is_found_and_put_right(site: Site) -> None:
    site.deploy("a")
    site.deploy("b", 25)
    path = next(path for path in site.cluster.objects if "/inferenceservices/" in path)
    site.cluster.merge(path, {"spec": {"predictor": {"canaryTrafficPercent": 80}}})
    for _ in range(3):
        site.cluster.reconcile(path)
    found = {each.part: each for each in examine(site.params, site.workspace, ENV)}
    assert not found["server"].agrees
    assert "canary_weight is" in found["server"].sentence
    repair(site.params, site.workspace, ENV)
    assert (site.served(), site.agrees()) == ({"a": 75, "b": 25}, True)


def test_a_service_that_was_deleted_is_found_and_made_again_with_its_canary(site: Site) -> None:
    site.deploy("a")
    site.deploy("b", 25)
    for path in [path for path in site.cluster.objects if "/configmaps/" not in path]:
        del site.cluster.objects[path]
    site.cluster._knative.clear()
    found = {each.part: each for each in examine(site.params, site.workspace, ENV)}
    assert not found["server"].agrees
    repair(site.params, site.workspace, ENV)
    assert (site.served(), site.agrees()) == ({"a": 75, "b": 25}, True)


@pytest.mark.lines
def test_the_scripts_speak_to_it(site: Site) -> None:
    def script(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(REPOSITORY / "scripts" / name), "--project", str(site.workspace.root)]
        environ = {**os.environ, "CLEARWAY_LIVE_TOKEN": "t" * 20}
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=240, env=environ)

    done = script("deploy.py", "--env", ENV, "--digest", site.bundles["a"].digest)
    assert (done.returncode, done.stderr) == (0, "")
    assert "→ http://apples.models.example.org/predict" in done.stdout
    agreed = script("reconcile.py", "--env", ENV)
    assert (agreed.returncode, agreed.stdout.count("agrees")) == (0, 4)


# --- a pod -----------------------------------------------------------------------------------------------------------


def test_a_pod_serves_the_bundle_that_its_manifest_names_and_no_other(tmp_path: Path, site: Site) -> None:
    """What the container runs: ``serve.py --bundle /mnt/models --digest …``."""
    made = manifest(site.params.environments[ENV].target, ENV, 8080, site.bundles["a"].digest, None)  # type: ignore[arg-type]
    _, folder, _, digest = made["spec"]["predictor"]["containers"][0]["args"]
    assert folder == "/mnt/models"
    from clearway.serving.alone import serve_alone

    workspace = write_params(tmp_path / "pod", {ENV: {"port": 0, "target": {"kind": "kserve", **_minimal()}}})
    params = load_params(workspace.params_file)
    with pytest.raises(ClearwayError, match="digest"):
        serve_alone(params, workspace, ENV, site.bundles["b"].path, digest)
    assert not (workspace.environment(ENV) / "routing.json").exists()
    with pytest.raises(UsageError, match="64"):
        serve_alone(params, workspace, ENV, site.bundles["a"].path, "abc")
    serve_alone(params, workspace, ENV, site.bundles["a"].path, digest)
    serve_alone(params, workspace, ENV, site.bundles["a"].path, digest)  # its container starts again
    with pytest.raises(ClearwayError, match="whose var/ is empty"):
        serve_alone(params, workspace, ENV, site.bundles["b"].path, site.bundles["b"].digest)


@pytest.mark.lines
def test_what_a_pod_runs_answers(tmp_path: Path, site: Site) -> None:
    workspace = write_params(tmp_path / "pod", {ENV: {"port": 0, "target": {"kind": "kserve", **_minimal()}}})
    bundle = site.bundles["a"]
    command = [sys.executable, str(REPOSITORY / "scripts" / "serve.py"), "--env", ENV, "--host", "127.0.0.1"]
    command += ["--project", str(workspace.root), "--bundle", str(bundle.path), "--digest"]
    refused = subprocess.run([*command, "f" * 64], capture_output=True, text=True, timeout=120, check=False)
    assert (refused.returncode, "is of another bundle" in refused.stderr) == (1, True)
    with subprocess.Popen([*command, bundle.digest], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: find_server(workspace, ENV) is not None, "a server")
            server = find_server(workspace, ENV)
            assert server is not None
            until(lambda: (describe_server(server) or {}).get("stable") == bundle.digest, "its version")
        finally:
            process.terminate()


def _minimal() -> dict[str, Any]:
    return {"namespace": "n", "name": "a", "image": IMAGE, "bundles": "s3://m"}
