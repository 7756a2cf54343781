"""A real S3 API for tests: on a free loopback port, in memory, stopped by its id."""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

SIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""By whom a request is said to be; nobody checks."""


@dataclass(frozen=True)
class S3Server:
    """A running moto server. It takes any credentials, until told to look at them."""

    url: str

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = Request(f"{self.url}/{path}", data=body, method=method)
        request.add_header("Authorization", SIGNED)
        request.add_header("Content-Type", "text/plain")
        with urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def start_again(self, bucket: str) -> None:
        """Forget everything, and make one bucket."""
        self.ask("POST", "moto-api/reset")
        self.ask("PUT", bucket)

    def keys(self, bucket: str) -> list[str]:
        return re.findall("<Key>(.*?)</Key>", self.ask("GET", f"{bucket}?list-type=2").decode())

    @contextmanager
    def looking_at_credentials(self) -> Iterator[None]:
        """Refuse, in this context, every key: none was ever given out."""
        self.ask("POST", "moto-api/reset-auth", b"0")
        try:
            yield
        finally:
            self.ask("POST", "moto-api/reset-auth", b"inf")


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server of its own process, with its log in ``folder``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = folder / "s3.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        server = S3Server(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 60
        while True:
            try:
                server.ask("GET", "moto-api/data.json")
                break
            except URLError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(log.read_text()) from None
                time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.wait(10)
