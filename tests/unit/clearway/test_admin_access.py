"""Who is let in to ``/admin``: by a token, by an identity that GitHub signed, or from this machine."""

import base64
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from clearway.admin_api import is_loopback
from clearway.errors import UsageError
from clearway.params import AdminParams, OidcParams
from clearway.serving.admin_access import AccessError, Guard, check_claims, check_unproven, read_token

TOKEN = "correct-horse-battery-staple-0123456789"
HERE = {"host": "127.0.0.1:8080"}
ISSUER = "https://token.actions.githubusercontent.com"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLEARWAY_ADMIN_TOKEN", "CLEARWAY_ADMIN_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


def bearer(token: str) -> dict[str, str]:
    return {**HERE, "authorization": f"Bearer {token}"}


def refused(guard: Guard, headers: dict[str, str], host: str | None = "127.0.0.1") -> AccessError:
    with pytest.raises(AccessError) as caught:
        guard.admit(host, headers)
    return caught.value


# --- tokens ---


def test_without_any_token_it_is_closed_even_to_this_machine() -> None:
    error = refused(Guard(AdminParams(), "production"), bearer(TOKEN))
    assert error.status == 403
    assert "start the server with CLEARWAY_ADMIN_TOKEN" in str(error)


def test_the_right_token_is_let_in_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARWAY_ADMIN_TOKEN", TOKEN)
    caller = Guard(AdminParams(), "production").admit("203.0.113.9", bearer(TOKEN))
    assert caller.actor("ann") == "ann (admin token)"
    assert caller.actor(None) == "admin token"


@pytest.mark.parametrize(
    "header",
    [
        "", TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}",
        "Bearer \udce4\udc00", f"Bearer {TOKEN} {TOKEN}", "Bearer a.b.c",
    ],
)  # fmt: skip
def test_a_wrong_token_is_refused_and_never_logged(
    header: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CLEARWAY_ADMIN_TOKEN", TOKEN)
    guard = Guard(AdminParams(), "production")
    error = refused(guard, {**HERE, "authorization": header})
    assert (error.status, guard.refused) == (401, 1)
    assert "refused 127.0.0.1" in caplog.text
    assert TOKEN[:-1] not in caplog.text + str(error)


def test_no_header_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARWAY_ADMIN_TOKEN", TOKEN)
    assert refused(Guard(AdminParams(open_on_loopback=True), "production"), HERE).status == 401


def test_a_token_that_could_be_guessed_stops_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARWAY_ADMIN_TOKEN", "secret")
    with pytest.raises(UsageError, match=r"CLEARWAY_ADMIN_TOKEN has 6 characters, a token needs 32"):
        Guard(AdminParams(), "production")


def test_a_token_file_is_read_again_so_that_a_token_can_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    settings = AdminParams(token_file=str(tmp_path / "token"))
    guard = Guard(settings, "production")
    assert guard.admit(None, bearer(TOKEN)).proven is None
    (tmp_path / "token").write_text("another-" * 5)
    assert refused(guard, bearer(TOKEN)).status == 401
    assert guard.admit(None, bearer("another-" * 5))
    (tmp_path / "token").unlink()
    assert refused(guard, bearer("another-" * 5)).status == 503
    with pytest.raises(UsageError, match="cannot be read"):
        Guard(settings, "production")
    (tmp_path / "credential").write_text(TOKEN)
    monkeypatch.setenv("CLEARWAY_ADMIN_TOKEN_FILE", str(tmp_path / "credential"))
    assert guard.admit(None, bearer(TOKEN)).proven is None, "the machine's own file comes before the project's"
    monkeypatch.setenv("CLEARWAY_ADMIN_TOKEN", TOKEN)
    with pytest.raises(UsageError, match="keep one"):
        read_token(settings)


def test_many_wrong_tokens_neither_flood_the_log_nor_lock_out_the_right_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CLEARWAY_ADMIN_TOKEN", TOKEN)
    guard = Guard(AdminParams(max_failures=5), "production")
    with caplog.at_level(logging.WARNING):
        statuses = [refused(guard, bearer(f"{number:040d}")).status for number in range(50)]
    assert statuses == [401] * 5 + [429] * 45
    assert (guard.refused, len(caplog.records)) == (50, 6)
    assert guard.admit("127.0.0.1", bearer(TOKEN))


# --- this machine ---


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080"])
def test_a_program_of_this_machine_is_let_in_where_that_is_allowed(host: str) -> None:
    caller = Guard(AdminParams(open_on_loopback=True), "production").admit("127.0.0.1", {"host": host})
    assert caller.actor("ann") == "ann (this machine, no token)"


@pytest.mark.parametrize("address", ["10.0.0.4", "203.0.113.9", "::ffff:10.0.0.4", "fe80::1", "", None, "unix"])
def test_another_machine_is_not(address: str | None) -> None:
    with pytest.raises(AccessError, match="this machine only"):
        check_unproven(address, HERE)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "", "127.0.0.1@evil.example",
        "evil.example@127.0.0.1", "[", "[::1", "0.0.0.0",
    ],
)  # fmt: skip
def test_a_name_that_was_rebound_to_this_machine_is_not(host: str) -> None:
    with pytest.raises(AccessError, match="answers to localhost"):
        check_unproven("127.0.0.1", {"host": host})


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("origin", "null"), ("origin", "http://127.0.0.1:8080"), ("sec-fetch-site", "none"), ("referer", "http://x"),
        ("x-forwarded-for", "203.0.113.9"), ("forwarded", "for=203.0.113.9"), ("via", "1.1 proxy"),
        ("x-real-ip", "203.0.113.9"),
    ],
)  # fmt: skip
def test_neither_a_browser_nor_a_proxy_is_let_in_without_a_token(header: str, value: str) -> None:
    with pytest.raises(AccessError, match=f"no request with the header {header}"):
        check_unproven("127.0.0.1", {**HERE, header: value})


