"""A TCP proxy on a loopback port that holds back what passes: a network that has become slow, or silent."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


class SlowProxy:
    """Forwards to ``port``; each piece of an answer waits ``delay`` seconds first, or, at ``drip``, each byte of it."""

    def __init__(self, port: int) -> None:
        self.delay = 0.0
        self.drip = 0.0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, held: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if held and (drip := self.drip):
                    for byte in piece:
                        time.sleep(drip)
                        target.sendall(bytes([byte]))
                    continue
                if held:
                    time.sleep(self.delay)
                target.sendall(piece)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def slow_proxy(port: int) -> Iterator[SlowProxy]:
    proxy = SlowProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
