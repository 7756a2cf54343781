"""A Kubernetes API as far as Clearway speaks to it, with KServe and Knative behind it, over real HTTP.

Objects have resource versions, server-side apply keeps who owns which field, and ``InferenceService`` objects are held
to KServe's own schema (``kserve_crd/``). The controllers take one round each time a service is read, so that tests wait
for nothing. KServe's part follows ``createKnativeService`` and ``PropagateStatus`` of the commit that kserve_crd/
names; Knative's is: a changed template makes a revision, ``latestRevision`` is the latest that is ready.
"""

import copy
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
from far_server import listening

SCHEMA: dict[str, Any] = json.loads(
    (Path(__file__).parent / "kserve_crd" / "inferenceservice.v1beta1.json").read_text("utf-8")
)
DIGEST = "clearway.dev/digest"
ROUNDS = 2
"""Looks that a revision takes to be ready."""


def strict(schema: Any) -> Any:
    """The schema as an API server reads it: what it does not name is refused, ``metadata`` is Kubernetes' own."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)
    if isinstance(made.get("properties"), dict) and "type" in made and "additionalProperties" not in made:
        made["additionalProperties"] = False
    return made


_STRICT = strict(SCHEMA)
_STRICT["properties"]["metadata"] = {"type": "object"}


def faults_of(service: dict[str, Any]) -> list[str]:
    """What KServe's schema has against an object."""
    found = jsonschema.Draft7Validator(_STRICT).iter_errors(service)
    return [f"{'.'.join(map(str, each.absolute_path))}: {each.message}" for each in found]


@dataclass
class Fault:
    """What goes wrong with requests of one method whose path holds a text."""

    method: str
    path: str
    kind: str
    """A status; ``drop`` (before it is done), ``lose`` (after), ``cut`` (half of the answer), ``drip``."""
    times: int = 1
    message: str = ""