def test_what_loopback_means() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "localhost", "::ffff:127.0.0.1"]))
    assert not any(map(is_loopback, ["", "localhost.", "0.0.0.0", "127.1", "10.0.0.1", "2130706433", "example.org"]))


# --- GitHub's identities ---


class Issuer:
    """Signs tokens as GitHub does, and serves its public keys on loopback."""

    def __init__(self) -> None:
        self.keys = {"one": rsa.generate_private_key(public_exponent=65537, key_size=2048)}
        self.asked = 0
        self.down = False
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                content = b"oops" if issuer.down else json.dumps({"keys": issuer.public()}).encode()
                self.send_response(500 if issuer.down else 200)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def public(self) -> list[dict[str, Any]]:
        algorithm = jwt.algorithms.RSAAlgorithm
        made = [(kid, json.loads(algorithm.to_jwk(key.public_key()))) for kid, key in self.keys.items()]
        return [{**jwk, "kid": kid, "alg": "RS256", "use": "sig"} for kid, jwk in made]

    @property
    def rules(self) -> OidcParams:
        url = f"http://127.0.0.1:{self.server.server_address[1]}/jwks"
        return OidcParams(repository="ann/models", audience="models.example.org", jwks_url=url)

    def token(self, kid: str = "one", sign_with: str | None = None, **changed: Any) -> str:
        now = int(time.time())
        claims = {
            "iss": ISSUER, "aud": "models.example.org", "sub": "repo:ann/models:environment:production",
            "repository": "ann/models", "environment": "production", "event_name": "push", "actor": "ann",
            "run_id": "4711", "ref": "refs/heads/main", "iat": now - 5, "nbf": now - 5, "exp": now + 300, **changed,
        }  # fmt: skip
        content = {key: value for key, value in claims.items() if value is not None}
        return jwt.encode(content, self.keys[sign_with or kid], algorithm="RS256", headers={"kid": kid})


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def guard(issuer: Issuer) -> Guard:
    return Guard(AdminParams(oidc=issuer.rules, max_failures=1000), "production")


def test_a_job_of_the_repository_in_its_environment_is_let_in(guard: Guard, issuer: Issuer) -> None:
    for _ in range(3):
        caller = guard.admit("203.0.113.9", bearer(issuer.token()))
    assert caller.actor("somebody else") == "ann (GitHub ann/models run 4711)", "what is proven counts"
    assert issuer.asked == 1, "public keys are kept"


def test_a_token_of_its_own_is_good_beside_them(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARWAY_ADMIN_TOKEN", TOKEN)
    guard = Guard(AdminParams(oidc=issuer.rules), "production")
    assert guard.admit(None, bearer(TOKEN)).proven is None
    assert guard.admit(None, bearer(issuer.token())).proven == "ann"


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("repository", "eve/models"), ("repository", "ann/models2"), ("repository", "Ann/Models"), ("repository", None),
        ("environment", "staging"), ("environment", None), ("event_name", "pull_request"),
        ("event_name", "pull_request_target"), ("event_name", None), ("environment", ["production"]),
    ],
)  # fmt: skip
def test_another_job_is_not(claim: str, value: Any, guard: Guard, issuer: Issuer) -> None:
    error = refused(guard, bearer(issuer.token(**{claim: value})))
    assert error.status == 403
    assert f"the token's {claim} is" in str(error)


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("iss", "https://evil.example"), ("iss", None), ("aud", "other"), ("aud", None),
        ("aud", ["models.example.org", "x"]), ("exp", 1_000_000), ("exp", None), ("exp", "soon"),
        ("nbf", 4_000_000_000), ("iat", None), ("iat", 4_000_000_000),
    ],
)  # fmt: skip
def test_a_token_that_is_not_for_us_or_not_in_force_is_refused(
    claim: str, value: Any, guard: Guard, issuer: Issuer
) -> None:
    assert refused(guard, bearer(issuer.token(**{claim: value}))).status == 401


