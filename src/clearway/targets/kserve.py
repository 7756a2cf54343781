"""The environment is a KServe ``InferenceService``: its ledger is a ConfigMap beside it, here is a verified copy.

Writing an entry is one compare-and-swap on the ConfigMap's ``resourceVersion``; everything after it can be made again
from the entry. A command that was killed in between is finished by the next one, whichever it is and from wherever it
runs: each begins by taking the steps that are missing (:func:`clearway.kserve.next_step`).

KServe's pods follow nobody and know no ledger. Which entry an answer was given under is told from when it was given:
``served`` in the ConfigMap says when each entry was first seen to have its traffic.
"""

import json
import logging
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from clearway.admin_api import Head, HeadMovedError
from clearway.bundle import Bundle
from clearway.bundle_store import BundleStore
from clearway.canary_state import canary_file
from clearway.errors import ClearwayError, UsageError
from clearway.files import atomic_path, write_json
from clearway.kserve import (
    MODES,
    Observed,
    Step,
    Wanted,
    manifest,
    next_step,
    observed,
    revision,
    revision_names,
    served_entry,
    shares,
    template_of,
    told,
)
from clearway.kubernetes_api import SERVICE_ACCOUNT, ConflictError, KubernetesApi, checked_url, cluster_url
from clearway.ledger import Change, Entry, ledger_file, locked, next_line, read_ledger
from clearway.ledger_copy import copy_ledger, is_copied
from clearway.params import KServeTargetParams, Params
from clearway.routing import project_routing, write_routing
from clearway.skew_state import skew_file
from clearway.targets import RemoteServer
from clearway.workspace import Workspace

