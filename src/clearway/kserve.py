"""A KServe ``InferenceService``: how it is written, what its status says, and the next step towards the ledger. Pure.

KServe has one template, of the newest version, and ``canaryTrafficPercent``: its share of the traffic; the rest goes to
``latestRolledoutRevision``, the last revision that ever had all of it. What follows from how KServe and Knative do this
(``PropagateStatus`` and ``createKnativeService`` of KServe, Knative's ``latestRevision: true``):

- *latest* in a route is the latest **ready** revision. While a new one starts, its share goes to whatever was ready
  before it, which after a rollback is the very version that was barred. So a new version always comes with 0%, and gets
  its share when it is ready.
- ``canaryTrafficPercent: 0`` on a version that has all traffic makes KServe go back to ``previousRolledoutRevision``:
  pods that may still run, and no template to be written. That is the way back where it leads to the right version.
- Annotations and labels of the service are copied into the template. One that changed with each ledger entry would make
  a revision of each, so the service carries none that does, and the ledger has an object of its own.
- ``observedGeneration`` is that of the Knative service, not of the ``InferenceService``: nothing can be told from it.
  Whether a change has arrived is seen from revisions, templates and traffic alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clearway.files import canonical_json, sha256_bytes
from clearway.ledger import Entry
from clearway.params import KServeTargetParams

API_VERSION, KIND = "serving.kserve.io/v1beta1", "InferenceService"
DIGEST, TEMPLATE = "clearway.dev/digest", "clearway.dev/template"
"""Annotations of a revision: the bundle that it serves, and the hash of what it was made from."""
CONTAINER = "kserve-container"
"""The name by which KServe knows the container that answers."""
MODEL_FOLDER = "/mnt/models"
"""Where KServe's storage initializer puts the files of ``STORAGE_URI``."""
PROJECT_FOLDER = "/srv/clearway"
"""In the image of deploy/Dockerfile."""
MODES = ("Serverless", "Knative")
"""The deployment mode in which KServe splits traffic; its old name, which every release reads, and its new one."""


@dataclass(frozen=True)
class Revision:
    """A Knative revision."""

    name: str
    digest: str | None
    """Of the bundle it serves; None if it is not one of ours, or is gone."""
    template: str | None
    ready: bool | None
    """None while it starts."""
    said: str = ""
    """Why it is not ready."""


@dataclass(frozen=True)
class Observed:
    """What the cluster says of the service."""

    resource_version: str
    digest: str | None
    """Of the newest template."""
    template: str | None
    percent: int | None
    """``canaryTrafficPercent``."""
    created: Revision | None = None
    latest: Revision | None = None
    """The latest that is ready."""
    rolled_out: Revision | None = None
    previous: Revision | None = None
    traffic: tuple[tuple[Revision, int], ...] = ()
    """Who answers, in percent."""
    routed: bool = False
    """Whether the traffic is spread as the status says."""
    mode: str | None = None
    url: str | None = None
    said: str = ""
    """What KServe complains of."""


@dataclass(frozen=True)
class Wanted:
    """What the ledger's head asks for."""

    stable: str
    canary: str | None = None
    weight: int = 0

    @classmethod
    def of(cls, head: Entry) -> "Wanted":
        return cls(head.stable, head.canary, head.canary_weight)

    @property
    def shares(self) -> dict[str, int]:
        """Percent of the traffic by digest."""
        shares = {self.stable: 100 - self.weight}
        if self.canary is not None:
            shares[self.canary] = self.weight
        return shares


@dataclass(frozen=True)
class Step:
    """What to do next."""

    kind: Literal["introduce", "weigh", "wait", "done"]
    sentence: str
    digest: str | None = None
    """The version whose template is to be written."""
    percent: int | None = None
    """``canaryTrafficPercent`` from then on; None removes it."""
    failed: bool = False
    """Whether what is waited for has said that it will not come."""


