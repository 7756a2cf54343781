"""The environment is elsewhere: a Clearway server's ``/admin`` is asked, and what it says is kept here as a copy.

The copy of the ledger is verified, and a history that was cut or rewritten since is found out
(:mod:`clearway.ledger_copy`).

Every request may be sent twice: what reads changes nothing, a bundle is kept under its digest, and a change names the
head it follows on, so that the second one finds its own entry there. That is why requests that the network lost are
sent again, and answers of the server, whatever they say, never are.
"""

import base64
import json
import os
import shutil
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from pydantic import ValidationError

from clearway.admin_api import API, SHORTEST_TOKEN, TOKEN_VARIABLE, Head, HeadMovedError, is_loopback
from clearway.bundle import Bundle, keep
from clearway.bundle_tar import CHUNK, packed, unpack
from clearway.canary_state import canary_file
from clearway.errors import ClearwayError, UsageError
from clearway.files import atomic_path, write_json
from clearway.ledger import Change, Entry, locked, read_ledger
from clearway.ledger_copy import copy_ledger, is_copied
from clearway.lost_requests import LOST, is_untrusted, reason
from clearway.params import HttpTargetParams, Params, describe
from clearway.skew_state import skew_file
from clearway.targets import RemoteServer, variable_prefix
from clearway.workspace import Workspace

