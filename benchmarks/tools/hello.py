"""The least a Starlette server can do with a request, to know what the load generator measures: ``hello.py PORT``."""

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
    app = Starlette(routes=[Route("/predict", hello, methods=["POST"]), Route("/health", ready)])
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