def manifest(
    settings: KServeTargetParams, environment: str, port: int, digest: str, percent: int | None
) -> dict[str, Any]:
    """The service whose newest version is ``digest``, with ``canaryTrafficPercent`` ``percent``; None leaves that out.

    The container is this project's own server image. It serves the files that KServe has put into
    :data:`MODEL_FOLDER` only if they have that digest (``scripts/serve.py --bundle``).
    """
    mounted = [{"name": "predictions", "mountPath": f"{PROJECT_FOLDER}/var/environments/{environment}/predictions"}]
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": settings.image,
        "args": ["--bundle", MODEL_FOLDER, "--digest", digest],
        "env": [
            {"name": "STORAGE_URI", "value": f"{settings.stored_at}/{digest}"},
            {"name": "CLEARWAY_ENV", "value": environment},
            {"name": "PROTOCOL", "value": "v2"},
            *({"name": name, "value": value} for name, value in sorted(settings.env.items())),
        ],
        "ports": [{"containerPort": port, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": port}, "timeoutSeconds": 3},
        "resources": {kind: {"cpu": settings.cpu, "memory": settings.memory} for kind in ("limits", "requests")},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    predictor: dict[str, Any] = {
        "minReplicas": settings.min_replicas,
        "maxReplicas": settings.max_replicas,
        "automountServiceAccountToken": False,
        "containers": [container],
    }
    if settings.service_account is not None:
        predictor["serviceAccountName"] = settings.service_account
    if settings.log_claim is not None:
        container["volumeMounts"] = mounted
        predictor["volumes"] = [
            {"name": "predictions", "persistentVolumeClaim": {"claimName": settings.log_claim, "readOnly": False}}
        ]
    predictor["annotations"] = {DIGEST: digest, TEMPLATE: sha256_bytes(canonical_json(predictor))}
    if percent is not None:
        predictor["canaryTrafficPercent"] = percent
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": settings.name,
            "namespace": settings.namespace,
            "annotations": {"serving.kserve.io/deploymentMode": MODES[0]},
            "labels": {"app.kubernetes.io/managed-by": "clearway"},
        },
        "spec": {"predictor": predictor},
    }


def template_of(made: Mapping[str, Any]) -> str:
    """The hash of what a version is made from, as :func:`manifest` wrote it."""
    return str(made["spec"]["predictor"]["annotations"][TEMPLATE])


def revision_names(service: Mapping[str, Any]) -> set[str]:
    """The revisions that a service's status speaks of."""
    status = _status(service)
    fields = ("latestCreatedRevision", "latestReadyRevision", "latestRolledoutRevision", "previousRolledoutRevision")
    named = [status.get(field) for field in fields]
    named += [each.get("revisionName") for each in status.get("traffic") or ()]
    return {str(name) for name in named if name}


def revision(name: str, content: Mapping[str, Any] | None) -> Revision:
    """A Knative revision as the API shows it; one that is gone serves nobody."""
    if content is None:
        return Revision(name, None, None, False, "it is gone")
    annotations = content.get("metadata", {}).get("annotations") or {}
    ready, said = _condition(content, "Ready")
    return Revision(name, annotations.get(DIGEST), annotations.get(TEMPLATE), ready, said)


def observed(service: Mapping[str, Any], revisions: Mapping[str, Revision]) -> Observed:
    """What a service says, with the revisions that :func:`revision_names` names."""
    predictor, status = service.get("spec", {}).get("predictor") or {}, _status(service)
    annotations = predictor.get("annotations") or {}

    def named(field: str) -> Revision | None:
        name = status.get(field)
        return revisions.get(name) if name else None

    traffic: dict[str, int] = {}
    for each in status.get("traffic") or ():
        name = each.get("revisionName")
        if name and each.get("percent"):
            traffic[name] = traffic.get(name, 0) + int(each["percent"])
    routed, _ = _condition(service, "PredictorRouteReady")
    ready, said = _condition(service, "Ready")
    return Observed(
        resource_version=str(service.get("metadata", {}).get("resourceVersion", "")),
        digest=annotations.get(DIGEST),
        template=annotations.get(TEMPLATE),
        percent=predictor.get("canaryTrafficPercent"),
        created=named("latestCreatedRevision"),
        latest=named("latestReadyRevision"),
        rolled_out=named("latestRolledoutRevision"),
        previous=named("previousRolledoutRevision"),
        traffic=tuple((revisions[name], percent) for name, percent in sorted(traffic.items())),
        routed=routed is True,
        mode=service.get("status", {}).get("deploymentMode"),
        url=service.get("status", {}).get("url"),
        said="" if ready else said,
    )


def shares(found: Observed) -> dict[str, int]:
    """Percent of the traffic by digest; what is not ours counts under its revision's name."""
    got: dict[str, int] = {}
    for each, percent in found.traffic:
        who = each.digest or each.name
        got[who] = got.get(who, 0) + percent
    return got


