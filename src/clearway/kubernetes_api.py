"""A few requests to the Kubernetes API over HTTP: read, apply on the server's side, patch, and errors in one line.

What is asked for may be sent twice: reads change nothing, and whatever writes names the ``resourceVersion`` that it
follows on, or is the same the second time. So requests that the network lost, and answers that ask for it (429, 5xx),
are sent again; every other answer is final.

https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

import json
import os
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3

from clearway.admin_api import is_loopback
from clearway.errors import ClearwayError, UsageError
from clearway.lost_requests import LOST, is_untrusted, reason

APPLY, MERGE, JSON = "application/apply-patch+yaml", "application/merge-patch+json", "application/json"
MANAGER = "clearway"
"""Who the fields of what is applied belong to."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token, its cluster's certificate authority and its namespace."""
CONNECT_SECONDS = 10.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 8.0
"""Before a request is sent again: the first time, doubled each time, and at most."""
MOST_BYTES = 8 * 2**20
"""Of one answer: no object of etcd is larger than 1.5 MB."""
_AGAIN = (429, 500, 502, 503, 504)


class ConflictError(ClearwayError):
    """The object is not the one that was read (409)."""


class RefusedError(ClearwayError):
    """The API will not have this object (400 or 422)."""


class KubernetesApi:
    """The API of one cluster.

    Parameters
    ----------
    url : str
        Without a slash at its end.
    token : callable
        Gives the bearer token; asked each time, because a pod's is replaced while it runs.
    tls : SSLContext or None
        With what its certificate is checked; None for plain HTTP.
    timeout : float
        Seconds for one answer, all of it.
    retries : int
        How often a request is sent again.
    hint : str
        What to correct if nobody is let in.
    """

    def __init__(
        self, url: str, token: Callable[[], str], tls: ssl.SSLContext | None, timeout: float, retries: int, hint: str
    ) -> None:
        self.url = url
        self._token = token
        self._timeout = timeout
        self._retries = retries
        self._hint = hint
        limit = urllib3.Timeout(connect=min(CONNECT_SECONDS, timeout), read=timeout)
        self._pool = urllib3.PoolManager(retries=False, timeout=limit, ssl_context=tls)

    def read(self, path: str) -> dict[str, Any] | None:
        """The object at ``path``; None if there is none.

        Raises
        ------
        ClearwayError
            Nothing answers, or the answer is neither an object nor 404.
        """
        status, content = self._ask("GET", path)
        return None if status == 404 else content

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make an object in the collection ``path``.

        Raises
        ------
        ConflictError
            There is one of that name.
        ClearwayError
            As of :meth:`read`, or it is refused.
        """
        return self._write("POST", path, body, JSON, {"fieldManager": MANAGER})

    def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Put an object in the place of the one whose ``resourceVersion`` it names; raises as :meth:`create`."""
        return self._write("PUT", path, body, JSON, {"fieldManager": MANAGER})

    def apply(self, path: str, body: Mapping[str, Any], *, rehearse: bool = False) -> dict[str, Any]:
        """Server-side apply, taking over fields that somebody else set; raises as :meth:`create`.

        ``rehearse`` has admission judge it and changes nothing.
        """
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        return self._write("PATCH", path, body, APPLY, {**query, "dryRun": "All"} if rehearse else query)

    def merge(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change the fields that ``body`` names, and remove those that are None in it; raises as :meth:`create`."""
        return self._write("PATCH", path, body, MERGE, {"fieldManager": MANAGER, "fieldValidation": "Strict"})

    def _write(
        self, method: str, path: str, body: Mapping[str, Any], kind: str, query: Mapping[str, str]
    ) -> dict[str, Any]:
        status, content = self._ask(method, f"{path}?{urlencode(query)}", json.dumps(body).encode(), kind)
        if status == 404:
            raise ClearwayError(self._complaint(method, path, status, content))
        return content

    def _ask(
        self, method: str, path: str, body: bytes | None = None, kind: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Send until something answers; 404 is left to the caller."""
        for attempt in range(1, self._retries + 2):
            last = attempt > self._retries
            headers = {"accept": JSON, "authorization": f"Bearer {self._token()}"}
            if kind is not None:
                headers["content-type"] = kind
            wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
            try:
                status, found, after = self._once(method, path, headers, body)
            except LOST as error:
                if is_untrusted(error):
                    raise ClearwayError(
                        f"{self.url}: its certificate is not trusted ({reason(error)}): name the cluster's authority "
                        "in target.ca_file"
                    ) from None
                if last:
                    raise ClearwayError(
                        f"the Kubernetes API at {self.url} is out of reach ({attempt} attempts): {reason(error)}"
                    ) from None
                time.sleep(wait)
                continue
            if status in _AGAIN and not last:
                time.sleep(max(wait, min(after, LONGEST_WAIT_SECONDS)))
                continue
            content = _object(found)
            if content is None and status < 300:
                raise ClearwayError(
                    f"{self.url} answers {method} {_shown(path)} with what is no object: no Kubernetes?"
                )
            if status < 300 or status == 404:
                return status, content or {}
            raise _error_of(status)(self._complaint(method, path, status, content or {}))
        raise AssertionError("unreachable")

    def _once(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> tuple[int, bytes, float]:
        deadline = time.monotonic() + self._timeout
        with self._pool.request(
            method, f"{self.url}{path}", headers=dict(headers), body=body, redirect=False, preload_content=False
        ) as answer:
            found = bytearray()
            while piece := answer.read1(65536):  # a server that sends a byte now and then must not hold us for ever
                found += piece
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the answer took longer than {self._timeout:g} s")
                if len(found) > MOST_BYTES:
                    raise OSError(f"the answer is larger than {MOST_BYTES:,} bytes")
            after = answer.headers.get("retry-after", "")
            return answer.status, bytes(found), float(after) if after.isdigit() else 0.0

    def _complaint(self, method: str, path: str, status: int, content: Mapping[str, Any]) -> str:
        said = " ".join(str(content.get("message") or content.get("reason") or "").split())[:600]
        what = f"{method} {_shown(path)}"
        why = f": {said}" if said else ""
        if status == 401:
            return f"the Kubernetes API at {self.url} does not accept the token (401{why}): {self._hint}"
        if status == 403:
            return f"the token may not {what} ({status}{why}): grant it deploy/kserve-role.yaml, or {self._hint}"
        if status == 404:
            return f"the Kubernetes API at {self.url} has no {_shown(path)} (404{why}): namespace or KServe is missing"
        if 300 <= status < 400:
            return f"{self.url} answers {what} with a redirection ({status}): name the API's address itself"
        return f"the Kubernetes API at {self.url} answers {what} with {status}{why}"


def checked_url(url: str, key: str, *, plain_http: bool) -> str:
    """The address of an API, as it is asked.

    Raises
    ------
    UsageError
        It is none, holds a password, or would show a token to the network.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"{key} = {url!r}: expected https://HOST[:PORT][/PATH]")
    if parts.username or parts.password:
        raise UsageError(f"{key}: the address holds a password: put the token into an environment variable instead")
    if parts.scheme == "http" and not is_loopback(parts.hostname) and not plain_http:
        raise UsageError(
            f"{key} = {url!r}: the token would travel unencrypted: use https, or, inside a network that you trust, set "
            "plain_http: true beside it"
        )
    return url.rstrip("/")


def cluster_url() -> str | None:
    """The API of the cluster that this process runs in; None outside of one."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return None
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


def _error_of(status: int) -> type[ClearwayError]:
    return ConflictError if status == 409 else RefusedError if status in (400, 422) else ClearwayError


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _shown(path: str) -> str:
    return path.partition("?")[0]