@dataclass
class Cluster:
    """All that the API keeps."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    installed: bool = True
    token: str = "t" * 20
    mode: str = "Serverless"
    broken: dict[str, str] = field(default_factory=dict)
    """Images or digests whose pods do not start, and what they say."""
    forbidden: set[str] = field(default_factory=set)
    """Methods that the token may not use."""
    refused: str = ""
    """What admission says of every service."""
    faults: list[Fault] = field(default_factory=list)
    writes_left: int | None = None
    """So many are taken; then nothing answers any more, as if whoever asks had been killed."""
    asked: list[tuple[str, str, dict[str, Any] | None]] = field(default_factory=list)
    answered: list[dict[str, int]] = field(default_factory=list)
    """Percent of the traffic by digest, after each round."""
    rolled_out: list[str | None] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _version: int = 100
    _others: dict[str, set[str]] = field(default_factory=dict)
    """Fields of a predictor that a patch, and no apply, set."""
    _knative: dict[str, Any] = field(default_factory=dict)

    # --- objects ---

    def put(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        content = copy.deepcopy(content)
        before = self.objects.get(path)
        meta = content.setdefault("metadata", {})
        generation = (before or {}).get("metadata", {}).get("generation", 0)
        meta["generation"] = generation + (before is None or before.get("spec") != content.get("spec"))
        meta["resourceVersion"] = str(self._version)
        meta.setdefault("uid", f"uid-{self._version}")
        self.objects[path] = content
        return content

    def service(self) -> dict[str, Any]:
        return next(each for path, each in self.objects.items() if "/inferenceservices/" in path)

    def ledger(self) -> dict[str, Any]:
        return next(each for path, each in self.objects.items() if "/configmaps/" in path)

    def revisions(self) -> list[str]:
        return [path.rpartition("/")[2] for path in self.objects if "/revisions/" in path]

    def shares(self) -> dict[str, int]:
        return self.answered[-1] if self.answered else {}

    # --- requests ---

    def read(self, path: str) -> tuple[int, dict[str, Any]]:
        if path == "/apis/serving.kserve.io/v1beta1":
            return (200, {"kind": "APIResourceList"}) if self.installed else _status(404, "not found", "NotFound")
        if path in self.objects and "/inferenceservices/" in path:
            self.reconcile(path)
        if path not in self.objects:
            return _status(404, f"{path.rpartition('/')[2]} not found", "NotFound")
        return 200, copy.deepcopy(self.objects[path])

    def create(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        own = f"{path}/{body['metadata']['name']}"
        if own in self.objects:
            return _status(409, f"{body['metadata']['name']} already exists", "AlreadyExists")
        return 201, self.put(own, body)

    def replace(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path not in self.objects:
            return _status(404, "not found", "NotFound")
        return self._unless_moved(path, body) or (200, self.put(path, body))

    def apply(self, path: str, body: dict[str, Any], query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if not self.installed:
            return _status(404, "the server could not find the requested resource", "NotFound")
        before = self.objects.get(path)
        if "resourceVersion" in body["metadata"] and before is None:
            return _status(409, "resourceVersion was named, and there is no such object", "Conflict")
        if moved := self._unless_moved(path, body):
            return moved
        made = copy.deepcopy(body)
        made["metadata"].pop("resourceVersion", None)
        others = self._others.get(path, set())
        if before is not None:
            made["status"] = before.get("status", {})
            made["metadata"]["uid"] = before["metadata"]["uid"]
            predictor = before["spec"]["predictor"]
            for key in others:
                if key not in made["spec"]["predictor"] and key in predictor:
                    made["spec"]["predictor"][key] = predictor[key]
                elif key in made["spec"]["predictor"] and query.get("force") != "true":
                    return _status(409, f"conflict with another manager over {key}", "Conflict")
        if refused := self._admission(made):
            return refused
        if query.get("dryRun") == "All":
            return 200, made
        self._others[path] = others - made["spec"]["predictor"].keys()
        return (200 if before else 201), self.put(path, made)

    def merge(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path not in self.objects:
            return _status(404, "not found", "NotFound")
        if moved := self._unless_moved(path, body):
            return moved
        made = _merged(self.objects[path], body)
        if "/inferenceservices/" in path:
            if refused := self._admission(made):
                return refused
            self._others.setdefault(path, set()).update(body.get("spec", {}).get("predictor", {}))
        return 200, self.put(path, made)

    def _unless_moved(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        wanted = body.get("metadata", {}).get("resourceVersion")
        now = self.objects.get(path, {}).get("metadata", {}).get("resourceVersion")
        if wanted is None or wanted == now:
            return None
        return _status(409, "the object has been modified; please apply your changes to the latest version", "Conflict")

    def _admission(self, service: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        if faults := faults_of(service):
            return _status(422, f"InferenceService is invalid: {'; '.join(faults)}", "Invalid")
        return _status(422, self.refused, "Invalid") if self.refused else None

    # --- KServe and Knative ---

    def reconcile(self, path: str) -> None:
        """One round of both controllers."""
        service = self.objects[path]
        status = copy.deepcopy(service.get("status") or {})
        component = status.setdefault("components", {}).setdefault("predictor", {})
        status["deploymentMode"] = self.mode
        if self.mode in ("Serverless", "Knative"):
            knative = self._as_knative(path, service, component)
            _propagate(component, knative)
            self._conditions(status, knative, component)
        self._version += 1
        service["status"] = status
        service["metadata"]["resourceVersion"] = (
            str(self._version) if status != self._knative.get("shown") else service["metadata"]["resourceVersion"]
        )
        self._knative["shown"] = copy.deepcopy(status)
        got: dict[str, int] = {}
        for each in component.get("traffic") or ():
            who = self._digest(path, each["revisionName"])
            got[who] = got.get(who, 0) + each["percent"]
        self.answered.append({who: percent for who, percent in got.items() if percent})
        self.rolled_out.append(component.get("latestRolledoutRevision"))

    def _digest(self, path: str, name: str) -> str:
        found = self.objects.get(_revision_path(path, name)) or {}
        return (found.get("metadata", {}).get("annotations") or {}).get(DIGEST) or name

    def _as_knative(self, path: str, service: dict[str, Any], component: dict[str, Any]) -> dict[str, Any]:
        predictor = copy.deepcopy(service["spec"]["predictor"])
        percent, meta = predictor.pop("canaryTrafficPercent", None), service["metadata"]
        template = json.dumps([predictor, meta.get("annotations"), meta.get("labels")], sort_keys=True)
        state: dict[str, Any] = self._knative.setdefault(path, {"count": 0, "created": None, "ready": None, "age": {}})
        rolled_out = component.get("latestRolledoutRevision")
        if percent is not None and rolled_out:
            traffic = [{"latestRevision": True, "percent": percent}]
            if percent < 100:
                prev = {"latestRevision": False, "revisionName": rolled_out, "percent": 100 - percent, "tag": "prev"}
                traffic.append(prev)
        else:
            traffic = [{"latestRevision": True, "percent": 100}]
        if template != state.get("template"):
            state["count"] += 1
            state["template"], state["created"] = template, f"{meta['name']}-predictor-{state['count']:05d}"
            state["age"][state["created"]] = 0
            annotations = {**(meta.get("annotations") or {}), **(predictor.get("annotations") or {})}
            content = {"metadata": {"name": state["created"], "annotations": annotations}, "spec": predictor}
            self.put(_revision_path(path, state["created"]), content)
        self._start(path, state)
        resolved = []
        for each in traffic:
            name = each.get("revisionName") or state["ready"]
            if name is not None:
                resolved.append({**each, "revisionName": name})
        return {**state, "traffic": resolved, "routed": len(resolved) == len(traffic)}

    def _start(self, path: str, state: dict[str, Any]) -> None:
        name = state["created"]
        content = self.objects[_revision_path(path, name)]
        state["age"][name] += 1
        if state["age"][name] <= ROUNDS:
            condition = {"type": "Ready", "status": "Unknown", "reason": "Deploying"}
        else:
            marks = {content["metadata"]["annotations"].get(DIGEST), content["spec"]["containers"][0]["image"]}
            said = next((said for mark, said in self.broken.items() if mark in marks), None)
            condition = {"type": "Ready", "status": "True" if said is None else "False"}
            if said is not None:
                condition |= {"reason": "ExitCode1", "message": f"Container failed with: {said}"}
            elif state["ready"] != name:
                state["ready"] = name
        content["status"] = {"conditions": [condition]}

    def _conditions(self, status: dict[str, Any], knative: dict[str, Any], component: dict[str, Any]) -> None:
        path = next(path for path in self.objects if path.endswith(f"/revisions/{knative['created']}"))
        newest = self.objects[path]["status"]["conditions"][0]
        routed = {"type": "PredictorRouteReady", "status": "True" if knative["routed"] else "Unknown"}
        ready = {**newest, "type": "Ready"}
        if newest["status"] == "True":
            ready["status"] = routed["status"]
        status["conditions"] = [routed, ready]
        status["observedGeneration"] = knative["count"]
        if knative["routed"]:
            status["url"] = "http://apples.models.example.org"
            component["url"] = "http://apples-predictor.models.example.org"


def _propagate(component: dict[str, Any], knative: dict[str, Any]) -> None:
    """``InferenceServiceStatus.PropagateStatus``, line for line."""
    component["latestCreatedRevision"] = knative["created"]
    revision_traffic: dict[str, int] = {}
    for traffic in knative["traffic"]:
        name = traffic["revisionName"]
        revision_traffic[name] = revision_traffic.get(name, 0) + traffic["percent"]
    for traffic in knative["traffic"]:
        if traffic["revisionName"] == knative["ready"] and traffic.get("latestRevision"):
            if component.get("latestRolledoutRevision") != knative["ready"]:
                if traffic["percent"] == 100:
                    if component.get("latestRolledoutRevision"):
                        component["previousRolledoutRevision"] = component["latestRolledoutRevision"]
                    component["latestRolledoutRevision"] = knative["ready"]
            elif knative["ready"] == knative["created"] and traffic["percent"] < 100:
                whole = revision_traffic.get(traffic["revisionName"]) == 100
                if whole and component.get("previousRolledoutRevision"):
                    component["latestRolledoutRevision"] = component["previousRolledoutRevision"]
    if knative["ready"]:
        component["latestReadyRevision"] = knative["ready"]
    component["traffic"] = copy.deepcopy(knative["traffic"])


def _revision_path(service: str, name: str) -> str:
    namespace = service.split("/")[5]
    return f"/apis/serving.knative.dev/v1/namespaces/{namespace}/revisions/{name}"


def _status(code: int, message: str, reason: str) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": code}


def _merged(content: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    made = copy.deepcopy(content) if isinstance(content, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = _merged(made.get(key), value)
    return made


@contextmanager
def kubernetes(cluster: Cluster, certificate: Path | None = None) -> Iterator[str]:
    """Serve ``cluster``; gives its address."""

    class Api(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one segment: two would wait for each other for 40 ms

        def log_message(self, *arguments: Any) -> None:
            pass

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            content = json.loads(body) if body else None
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            with cluster.lock:
                cluster.asked.append((self.command, self.path, content))
                if self.command != "GET" and "dryRun" not in query and cluster.writes_left is not None:
                    cluster.writes_left -= 1
                if cluster.writes_left is not None and cluster.writes_left < 0:
                    self.close_connection = True
                    return
                rehearsed = "dryRun" in query
                fault = next(
                    (
                        each
                        for each in cluster.faults
                        if each.method == self.command and each.path in parts.path and not rehearsed
                    ),
                    None,
                )
                if fault is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        cluster.faults.remove(fault)
                if fault is not None and fault.kind == "drop":
                    self.close_connection = True
                    return
                status, made = self._answer(parts.path, query, content, fault)
                sent = json.dumps(made).encode()
            if fault is not None and fault.kind == "lose":
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            if fault is not None and fault.kind == "cut":
                self.wfile.write(sent[: len(sent) // 2])
                self.close_connection = True
                return
            if fault is not None and fault.kind == "drip":
                self._drip(sent)
                return
            self.wfile.write(sent)

        def _drip(self, sent: bytes) -> None:
            self.close_connection = True
            try:
                for byte in sent:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.05)
            except OSError:
                pass

        def _answer(
            self, path: str, query: dict[str, str], content: dict[str, Any] | None, fault: Fault | None
        ) -> tuple[int, dict[str, Any]]:
            if fault is not None and fault.kind.isdigit():
                return _status(int(fault.kind), fault.message, "Fault")
            if self.headers.get("authorization") != f"Bearer {cluster.token}":
                return _status(401, "Unauthorized", "Unauthorized")
            if self.command in cluster.forbidden:
                verb = {"GET": "get", "PATCH": "patch", "POST": "create", "PUT": "update"}[self.command]
                who = 'User "system:serviceaccount:ci:deployer"'
                return _status(403, f"{path.rpartition('/')[2]} is forbidden: {who} cannot {verb} it", "Forbidden")
            if self.command == "GET":
                return cluster.read(path)
            assert content is not None
            if self.command == "POST":
                return cluster.create(path, content)
            if self.command == "PUT":
                return cluster.replace(path, content)
            if self.headers.get("content-type") == "application/apply-patch+yaml":
                return cluster.apply(path, content, query)
            return cluster.merge(path, content)

        do_GET = do_POST = do_PUT = do_PATCH = _do  # noqa: N815 - names of http.server

    with listening(Api, certificate) as port:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{port}"
