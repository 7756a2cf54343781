"""The least a Starlette server can do with a request, to know what the load generator measures: ``hello.py PORT [N]``.

N processes share the port; the kernel spreads the connections.
"""

import os
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def hello(request: Request) -> Response:
    await request.body()
    return Response(b'{"score":0.5}', media_type="application/json")


async def ready(request: Request) -> Response:
    return Response(b"{}")


def main() -> None:
    port, processes = int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 1
    for _ in range(processes - 1):
        if not os.fork():
            break
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    app = Starlette(routes=[Route("/predict", hello, methods=["POST"]), Route("/health", ready)])
    config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
