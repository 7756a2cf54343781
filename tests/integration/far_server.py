"""What stands between two machines: a proxy that encrypts or loses answers, and GitHub as far as a job sees it."""

import datetime
import http.client
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler], certificate: Path | None = None) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def proxy(port: int, *, lose: list[str] | None = None, certificate: Path | None = None) -> Iterator[int]:
    """Passes requests on; the answer to each method in ``lose`` is lost once, after the server has given it."""
    losing = lose if lose is not None else []

    class Proxy(_Handler):
        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request(self.command, self.path, body or None, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if self.command in losing:
                losing.remove(self.command)
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("content-type", answer.getheader("content-type", ""))
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.pass_on()

        def do_POST(self) -> None:
            self.pass_on()

        def do_PUT(self) -> None:
            self.pass_on()

    with listening(Proxy, certificate) as own:
        yield own


def self_signed(path: Path) -> Path:
    """A certificate for 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + made.public_bytes(Encoding.PEM))
    return path


class GitHub:
    """Gives a job its identity token for an audience, and everybody its public keys."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {"repository": "ann/models", "environment": "production", "event_name": "push"}
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def token(self, audience: str) -> str:
        now = int(time.time())
        claims = {"iss": "https://token.actions.githubusercontent.com", "aud": audience, "iat": now, "exp": now + 300}
        claims |= {"actor": "ann", "run_id": "4711", **self.claims}
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": "one"})

    @contextmanager
    def running(self) -> Iterator[str]:
        """Its address."""
        github = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                if path == "/jwks":
                    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(github._key.public_key()))
                    content = {"keys": [{**public, "kid": "one", "alg": "RS256"}]}
                else:
                    assert self.headers["authorization"] == "Bearer of-this-job"
                    content = {"value": github.token(query.rpartition("audience=")[2])}
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

        with listening(Handler) as port:
            yield f"http://127.0.0.1:{port}"
