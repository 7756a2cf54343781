"""Load for one HTTP server, from one thread and raw sockets, so that little of the machine is spent on asking.

``load.py closed PORT REQUESTS CONNECTIONS SECONDS``: each connection asks again as soon as it is answered.
``load.py open PORT REQUESTS CLIENTS RATE SECONDS``: requests fall due by chance (a Poisson process), whatever the
server does; each client has one connection, and one that still waits asks late. Every latency counts from the moment
the request was due, so that a server that stalls cannot hide the requests it kept from being sent.

REQUESTS is a JSON file: ``path``, ``bodies`` (texts), and ``holds``, what every answer must contain. Any other status
than 200, an answer without it, a connection that breaks, and a request not answered within ten seconds of the end are
errors. Latencies of requests that failed are left out.
"""

import gc
import json
import random
import select
import socket
import statistics
import sys
import time
from array import array
from collections import Counter, deque
from pathlib import Path
from typing import Any

PATIENCE = 10.0
"""Seconds after the end in which an answer still counts."""


class Client:
    """One connection: sends what is due, one request at a time, and reads the answers."""

    def __init__(self, port: int, holds: bytes) -> None:
        self._port = port
        self._holds = holds
        self.waiting: deque[tuple[float, bytes]] = deque()
        """When each request was due, and its bytes; the first is being answered if ``busy``."""
        self.busy = False
        self.connect()

    def connect(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.fileno = self.socket.fileno  # what select() asks for
        self._answer = b""

    def reconnect(self) -> None:
        self.socket.close()
        self.connect()

    def send(self) -> bool:
        """Send the first request that waits; False if the connection is broken."""
        self.busy = True
        try:
            return self.socket.send(self.waiting[0][1]) == len(self.waiting[0][1])
        except OSError:
            return False

    def receive(self) -> str | None:
        """What came of the request: ``200``, another status, ``wrong`` or ``broken``; None while it is not complete."""
        try:
            piece = self.socket.recv(65536)
        except BlockingIOError:
            return None
        except OSError:
            piece = b""
        if not piece:
            return "broken"
        answer = self._answer = self._answer + piece if self._answer else piece
        end = answer.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = answer[:end].lower()
        at = head.find(b"content-length:")
        if at < 0:
            return "broken"  # neither server sends an answer in chunks
        if len(answer) < end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0]):
            return None
        self._answer = b""
        status = answer[9:12].decode()
        said = status if status != "200" or self._holds in answer else "wrong"
        if b"connection: close" in head:
            self.reconnect()
        return said


class Tally:
    """What was measured."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.latencies = array("d")
        self.late = array("d")
        self.outcomes: Counter[str] = Counter()
        self.sent = 0
        """All requests sent, the warm-up's too."""

    def count(self, outcome: str, latency: float) -> None:
        self.outcomes[outcome] += 1
        if outcome == "200":
            self.latencies.append(latency)

    def report(self) -> dict[str, Any]:
        return {
            "requests": self.outcomes.total(),
            "sent": self.sent,
            "requests_per_second": self.outcomes["200"] / self.seconds,
            **{f"p{share}_ms": _percentile(self.latencies, share) for share in (50, 95, 99)},
            "max_ms": max(self.latencies, default=0.0) * 1000,
            "errors": self.outcomes.total() - self.outcomes["200"],
            "outcomes": dict(self.outcomes),
            "sent_late_p95_ms": _percentile(self.late, 95),
        }


def closed(clients: list[Client], requests: list[bytes], seconds: float, warm_up: float) -> Tally:
    tally = Tally(seconds)
    turn = 0
    begin = time.perf_counter() + warm_up
    end = begin + seconds

    def ask(client: Client) -> None:
        nonlocal turn
        client.waiting.append((time.perf_counter(), requests[turn % len(requests)]))
        turn += 1
        tally.sent += 1
        while not client.send():
            tally.count("broken", 0.0)
            client.reconnect()

    for client in clients:
        ask(client)
    while (now := time.perf_counter()) < end:
        for client in select.select(clients, (), (), end - now)[0]:
            outcome = client.receive()
            if outcome is None:
                continue
            now = time.perf_counter()
            sent, _ = client.waiting.popleft()
            if now >= begin or outcome != "200":
                tally.count(outcome, now - sent)
            if outcome == "broken":
                client.reconnect()
            ask(client)
    for client in clients:
        if end - client.waiting[0][0] > PATIENCE:
            tally.count("unanswered", 0.0)
    return tally


def opened(clients: list[Client], requests: list[bytes], rate: float, seconds: float) -> Tally:
    chance = random.Random(7)
    due: list[float] = []
    begin = moment = time.perf_counter() + 0.2
    end = begin + seconds
    while (moment := moment + chance.expovariate(rate)) < end:
        due.append(moment)
    tally = Tally(seconds)
    turn, now = 0, begin
    while tally.outcomes.total() < len(due):
        now = time.perf_counter()
        while turn < len(due) and due[turn] <= now:
            client = clients[turn % len(clients)]
            client.waiting.append((due[turn], requests[turn % len(requests)]))
            turn += 1
            tally.sent += 1
            if not client.busy:
                _send_next(client, tally)
        if now > end + PATIENCE:
            tally.outcomes["unanswered"] += len(due) - tally.outcomes.total()
            break
        pause = due[turn] - time.perf_counter() if turn < len(due) else 0.1
        for client in select.select(clients, (), (), max(0.0, pause))[0]:  # to the microsecond, unlike epoll
            outcome = client.receive()
            if outcome is None:
                continue
            if client.busy:
                tally.count(outcome, time.perf_counter() - client.waiting.popleft()[0])
                client.busy = False
            if outcome == "broken":
                client.reconnect()
            if not client.busy:
                _send_next(client, tally)
    tally.seconds = max(seconds, now - begin)
    return tally


def _send_next(client: Client, tally: Tally) -> None:
    """Send the next request that waits, if there is one."""
    while client.waiting:
        tally.late.append(time.perf_counter() - client.waiting[0][0])
        if client.send():
            return
        client.busy = False
        client.waiting.popleft()
        client.reconnect()
        tally.count("broken", 0.0)


def _percentile(values: "array[float]", share: int) -> float | None:
    if len(values) < 2:
        return None
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1] * 1000


def _encode(path: str, body: str) -> bytes:
    content = body.encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def main() -> None:
    kind, port, file, clients, *rest = sys.argv[1:]
    plan = json.loads(Path(file).read_text(encoding="utf-8"))
    requests = [_encode(plan["path"], body) for body in plan["bodies"]]
    made = [Client(int(port), plan["holds"].encode()) for _ in range(int(clients))]
    gc.disable()
    seconds = float(rest[-1])
    used, started = time.process_time(), time.perf_counter()
    if kind == "closed":
        tally = closed(made, requests, seconds, warm_up=min(2.0, seconds / 4))
    else:
        tally = opened(made, requests, float(rest[0]), seconds)
    share = (time.process_time() - used) / (time.perf_counter() - started)
    print(json.dumps({**tally.report(), "generator_cpu": share}))


if __name__ == "__main__":
    main()
