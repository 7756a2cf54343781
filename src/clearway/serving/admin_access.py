"""Who may use ``/admin``: the holder of a token, a GitHub workflow by its signed identity, or this machine if allowed.

What decides is pure: :func:`check_unproven` and :func:`check_claims` see one request or one token and raise
:class:`AccessError`. :class:`Guard` reads the token, keeps the issuer's public keys and counts who was refused.
"""

import hmac
import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from clearway.admin_api import SHORTEST_TOKEN, TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, is_loopback
from clearway.errors import ClearwayError, UsageError
from clearway.params import AdminParams, OidcParams

if TYPE_CHECKING:
    from jwt import PyJWK

LEEWAY_SECONDS = 30
"""By how much the issuer's clock and ours may differ."""
KEYS_SECONDS, ASK_AGAIN_SECONDS, FETCH_SECONDS = 3600.0, 10.0, 5.0
"""How long public keys are kept, how soon an unknown one is looked for again, and how long that may take."""
MOST_KEY_BYTES = 2**20
ALGORITHMS = ("RS256",)
"""What GitHub signs with. No other: of one that takes a public key for a shared secret, anybody could make tokens."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:\d+)?")

logger = logging.getLogger("clearway.serving.admin")


class AccessError(ClearwayError):
    """A request that is not let in: 401 without a proof or with a wrong one, 403 where none would do."""

    def __init__(self, status: Literal[401, 403, 429, 503], reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Caller:
    """Who was let in."""

    name: str
    """As the ledger names the way in."""
    proven: str | None
    """Who it is, where the proof says so; a token says only that its holder may."""

    def actor(self, claimed: str | None) -> str:
        """Who acts, for the ledger: what is proven; else what the caller calls itself, and how it came in."""
        if self.proven is not None:
            return f"{self.proven} ({self.name})"
        return f"{claimed} ({self.name})" if claimed else self.name


# --- pure ------------------------------------------------------------------------------------------------------------


def check_unproven(host: str | None, headers: Mapping[str, str]) -> None:
    """Whether a request without proof comes from a program of this machine, and from no browser and through no proxy.

    A page of any site may have a browser ask an address of this machine, also under a name that it made up for it.

    Parameters
    ----------
    host : str or None
        The address that the connection comes from.
    headers : mapping
        By names in lower case.

    Raises
    ------
    AccessError
        It does not.
    """
    if not is_loopback(host or ""):
        raise AccessError(403, f"/admin is open to this machine only, not to {host}: set {TOKEN_VARIABLE}")
    name = headers.get("host", "")
    parts = _HOST.fullmatch(name)
    if parts is None or not is_loopback(parts[1].strip("[]")):
        raise AccessError(403, f"/admin without a token answers to localhost, 127.0.0.1 and ::1, not to {name[:100]!r}")
    for header in ("origin", "referer", "sec-fetch-site", "forwarded", "x-forwarded-for", "x-real-ip", "via"):
        if header in headers:
            raise AccessError(403, f"/admin without a token takes no request with the header {header}")


def check_claims(claims: Mapping[str, Any], rules: OidcParams, environment: str) -> Caller:
    """Who the verified claims of a GitHub token speak of, if it may change ``environment``.

    Raises
    ------
    AccessError
        It is of another repository, of a job outside the GitHub environment, or of an event that is not allowed.
    """
    wanted: dict[str, tuple[str, ...]] = {
        "repository": (rules.repository,),
        "environment": (rules.environment or environment, *rules.also),
        "event_name": rules.events,
    }
    for claim, allowed in wanted.items():
        found = claims.get(claim)
        if found not in allowed:
            raise AccessError(403, f"the token's {claim} is {str(found)[:100]!r}, expected {' or '.join(allowed)}")
    run = f"{rules.repository} run {str(claims.get('run_id', 'unknown'))[:40]}"
    return Caller(name=f"GitHub {run}", proven=str(claims.get("actor") or "workflow")[:100])


# --- effects ---------------------------------------------------------------------------------------------------------


def read_token(settings: AdminParams, environ: Mapping[str, str] = os.environ) -> bytes | None:
    """The token that opens ``/admin``; None if none is set.

    Raises
    ------
    UsageError
        It is set twice, too short, or its file cannot be read.
    """
    given = environ.get(TOKEN_VARIABLE)
    elsewhere = environ.get(TOKEN_FILE_VARIABLE) or settings.token_file
    if elsewhere is None:
        if given is None or given == "":
            return None
        token, source = given, TOKEN_VARIABLE
    else:
        source = TOKEN_FILE_VARIABLE if environ.get(TOKEN_FILE_VARIABLE) else "serving.admin.token_file"
        if given:
            raise UsageError(f"{TOKEN_VARIABLE} is set, and so is {source}: keep one")
        path = Path(elsewhere)
        try:
            token = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{source}: {path} cannot be read ({error}): /admin stays closed") from None
    token = token.strip()
    if len(token) < SHORTEST_TOKEN:
        raise UsageError(
            f"{source} has {len(token)} characters, a token needs {SHORTEST_TOKEN}: make one with openssl rand -hex 32"
        )
    return token.encode("utf-8")


class Guard:
    """Lets in, or refuses and counts. May block on the network: not for an event loop.

    Whoever has a right proof is let in however many wrong ones come at the same time.

    Raises
    ------
    UsageError
        The token that is set cannot be used, or the issuer's keys would be fetched unencrypted.
    """

    def __init__(self, settings: AdminParams, environment: str) -> None:
        self.refused = 0
        self._settings = settings
        self._environment = environment
        self._keys = _Keys(settings.oidc) if settings.oidc else None
        self._minute, self._logged = 0.0, 0
        read_token(settings)  # a server with a token that nobody could use should not start

    def admit(self, host: str | None, headers: Mapping[str, str]) -> Caller:
        """The caller of a request.

        Raises
        ------
        AccessError
            It is not let in.
        """
        try:
            return self._admit(host, headers)
        except AccessError as error:
            self._count(host, error)
            raise

    def _admit(self, host: str | None, headers: Mapping[str, str]) -> Caller:
        try:
            token = read_token(self._settings)
        except UsageError as error:
            raise AccessError(503, str(error)) from None
        if token is None and self._keys is None:
            if not self._settings.open_on_loopback:
                raise AccessError(403, f"/admin is closed: start the server with {TOKEN_VARIABLE}, see docs/remote.md")
            check_unproven(host, headers)
            return Caller("this machine, no token", None)
        scheme, _, proof = headers.get("authorization", "").partition(" ")
        proof = proof.strip()
        if scheme.lower() != "bearer" or not proof:
            raise AccessError(401, "/admin needs the header Authorization: Bearer TOKEN")
        if token is not None and hmac.compare_digest(proof.encode("utf-8", "surrogatepass"), token):
            return Caller("admin token", None)
        if self._keys is None or proof.count(".") != 2:
            raise AccessError(401, "the token is not the one of this server")
        assert self._settings.oidc is not None
        return check_claims(self._keys.verified(proof), self._settings.oidc, self._environment)

    def _count(self, host: str | None, error: AccessError) -> None:
        """Count a refusal. Beyond so many a minute it is no more logged: a log can be flooded too."""
        self.refused += 1
        now = time.monotonic()
        if now - self._minute >= 60.0:
            self._minute, self._logged = now, 0
        self._logged += 1
        if self._logged <= self._settings.max_failures:
            logger.warning("refused %s: %s", host, error)
            return
        if self._logged == self._settings.max_failures + 1:
            logger.warning("refused more than %d attempts within a minute", self._settings.max_failures)
        raise AccessError(429, "too many refused attempts: wait a minute")


class _Keys:
    """The issuer's public keys, fetched when a token names one that is not known."""

    def __init__(self, rules: OidcParams) -> None:
        self._rules = rules
        self._url = rules.jwks_url or f"{rules.issuer.rstrip('/')}/.well-known/jwks"
        address = urlsplit(self._url)
        if address.scheme != "https" and not (address.scheme == "http" and is_loopback(address.hostname or "")):
            raise UsageError(f"serving.admin.oidc.jwks_url {self._url}: public keys must come over https")
        self._lock = threading.Lock()
        self._known: dict[str, PyJWK] = {}
        self._fetched = self._asked = float("-inf")

    def verified(self, token: str) -> dict[str, Any]:
        """The claims of a token that is signed by the issuer, for us, and in force."""
        import jwt

        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS:
                raise AccessError(401, f"the token is signed by {str(header.get('alg'))[:20]!r}, expected RS256")
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key(str(header.get("kid"))),
                algorithms=list(ALGORITHMS),
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iat", "iss", "aud"], "strict_aud": True},
            )
        except jwt.PyJWTError as error:
            raise AccessError(401, f"the token is refused: {str(error)[:200]}") from None
        return claims

    def _key(self, kid: str) -> "PyJWK":
        with self._lock:
            now = time.monotonic()
            stale = now - self._fetched >= KEYS_SECONDS
            # whoever makes up names of keys may not have us ask the issuer for each of them
            if (stale or kid not in self._known) and now - self._asked >= ASK_AGAIN_SECONDS:
                self._asked = now
                self._known, self._fetched = self._fetch(), now
            if kid in self._known and now - self._fetched < KEYS_SECONDS:
                return self._known[kid]
        raise AccessError(401, f"the token is signed with the key {kid[:60]!r}, which {self._rules.issuer} has not")

    def _fetch(self) -> "dict[str, PyJWK]":
        import json

        import jwt
        import urllib3

        try:
            with urllib3.PoolManager(retries=False, timeout=FETCH_SECONDS) as pool:
                answer = pool.request("GET", self._url, redirect=False, preload_content=False)
                content = answer.read(MOST_KEY_BYTES + 1)
                answer.release_conn()
            if answer.status != 200 or len(content) > MOST_KEY_BYTES:
                raise ValueError(f"status {answer.status}, {len(content)} bytes")
            found = jwt.PyJWKSet.from_dict(json.loads(content))
        except (urllib3.exceptions.HTTPError, ValueError, TypeError, AttributeError, jwt.PyJWTError) as error:
            raise AccessError(503, f"the public keys of {self._rules.issuer} are out of reach: {error}") from None
        return {key.key_id: key for key in found.keys if key.key_id is not None and key.key_type == "RSA"}