POLL_SECONDS = 0.5
REFUSAL_SECONDS = 5.0
"""How long the cluster may report the same failure before it counts as its answer."""
MOST_STEPS = 20
"""Changes in a row without waiting: more than any way needs."""
LEDGER_BYTES = 700_000
"""Of the ledger's newest lines in the ConfigMap, which holds 1 MiB; older ones are in the copies."""
MOST_SERVED = 200
"""Entries of which is remembered since when they were served."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ledger:
    """The ConfigMap as it was read."""

    resource_version: str
    data: Mapping[str, str]

    @property
    def lines(self) -> list[bytes]:
        return self.data.get("ledger", "").encode().splitlines(keepends=True)


class KServeTarget:
    """One environment of a Kubernetes cluster.

    Raises
    ------
    UsageError
        The API's address is missing, wrong, or would show a token to the network.
    """

    here = False
    projects_alias = True

    def __init__(self, params: Params, workspace: Workspace, environment: str, settings: KServeTargetParams) -> None:
        self._params = params
        self._workspace = workspace
        self._environment = environment
        self._folder = workspace.environment(environment)
        self._settings = settings
        self._prefix = f"CLEARWAY_{environment.upper().replace('-', '_')}"
        self._key = f"environments.{environment}.target"
        space = quote(settings.namespace)
        self._service = f"/apis/serving.kserve.io/v1beta1/namespaces/{space}/inferenceservices/{settings.name}"
        self._revisions = f"/apis/serving.knative.dev/v1/namespaces/{space}/revisions"
        self._maps = f"/api/v1/namespaces/{space}/configmaps"
        self._map = f"{settings.name}-ledger"
        self._in_cluster = not (os.environ.get(f"{self._prefix}_URL") or settings.api)
        url = os.environ.get(f"{self._prefix}_URL") or settings.api or cluster_url()
        if not url:
            raise UsageError(f"{self._key}.api is missing, and this is no pod: set it, or {self._prefix}_URL")
        self.url = checked_url(url, f"{self._key}.api", plain_http=settings.plain_http)
        self._api = KubernetesApi(
            self.url,
            self._token,
            self._api_tls(),
            settings.timeout_seconds,
            settings.retries,
            f"set {self._prefix}_TOKEN to a valid one (docs/kserve.md)",
        )
        self._where = f"ConfigMap {settings.namespace}/{self._map}"

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """The service's own certificate is checked as the system does; the cluster's authority signs none of it."""
        return ssl.create_default_context()

    @cached_property
    def _store(self) -> BundleStore:
        return BundleStore(self._settings.bundles)

    # --- the environment's folder, as a copy ---

    def pull(self) -> None:
        found = self._ledger()
        if found is None:
            if self._api.read(self._service) is not None:
                raise ClearwayError(
                    f"{self._where} is missing, yet InferenceService {self._settings.name} exists: its ledger was "
                    "lost, or it is not Clearway's. If this folder is its last good copy: kubectl create configmap "
                    f"{self._map} -n {self._settings.namespace} --from-literal=project={self._params.project.name} "
                    f"--from-file=ledger={ledger_file(self._folder)}"
                )
            return  # nothing was ever deployed there; what this folder knows is carried on
        with locked(self._folder):
            self._take_over(found.lines)
            for key, path in (("canary", canary_file(self._folder)), ("skew", skew_file(self._folder))):
                if key in found.data:
                    write_json(path, _parsed(found.data[key], f"{self._where}: {key}"))
                else:
                    path.unlink(missing_ok=True)
            serving, entries = self._params.serving, read_ledger(self._folder, self._environment)
            table = project_routing(entries, serving.salt, serving.routing_key)
            assert table is not None
            write_routing(self._folder / "routing.json", table)

    def _take_over(self, lines: Sequence[bytes]) -> None:
        """Keep a copy of the ledger whose newest lines these are; older ones must be here already."""
        last = _sequence_and_hash(lines[-1] if lines else b"", self._where)
        if is_copied(self._folder, last):
            return
        began = _sequence_and_hash(lines[0], self._where).sequence
        known = self._known_lines()
        if began > len(known) + 1:
            raise ClearwayError(
                f"{self._where} begins with entry {began}, and {self._folder} knows {len(known)}: bring the folder's "
                "ledger.jsonl and head.json from its last good copy (on GitHub: the branch clearway-state)"
            )
        copy_ledger(b"".join([*known[: began - 1], *lines]), self._folder, self._environment, self._where)

    def _verified(self, ledger: _Ledger) -> list[Entry]:
        """Its entries, by the copy that was verified: a line that was changed under its old hash is not believed."""
        with locked(self._folder):
            self._take_over(ledger.lines)
        return read_ledger(self._folder, self._environment)

    def _known_lines(self) -> list[bytes]:
        path = ledger_file(self._folder)
        return path.read_bytes().splitlines(keepends=True) if path.exists() else []

    def _ledger(self) -> _Ledger | None:
        content = self._api.read(f"{self._maps}/{self._map}")
        if content is None:
            return None
        found = _Ledger(str(content.get("metadata", {}).get("resourceVersion", "")), content.get("data") or {})
        project = found.data.get("project")
        if project != self._params.project.name or not found.lines:
            raise ClearwayError(
                f"{self._where} is of project {project!r}, expected {self._params.project.name!r} and its ledger: "
                f"choose another {self._key}.name or namespace"
            )
        return found

    # --- bundles ---

    def check_ready(self) -> None:
        if self._api.read("/apis/serving.kserve.io/v1beta1") is None:
            raise ClearwayError(f"the Kubernetes API at {self.url} knows no serving.kserve.io/v1beta1: install KServe")
        if self._params.deployment.strategy == "ab":
            raise ClearwayError(
                f"{self._environment} is KServe's, which spreads requests and not users: no A/B test is possible: "
                "set deployment.strategy: canary"
            )
        found = self._look()
        if found is not None and found.mode is not None and found.mode not in MODES:
            raise ClearwayError(
                f"KServe runs {self._settings.name} in mode {found.mode}, which splits no traffic: install Knative, "
                "and make the service anew"
            )

    def lacks(self, digest: str) -> bool:
        found = self._look()
        present = (found.created, found.latest, found.rolled_out, found.previous) if found else ()
        if any(each is not None and each.digest == digest and each.ready for each in present):
            return False  # it runs, so that a rollback does not have to wait for the store
        return not self._store.has(digest)

    def bring(self, bundle: Bundle) -> None:
        self._store.put(bundle)

    def fetch(self, digest: str) -> None:
        if not (self._workspace.bundles / digest).is_dir() and self._store.has(digest):
            self._store.get(digest, self._workspace.bundles)

    # --- changes ---

    def record(self, change: Change, expected_head: str) -> Entry:
        entries = read_ledger(self._folder, self._environment)
        expected = Head.of(entries)
        if expected.hash != expected_head:
            raise HeadMovedError(self._environment, Head(sequence=expected.sequence, hash=expected_head), expected)
        self._check_possible(change)
        before = self._ledger()
        if before is not None:
            found = _sequence_and_hash(before.lines[-1], self._where)
            if found != expected:
                raise HeadMovedError(self._environment, expected, found)
        entry, line = next_line(entries, self._environment, change)
        lines = [*self._known_lines(), line]
        try:
            self._write_ledger(before, _newest(lines))
        except ConflictError:
            now = self._ledger()
            if now is None or now.lines[-1] != line:  # else only the answer was lost
                found = expected if now is None else _sequence_and_hash(now.lines[-1], self._where)
                raise HeadMovedError(self._environment, expected, found) from None
        except ClearwayError as error:
            raise ClearwayError(
                f"{error}; whether {change.action} was recorded, the next command will find out"
            ) from None
        with locked(self._folder):
            self._take_over(lines)
        return entry

    def _write_ledger(self, before: _Ledger | None, lines: Sequence[bytes]) -> None:
        data = {
            **(before.data if before else {}),
            "project": self._params.project.name,
            "ledger": b"".join(lines).decode(),
        }
        metadata: dict[str, Any] = {"name": self._map, "namespace": self._settings.namespace}
        metadata["labels"] = {"app.kubernetes.io/managed-by": "clearway"}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        if before is None:
            self._api.create(self._maps, body)
        else:
            metadata["resourceVersion"] = before.resource_version
            self._api.replace(f"{self._maps}/{self._map}", body)

    def _check_possible(self, change: Change) -> None:
        """Refuse, before it is recorded, what KServe cannot do or will not take. A rollback is never asked."""
        if change.shadow is not None:
            raise ClearwayError(f"{self._environment} is KServe's, which copies no traffic: a shadow there is none")
        if change.warm_minutes is not None:
            raise ClearwayError(
                f"{self._environment} is KServe's, where nothing watches a switch: --strategy blue-green there is none"
            )
        if change.action not in ("deploy", "canary", "promote"):
            return
        found = self._look()
        if change.canary is not None:
            if self._settings.log_folder is None:
                raise ClearwayError(
                    f"no canary can be judged in {self._environment}: the prediction log of its pods is not read here "
                    f"({self._key}.log_claim and log_folder, docs/kserve.md): deploy it whole"
                )
            live = found.rolled_out if found else None
            if live is None or live.digest != change.stable:
                what = f"{live.name} ({(live.digest or 'not one of ours')[:12]})" if live else "none"
                raise ClearwayError(
                    f"the stable version of {self._environment} is {change.stable[:12]}, but the revision that KServe "
                    f"holds for it is {what}: scripts/deploy.py --env {self._environment} --ensure-serving first"
                )
        newest = change.canary or change.stable
        if found is None or found.digest != newest:
            self._api.apply(self._service, self._manifest(newest, None if found is None else 0), rehearse=True)

    def publish(self) -> None:
        paths = {"canary": canary_file(self._folder), "skew": skew_file(self._folder)}
        data = {key: path.read_text("utf-8") if path.is_file() else None for key, path in paths.items()}
        self._api.merge(f"{self._maps}/{self._map}", {"data": data})

    def project(self) -> None:
        try:
            self._advance(0.0)
        except ClearwayError as error:  # whoever waits for it will hear it, and a rollback must get past it
            logger.warning("%s does not follow its ledger yet: %s", self._environment, error)

    def serve(self, revision: int) -> RemoteServer:
        found = self._advance(self._settings.ready_seconds)
        if found is None or found.url is None:
            raise ClearwayError(f"InferenceService {self._settings.name} has no address (status.url)")
        self._note_served(revision)
        return RemoteServer(found.url.rstrip("/"))

    def _advance(self, seconds: float) -> Observed | None:
        """Take the steps towards the ledger's head and wait so long for the cluster; 0 takes those there are.

        The service is read before the ledger and written only as it was read: of two commands at once, the one that
        knows the newer entry has the last word.
        """
        deadline = time.monotonic() + seconds
        failing, failed_at, changes = "", 0.0, 0
        while True:
            found = self._look()
            ledger = self._ledger()
            if ledger is None:
                return None
            head = self._verified(ledger)[-1]
            made = self._manifest(found.digest if found and found.digest else head.stable, None)
            step = next_step(Wanted.of(head), found, template_of(made))
            if step.kind == "done":
                return found
            if step.kind != "wait" and changes < MOST_STEPS:
                changes += 1
                self._take(step, found)
                continue
            if step.failed and step.sentence != failing:
                failing, failed_at = step.sentence, time.monotonic()
            final = step.failed and time.monotonic() - failed_at >= REFUSAL_SECONDS
            if not step.failed:
                failing = ""
            if seconds == 0.0:
                return found
            if final or time.monotonic() >= deadline:
                within = "" if final else f" within {seconds:g} s"
                raise ClearwayError(
                    f"InferenceService {self._settings.name} does not serve entry {head.sequence}{within}: "
                    f"{step.sentence}; traffic goes to {told(found) if found else 'nobody'}; see kubectl describe "
                    f"inferenceservice {self._settings.name} -n {self._settings.namespace}, or go back with "
                    f"scripts/rollback.py --env {self._environment}"
                )
            time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))

    def _take(self, step: Step, found: Observed | None) -> None:
        """Carry out a step, if the service is still what was looked at; else a new look tells what to do."""
        try:
            if step.kind == "introduce":
                assert step.digest is not None
                body = self._manifest(step.digest, step.percent)
                if found is not None:
                    body["metadata"]["resourceVersion"] = found.resource_version
                self._api.apply(self._service, body)
            else:
                assert found is not None
                predictor = {"canaryTrafficPercent": step.percent}
                version = {"resourceVersion": found.resource_version}
                self._api.merge(self._service, {"metadata": version, "spec": {"predictor": predictor}})
        except ConflictError:
            time.sleep(POLL_SECONDS / 5)

    def _manifest(self, digest: str, percent: int | None) -> dict[str, Any]:
        port = self._params.environment(self._environment).port
        return manifest(self._settings, self._environment, port, digest, percent)

    def _look(self) -> Observed | None:
        service = self._api.read(self._service)
        if service is None:
            return None
        if service.get("metadata", {}).get("deletionTimestamp"):
            raise ClearwayError(
                f"InferenceService {self._settings.name} is being deleted: wait for its end, then repeat"
            )
        names = sorted(revision_names(service))
        return observed(service, {name: revision(name, self._api.read(f"{self._revisions}/{name}")) for name in names})

    def _note_served(self, revision: int) -> None:
        """Say since when the ledger's head has its traffic, if nobody did."""
        ledger = self._ledger()
        if ledger is None:
            return
        head = self._verified(ledger)[-1]
        served = _served(ledger)
        if head.sequence < revision or str(head.sequence) in served:
            return
        served[str(head.sequence)] = datetime.now(UTC).isoformat()
        newest = dict(sorted(served.items(), key=lambda each: int(each[0]))[-MOST_SERVED:])
        version = {"resourceVersion": ledger.resource_version}
        try:
            self._api.merge(f"{self._maps}/{self._map}", {"metadata": version, "data": {"served": json.dumps(newest)}})
        except ConflictError:
            logger.warning("%s moved on while entry %d was being served", self._environment, head.sequence)

    # --- what is served ---

    def find(self) -> RemoteServer | None:
        found = self._look()
        return RemoteServer(found.url.rstrip("/")) if found is not None and found.url else None

    def describe(self) -> Mapping[str, Any] | None:
        try:
            found = self._look()
        except ClearwayError:
            return None
        if found is None:
            return None
        entry = served_entry(read_ledger(self._folder, self._environment), found)
        if entry is not None:
            said = {"revision": entry.sequence, "stable": entry.stable, "canary": entry.canary}
            return {**said, "canary_weight": entry.canary_weight, "error": None, "traffic": shares(found)}
        first, second = [*sorted(shares(found).items(), key=lambda each: -each[1]), (None, 0), (None, 0)][:2]
        said = {"revision": None, "stable": first[0], "canary": second[0], "canary_weight": second[1]}
        return {**said, "error": None, "traffic": shares(found)}

    def pull_log(self, since_revision: int | None = None) -> None:
        if self._settings.log_folder is None:
            raise ClearwayError(
                f"the prediction log of {self._environment} is in its pods: nothing can be judged or monitored until "
                f"{self._key}.log_claim and log_folder say where it is kept and read (docs/kserve.md)"
            )
        source = self._workspace.root / self._settings.log_folder
        if not source.is_dir():
            raise ClearwayError(f"{self._key}.log_folder = {source}: there is no such folder: mount the volume")
        ledger = self._ledger()
        entries = read_ledger(self._folder, self._environment)
        since = [
            (datetime.fromisoformat(at), entries[int(number) - 1])
            for number, at in sorted((_served(ledger) if ledger else {}).items(), key=lambda each: int(each[0]))
            if int(number) <= len(entries)
        ]
        target = self._folder / "predictions"
        target.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in source.glob("*.jsonl")}
        for name in sorted(names):
            with atomic_path(target / name) as made, made.open("wb") as stream:
                stream.writelines(
                    _stamped(line, since) for line in (source / name).read_bytes().splitlines(keepends=True)
                )
        for path in target.rglob("*"):
            if path.is_file() and path.relative_to(target).as_posix() not in names:
                path.unlink()

    # --- who asks ---

    def _token(self) -> str:
        variable = f"{self._prefix}_TOKEN"
        token = os.environ.get(variable, "").strip()
        path = SERVICE_ACCOUNT / "token"
        if not token and self._in_cluster:
            try:
                token = path.read_text("utf-8").strip()
            except OSError as error:
                raise UsageError(f"{path} cannot be read ({error.strerror}): set {variable}") from None
        if not token:
            raise UsageError(f"no token for {self.url}: set {variable} (docs/kserve.md)")
        if not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError(f"{variable} is no token: expected plain characters")
        return token

    def _api_tls(self) -> ssl.SSLContext | None:
        if not self.url.startswith("https:"):
            return None
        path: Path | None = None
        if self._settings.ca_file is not None:
            path = self._workspace.root / self._settings.ca_file
        elif self._in_cluster:
            path = SERVICE_ACCOUNT / "ca.crt"
        try:
            return ssl.create_default_context(cafile=None if path is None else str(path))
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"{self._key}.ca_file = {path}: {error}") from None