CONNECT_SECONDS = 10.0
FOLLOW_SECONDS, REFUSAL_SECONDS, POLL_SECONDS = 60.0, 5.0, 0.1
"""How long the server may take to serve a new revision, may report the same error, and the pause between two looks."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 8.0
"""Before a request is sent again: the first time, doubled each time, and at most."""
RENEW_SECONDS = 60.0
"""An identity that GitHub signed is asked for again so long before it ends."""
IDENTITY_RETRIES = urllib3.Retry(3, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), redirect=0)
"""GitHub is asked for one again where it does not answer or says that it cannot now: asking changes nothing."""
LOG_ATTEMPTS = 5
"""The files of a log may be packed into others while they are copied."""


@dataclass(frozen=True)
class _Answer:
    status: int
    content: bytes

    def json(self) -> dict[str, Any]:
        try:
            found = json.loads(self.content)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


class HttpTarget:
    """One environment of a server elsewhere.

    Raises
    ------
    UsageError
        Its address is missing, wrong, or would show a token to the network.
    """

    here = False
    projects_alias = True

    def __init__(self, params: Params, workspace: Workspace, environment: str, settings: HttpTargetParams) -> None:
        self._params = params
        self._workspace = workspace
        self._environment = environment
        self._folder = workspace.environment(environment)
        self._settings = settings
        self._prefix = variable_prefix(environment)
        self.url = self._checked_url()
        self.tls = self._tls()
        self._pool = urllib3.PoolManager(
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=settings.timeout_seconds),
            ssl_context=self.tls,
        )
        self._identity: tuple[str, float] | None = None
        self._found: dict[str, Any] | None = None

    # --- the environment's folder, as a copy ---

    def pull(self) -> None:
        state = self._state(again=True)
        head = _parsed_head(state, self.url)
        with locked(self._folder):
            if not is_copied(self._folder, head):
                content = self._ask("GET", "/admin/ledger").content
                copy_ledger(content, self._folder, self._environment, self.url)
            table = self._folder / "routing.json"
            for key, path in (
                ("rollout", canary_file(self._folder)),
                ("skew", skew_file(self._folder)),
                ("routing", table),
            ):
                if state.get(key) is not None:
                    write_json(path, state[key])
                else:
                    path.unlink(missing_ok=True)

    def pull_log(self, since_revision: int | None = None) -> None:
        folder, query = self._folder / "predictions", {"since_revision": str(since_revision or 0)}
        for _ in range(LOG_ATTEMPTS):
            listed = self._ask("GET", "/admin/predictions", query=query).json().get("files", ())
            names = {str(each["name"]) for each in listed}
            for name in names:
                if not (folder / name).resolve().is_relative_to(folder.resolve()):
                    raise ClearwayError(f"{self.url}: the prediction log names a file {name!r} outside its folder")
            if all(self._copy_log(folder, each) for each in listed if each["wanted"]):
                for path in folder.rglob("*"):
                    if path.is_file() and path.relative_to(folder).as_posix() not in names:
                        path.unlink()
                return
        raise ClearwayError(f"{self.url}: the files of the prediction log changed {LOG_ATTEMPTS} times while copied")

    def _copy_log(self, folder: Path, listed: Mapping[str, Any]) -> bool:
        """Copy what is new of one file; False if it is gone. A file of lines grows, others are replaced as a whole."""
        path, source = folder / listed["name"], f"/admin/predictions/{quote(listed['name'])}"
        had = path.stat() if path.is_file() else None
        if had is not None and had.st_size == listed["bytes"] and had.st_mtime >= listed["modified"]:
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jsonl" and (had is None or had.st_size <= listed["bytes"]):
            query = {"offset": str(had.st_size if had else 0)}
            with path.open("ab") as stream:
                return self._ask("GET", source, query=query, accept=(404,), into=stream).status != 404
        with atomic_path(path) as made, made.open("wb") as stream:
            return self._ask("GET", source, accept=(404,), into=stream).status != 404

    # --- bundles ---

    def check_ready(self) -> None:
        self._state()

    def lacks(self, digest: str) -> bool:
        return digest not in self._state().get("bundles", ())

    def bring(self, bundle: Bundle) -> None:
        size = sum(len(piece) for piece in packed(bundle))
        headers = {"content-type": "application/x-tar", "content-length": str(size)}
        self._ask("PUT", f"/admin/bundles/{bundle.digest}", headers=headers, bundle=bundle)
        self._found = None

    def fetch(self, digest: str) -> None:
        if (self._workspace.bundles / digest).is_dir() or self.lacks(digest):
            return
        with TemporaryDirectory() as folder:
            archive, made = Path(folder) / "archive", Path(folder) / "bundle"
            made.mkdir()
            with archive.open("wb") as target:
                self._ask("GET", f"/admin/bundles/{digest}", into=target)
            with archive.open("rb") as stream:
                unpack(stream, made, archive.stat().st_size)
            keep(made, self._workspace.bundles, digest)

    # --- changes ---

    def record(self, change: Change, expected_head: str) -> Entry:
        if change.action == "shadow":
            raise ClearwayError(
                f"{self.url}: its /admin opens and ends no shadows: run scripts/deploy.py --env {self._environment} "
                "with --strategy shadow or --end-shadow on the server's own machine"
            )
        from clearway.deployment import BOOTSTRAP_REASON

        entries = read_ledger(self._folder, self._environment)
        expected = Head.of(entries)
        if expected.hash != expected_head:
            raise HeadMovedError(self._environment, Head(sequence=expected.sequence, hash=expected_head), expected)
        order: dict[str, Any] = {
            "expected": expected.model_dump(),
            "reason": change.reason,
            "actor": change.actor,
            "evidence": dict(change.evidence),
        }
        action = "canary" if change.action == "promote" else change.action
        if action == "deploy":
            order |= {"digest": change.stable, "bootstrap": change.reason == BOOTSTRAP_REASON}
            order |= {} if change.warm_minutes is None else {"warm_minutes": change.warm_minutes}
        elif change.action == "promote":
            order |= {"digest": change.stable, "weight": 100}
        elif action == "canary":
            order |= {"digest": change.canary or entries[-1].canary, "weight": change.canary_weight}
        elif action == "rollback":
            order |= {"to": change.stable}
        elif action in ("quarantine", "release"):
            order |= {"digest": (*change.quarantines, *change.releases)[0]}
        if action in ("deploy", "canary") and (found := self._required()) is not None:
            order["required"] = found
            order["evidence"]["required"] = f"{found['environment']} entry {found['head']['sequence']}"
        answer = self._ask("POST", f"/admin/{action}", body=order, accept=(409,))
        made = _entry(answer.json().get("entry")) if answer.status == 200 else self._own_entry(change, expected)
        if made is None and answer.status == 409:
            raise HeadMovedError(self._environment, expected, _parsed_head(answer.json(), self.url))
        if made is None or not _is_as_planned(made, change, expected):
            raise ClearwayError(
                f"{self.url} made something else of the {change.action} that was planned here: "
                f"{answer.json().get('sentence') or 'no entry'}; compare params.yaml there and here"
            )
        self.pull()
        return made

    def _own_entry(self, change: Change, expected: Head) -> Entry | None:
        """The entry of this very change, if it was made and only the answer was lost."""
        entry = _entry(self._state(again=True).get("ledger"))
        return entry if entry is not None and _is_as_planned(entry, change, expected) else None

    def _required(self) -> dict[str, Any] | None:
        """What stands where a digest must be live first; its folder has just been pulled."""
        name = self._params.environment(self._environment).requires
        if name is None:
            return None
        entries = read_ledger(self._workspace.environment(name), name)
        stable = entries[-1].stable if entries else None
        return {"environment": name, "stable": stable, "head": Head.of(entries).model_dump()}

    def publish(self) -> None:
        content: dict[str, Any] = {"expected": Head.of(read_ledger(self._folder, self._environment)).model_dump()}
        for key, path in (("rollout", canary_file(self._folder)), ("skew", skew_file(self._folder))):
            if path.is_file():
                content[key] = json.loads(path.read_bytes())
        self._ask("PUT", "/admin/judgement", body=content)

    def project(self) -> None:
        """The server there does it, with the change."""

    def serve(self, revision: int) -> RemoteServer:
        deadline = time.monotonic() + FOLLOW_SECONDS
        refusal, refused_at, serving = None, 0.0, "nothing"
        while time.monotonic() < deadline:
            answer = self.describe() or {}
            error = answer.get("error")
            if answer:
                serving = f"revision {answer.get('revision')}"
            if answer and error is None and (answer.get("revision") or 0) >= revision:
                return RemoteServer(self.url)
            if error != refusal:
                refusal, refused_at = error, time.monotonic()
            if refusal is not None and time.monotonic() - refused_at >= REFUSAL_SECONDS:
                break
            time.sleep(POLL_SECONDS)
        raise ClearwayError(
            f"{self.url} does not serve revision {revision}, it serves {serving}: {refusal or 'it does not follow'}; "
            f"go back with scripts/rollback.py --env {self._environment}"
        )

    def find(self) -> RemoteServer | None:
        return RemoteServer(self.url)

    def describe(self) -> Mapping[str, Any] | None:
        try:
            answer = self._ask("GET", "/", retries=0)
        except ClearwayError:
            return None
        return answer.json() or None

    # --- asking ---

    def _state(self, *, again: bool = False) -> dict[str, Any]:
        """What the server says of itself, if it is the one that is meant and speaks our language."""
        if self._found is not None and not again:
            return self._found
        answer = self._ask("GET", "/admin/state", accept=(404,))
        state = answer.json()
        if answer.status == 404 or "api" not in state:
            raise ClearwayError(f"{self.url} has no /admin/state: it is no Clearway server, or an old one")
        if state["api"] != API:
            raise ClearwayError(
                f"{self.url} runs Clearway {state.get('version')}, whose /admin speaks version {state['api']}, and "
                f"this one {API}: bring both to the same release"
            )
        wanted = {"project": self._params.project.name, "environment": self._environment}
        for key, value in wanted.items():
            if state.get(key) != value:
                raise ClearwayError(
                    f"{self.url} serves {key} {state.get(key)!r}, expected {value!r}: correct "
                    f"environments.{self._environment}.target.url or {self._prefix}_URL"
                )
        self._found = state
        return state

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        bundle: Bundle | None = None,
        accept: tuple[int, ...] = (),
        into: IO[bytes] | None = None,
        retries: int | None = None,
    ) -> _Answer:
        """Send a request until something answers it; the content of a success goes ``into`` a file, if one is given.

        Raises
        ------
        ClearwayError
            Nothing does, or the answer is an error that is not among ``accept``.
        """
        address = f"{self.url}{path}{'?' + urlencode(query) if query else ''}"
        sent = dict(headers or {})
        if path != "/":
            sent["authorization"] = f"Bearer {self._token()}"
        if body is not None:
            sent["content-type"] = "application/json"
        began = into.tell() if into is not None else 0
        attempts = 1 + (self._settings.retries if retries is None else retries)
        for attempt in range(1, attempts + 1):
            content = json.dumps(body).encode() if body is not None else packed(bundle) if bundle else None
            try:
                with self._pool.request(
                    method, address, headers=sent, body=content, redirect=False, preload_content=False
                ) as answer:
                    if into is not None and answer.status < 300:
                        shutil.copyfileobj(answer, into, CHUNK)
                        return _Answer(answer.status, b"")
                    found = _Answer(answer.status, answer.read())
                    break
            except LOST as error:
                if is_untrusted(error):
                    raise ClearwayError(
                        f"{self.url}: its certificate is not trusted ({reason(error)}): name the authority that "
                        f"signed it in environments.{self._environment}.target.ca_file"
                    ) from None
                if attempt == attempts:
                    raise ClearwayError(f"{self.url} is out of reach ({attempt} attempts): {reason(error)}") from None
            if into is not None:
                into.seek(began)
                into.truncate()
            time.sleep(min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (attempt - 1)))
        if found.status < 300 or found.status in accept:
            return found
        raise ClearwayError(self._complaint(method, path, found))

    def _complaint(self, method: str, path: str, answer: _Answer) -> str:
        said = str(answer.json().get("error") or "")[:500]
        if answer.status in (401, 403):
            return (
                f"{self.url} lets nobody in with this token ({answer.status}{f': {said}' if said else ''}): set "
                f"{self._prefix}_TOKEN or {TOKEN_VARIABLE} to the one of that server (docs/remote.md)"
            )
        if 300 <= answer.status < 400:
            return f"{self.url} answers {method} {path} with a redirection ({answer.status}): name the address itself"
        if answer.status in (400, 409, 413, 422) and said:
            return said
        return f"{self.url} answers {method} {path} with {answer.status}{f': {said}' if said else ''}"

    def _checked_url(self) -> str:
        key = f"environments.{self._environment}.target.url"
        url = os.environ.get(f"{self._prefix}_URL") or self._settings.url
        if not url:
            raise UsageError(f"{key} is missing: set it in params.yaml, or {self._prefix}_URL")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(f"{key} = {url!r}: expected https://HOST[:PORT][/PATH]")
        if parts.username or parts.password:
            raise UsageError(f"{key}: the address holds a password: put the token into {self._prefix}_TOKEN instead")
        if parts.scheme == "http" and not is_loopback(parts.hostname) and not self._settings.plain_http:
            raise UsageError(
                f"{key} = {url!r}: the token would travel unencrypted: use https, or, inside a network that you "
                "trust, set plain_http: true beside it"
            )
        return url.rstrip("/")

    def _tls(self) -> ssl.SSLContext | None:
        if not self.url.startswith("https:"):
            return None
        ca_file = self._settings.ca_file
        try:
            return ssl.create_default_context(cafile=None if ca_file is None else str(self._workspace.root / ca_file))
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"environments.{self._environment}.target.ca_file = {ca_file}: {error}") from None

    def _token(self) -> str:
        """The environment's own token, the general one, or an identity that GitHub signs for the running job."""
        for variable in (f"{self._prefix}_TOKEN", TOKEN_VARIABLE):
            if token := os.environ.get(variable, "").strip():
                if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
                    raise UsageError(f"{variable} is no token: expected {SHORTEST_TOKEN} or more plain characters")
                return token
        url = os.environ.get("ACTIONS_ID_TOKEN_REQUEST_URL")
        if not url:
            raise UsageError(
                f"no token for {self.url}: set {self._prefix}_TOKEN or {TOKEN_VARIABLE}, or let the GitHub job have "
                "permissions: id-token: write (docs/remote.md)"
            )
        if self._identity is None or self._identity[1] - time.time() < RENEW_SECONDS:
            self._identity = self._ask_github(url)
        return self._identity[0]

    def _ask_github(self, url: str) -> tuple[str, float]:
        oidc = self._params.serving.admin.oidc
        audience = oidc.audience if oidc else "clearway"
        address = f"{url}{'&' if '?' in url else '?'}{urlencode({'audience': audience})}"
        bearer = {"authorization": f"Bearer {os.environ.get('ACTIONS_ID_TOKEN_REQUEST_TOKEN', '')}"}
        try:
            with urllib3.PoolManager(retries=IDENTITY_RETRIES, timeout=CONNECT_SECONDS) as pool:
                answer = pool.request("GET", address, headers=bearer, redirect=False)
            token = str(json.loads(answer.data)["value"])
            claims = token.split(".")[1]
            return token, float(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"])
        except (*LOST, ValueError, KeyError, IndexError, TypeError) as error:
            raise ClearwayError(f"GitHub gave no identity token for the audience {audience}: {reason(error)}") from None


def _parsed_head(state: Mapping[str, Any], url: str) -> Head:
    try:
        return Head.model_validate(state.get("head"))
    except ValidationError as error:
        raise ClearwayError(f"{url}: it names no head of its ledger ({describe(error)})") from None


def _entry(content: Any) -> Entry | None:
    try:
        return None if content is None else Entry.model_validate(content)
    except ValidationError as error:
        raise ClearwayError(f"the server answers with what is no ledger entry ({describe(error)})") from None


def _is_as_planned(entry: Entry, change: Change, expected: Head) -> bool:
    """Whether an entry follows on the expected one and says what was planned; the server adds to actor and evidence."""
    same = ("action", "stable", "canary", "canary_weight", "quarantines", "releases", "warm_minutes", "reason")
    return entry.previous_hash == expected.hash and all(
        getattr(entry, field) == getattr(change, field) for field in same
    )