def next_step(wanted: Wanted, found: Observed | None, template: str) -> Step:
    """What brings the service nearer to what the ledger wants.

    Parameters
    ----------
    wanted : Wanted
    found : Observed or None
        None if there is no service.
    template : str
        Hash of what the version that is to be the newest one would be made from now.

    Returns
    -------
    Step
        Repeated until ``done``, each on a new look, the steps end at the wanted traffic from wherever they begin; on
        the way nobody answers but what is wanted and what answered before.
    """
    stable, canary = wanted.stable, wanted.canary
    if found is None:
        return Step("introduce", "there is no service", stable)
    if found.mode is not None and found.mode not in MODES:
        return Step("wait", f"KServe runs it in mode {found.mode}, which splits no traffic", failed=True)
    if found.rolled_out is None:  # nobody answers yet, so nobody is asked to wait
        if found.digest != stable or _remade(found, template):
            return Step("introduce", "no version has ever been served", stable)
        if found.percent is not None:
            return Step("weigh", f"{stable[:12]} gets all traffic")
        return _wait(found, f"{stable[:12]} starts")
    if found.rolled_out.digest == stable:
        return _beside(wanted, found, template) if canary is not None else _alone(wanted, found)
    return _replace(stable, found, template)


def _alone(wanted: Wanted, found: Observed) -> Step:
    """All traffic is to stay with what has it."""
    assert found.rolled_out is not None
    own = _same(found.created, found.rolled_out) and found.template == found.rolled_out.template
    percent = None if own else 0
    if found.percent != percent:
        return Step("weigh", f"all traffic goes to {wanted.stable[:12]}", percent=percent)
    return _until(wanted, found)


def _beside(wanted: Wanted, found: Observed, template: str) -> Step:
    canary = wanted.canary
    assert canary is not None
    if found.digest != canary or _remade(found, template):
        return Step("introduce", f"{canary[:12]} starts beside {wanted.stable[:12]}", canary, 0)
    percent = wanted.weight if _is_up(found) else 0
    if found.percent != percent:
        return Step("weigh", f"{canary[:12]} gets {percent}%", percent=percent)
    return _until(wanted, found) if percent else _wait(found, f"{canary[:12]} starts")


def _replace(stable: str, found: Observed, template: str) -> Step:
    """Something else has all traffic."""
    now, before = found.rolled_out, found.previous
    assert now is not None
    newest = _same(found.created, now) and _same(found.latest, now) and found.template == now.template
    if newest and before is not None and before.digest == stable and before.ready is True:
        if found.percent != 0:
            return Step("weigh", f"KServe goes back to {before.name}", percent=0)
        return Step("wait", f"KServe goes back to {before.name}")
    if found.digest != stable or _remade(found, template):
        return Step("introduce", f"{stable[:12]} starts", stable, 0)
    percent = None if _is_up(found) else 0
    if found.percent != percent:
        return Step("weigh", f"{stable[:12]} gets all traffic" if percent is None else "nothing yet", percent=percent)
    return _wait(found, f"{stable[:12]} starts" if percent == 0 else f"{stable[:12]} gets all traffic")


def served_entry(entries: Sequence[Entry], found: Observed) -> Entry | None:
    """The newest entry whose versions and weights are those of the traffic; None if no entry says so."""
    got = shares(found)
    return next((entry for entry in reversed(entries) if Wanted.of(entry).shares == got), None)


def _until(wanted: Wanted, found: Observed) -> Step:
    if shares(found) == wanted.shares and found.routed:
        return Step("done", f"{wanted.stable[:12]} and the traffic are as the ledger says")
    return Step("wait", f"traffic goes to {told(found)}")


def told(found: Observed) -> str:
    """Who answers, for people."""
    return ", ".join(f"{who[:12]} {percent}%" for who, percent in sorted(shares(found).items())) or "nobody"


def _wait(found: Observed, why: str) -> Step:
    new = found.created
    if new is not None and new.template == found.template and new.ready is False:
        return Step("wait", f"revision {new.name} fails: {new.said or 'KServe does not say why'}", failed=True)
    return Step("wait", f"{why}{f'; KServe says: {found.said}' if found.said else ''}")


def _is_up(found: Observed) -> bool:
    """Whether the newest template has become a revision, and that one is the latest that is ready."""
    new = found.created
    return new is not None and new.template == found.template and _same(new, found.latest) and new.ready is True


def _remade(found: Observed, template: str) -> bool:
    """Whether a version that did not start would be made otherwise now: its settings were corrected."""
    new = found.created
    failed = new is not None and new.template == found.template and new.ready is False
    return failed and found.template != template


def _same(one: Revision | None, other: Revision | None) -> bool:
    return one is not None and other is not None and one.name == other.name


def _status(service: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (service.get("status", {}).get("components") or {}).get("predictor") or {}
    return found


def _condition(content: Mapping[str, Any], kind: str) -> tuple[bool | None, str]:
    for each in content.get("status", {}).get("conditions") or ():
        if each.get("type") == kind:
            said = " ".join(str(each.get("message") or each.get("reason") or "").split())[:300]
            return {"True": True, "False": False}.get(str(each.get("status"))), said
    return None, ""