def _stamped(line: bytes, since: Sequence[tuple[datetime, Entry]]) -> bytes:
    """A line of a pod's log, which knows no ledger, with the entry that was served when it was written, and its role.

    What came before any known entry keeps 0, and counts for none; a line that is no record stays as it is.
    """
    import orjson

    try:
        record = orjson.loads(line)
        at = datetime.fromisoformat(record["served_at"])
        entry = next((entry for began, entry in reversed(since) if began <= at), None)
        record["revision"] = entry.sequence if entry is not None else 0
        record["role"] = "canary" if entry is not None and record["version"] == entry.canary else "stable"
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    except (ValueError, KeyError, TypeError):
        return line


def _newest(lines: Sequence[bytes]) -> list[bytes]:
    """As many of the last lines as the ConfigMap holds."""
    size, kept = 0, 0
    for line in reversed(lines):
        size += len(line)
        if kept and size > LEDGER_BYTES:
            break
        kept += 1
    return list(lines[len(lines) - kept :])


def _served(ledger: _Ledger) -> dict[str, str]:
    found = _parsed(ledger.data.get("served", "{}"), "served")
    return {str(number): str(at) for number, at in found.items()} if isinstance(found, dict) else {}


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ClearwayError(f"{where} is no JSON: it was changed by hand; put it back, or remove the key") from None


def _parsed_entry(line: bytes, where: str) -> Entry:
    try:
        return Entry.model_validate_json(line)
    except ValueError as error:
        raise ClearwayError(f"{where}: its last line is no ledger entry ({str(error).splitlines()[0]})") from None


def _sequence_and_hash(line: bytes, where: str) -> Head:
    entry = _parsed_entry(line, where)
    return Head(sequence=entry.sequence, hash=entry.hash)