def test_a_clock_that_is_a_little_off_is_forgiven(guard: Guard, issuer: Issuer) -> None:
    now = int(time.time())
    assert guard.admit(None, bearer(issuer.token(exp=now - 10, nbf=now + 10, iat=now + 10)))
    assert refused(guard, bearer(issuer.token(exp=now - 60))).status == 401


def test_a_token_that_somebody_else_signed_is_refused(guard: Guard, issuer: Issuer) -> None:
    issuer.keys["own"] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    forged = issuer.token("one", sign_with="own")
    del issuer.keys["own"]
    assert "Signature" in str(refused(guard, bearer(forged)))


def encoded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "HS512", "RS1", "PS256", "", None, 7])
def test_no_other_algorithm_is_taken(algorithm: Any, guard: Guard, issuer: Issuer) -> None:
    claims = issuer.token().split(".")[1]
    unsigned = f"{encoded({'alg': algorithm, 'kid': 'one', 'typ': 'JWT'})}.{claims}"
    for form in ((Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), (Encoding.DER, PublicFormat.PKCS1)):
        # the classic: the public key, which everybody knows, taken for a shared secret
        public = issuer.keys["one"].public_key().public_bytes(*form)
        signature = base64.urlsafe_b64encode(hmac.new(public, unsigned.encode(), hashlib.sha256).digest())
        assert refused(guard, bearer(f"{unsigned}.{signature.rstrip(b'=').decode()}")).status == 401
    assert refused(guard, bearer(f"{unsigned}.")).status == 401


def test_a_key_that_a_token_brings_along_is_not_used(guard: Guard, issuer: Issuer) -> None:
    own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    brought = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(own.public_key()))
    headers = {"kid": "mine", "jwk": brought, "jku": "http://evil.example/jwks"}
    assert "'mine', which" in str(refused(guard, bearer(jwt.encode(claims, pem, "RS256", headers))))


def test_a_new_key_of_the_issuer_is_found_and_made_up_ones_do_not_have_it_asked(
    guard: Guard, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert guard.admit(None, bearer(issuer.token()))
    issuer.keys["two"] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for number in range(20):
        assert refused(guard, bearer(issuer.token(f"made-up-{number}", sign_with="one"))).status == 401
    assert issuer.asked == 1
    monkeypatch.setattr("clearway.serving.admin_access.ASK_AGAIN_SECONDS", 0.0)
    assert guard.admit(None, bearer(issuer.token("two")))
    assert issuer.asked == 2


def test_without_the_issuers_keys_nobody_is_let_in(guard: Guard, issuer: Issuer) -> None:
    issuer.down = True
    error = refused(guard, bearer(issuer.token()))
    assert error.status == 503
    assert "out of reach" in str(error)


def test_keys_come_over_https() -> None:
    rules = OidcParams(repository="ann/models", jwks_url="http://keys.example/jwks")
    with pytest.raises(UsageError, match="must come over https"):
        Guard(AdminParams(oidc=rules), "production")


def test_the_environment_may_have_another_name_at_github() -> None:
    rules = OidcParams(repository="ann/models", environment="live")
    claims = {"repository": "ann/models", "environment": "live", "event_name": "push"}
    assert check_claims(claims, rules, "production").proven == "workflow"
    with pytest.raises(AccessError, match="expected live"):
        check_claims({**claims, "environment": "production"}, rules, "production")


def test_further_environments_at_github_are_let_in_by_name() -> None:
    rules = OidcParams(repository="ann/models", also=("watch",))
    claims = {"repository": "ann/models", "event_name": "schedule"}
    for name in ("production", "watch"):
        assert check_claims({**claims, "environment": name}, rules, "production").proven == "workflow"
    with pytest.raises(AccessError, match="expected production or watch"):
        check_claims({**claims, "environment": "alerts"}, rules, "production")
