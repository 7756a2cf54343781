"""``/admin``: an environment changed from elsewhere, by the same plans and the same ledger as on its own machine.

Every change names the ledger's head that its sender decided on (``expected``: sequence and hash) and is refused with
409 and the actual head if that has moved: a request may be sent again without being carried out twice. What is done
runs in a thread of its own, one after the other, so that predictions do not wait for it.
"""

import asyncio
import contextlib
import errno
import functools
import logging
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from clearway import __version__
from clearway.admin_api import API, About, Canary, Deploy, Head, HeadMovedError, Hold, Judged, Order, Rollback
from clearway.bundle import BundleError, keep, verify
from clearway.bundle_tar import CHUNK, packed, unpack
from clearway.errors import ClearwayError, UsageError
from clearway.files import held, remove_path
from clearway.ledger import GENESIS, Entry, ledger_file, locked, quarantined, read_ledger
from clearway.params import LocalTargetParams, Params, ServedHereParams, describe
from clearway.routing import read_routing
from clearway.serving.admin_access import AccessError, Caller, Guard
from clearway.serving.slow_callers import OWN_PATIENCE
from clearway.workspace import Workspace

if TYPE_CHECKING:
    from clearway.deployment import Outcome

MOST_BODY_BYTES = 2**20
IDLE_SECONDS = 60.0
"""How long a sender may stay silent in the middle of its request."""
TURN_SECONDS = 300.0
"""How long an upload waits for one that another worker process takes in."""
ABOUT_SERVED = ("revision", "stable", "canary", "canary_weight", "error", "pid", "workers")
"""What ``GET /admin/state`` tells of what is served."""

_Made = TypeVar("_Made", bound=BaseModel)
_DIGEST = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger("clearway.serving.admin")


Served = Callable[[], Mapping[str, Any]]
"""What all workers of the server serve now, as ``GET /`` says it; and ``admin_refused``, the attempts they refused."""


class Admin:
    """The routes below ``/admin`` of one environment's server.

    Raises
    ------
    UsageError
        ``serving.admin`` or the token is unusable.
    """

    def __init__(self, params: Params, workspace: Workspace, environment: str, served: Served) -> None:
        self._params = params
        self._workspace = workspace
        self._environment = environment
        self._folder = workspace.environment(environment)
        self._served = served
        self._guard = Guard(params.serving.admin, environment)
        self._asking = ThreadPoolExecutor(1, "admin-access")
        self._working = ThreadPoolExecutor(1, "admin")

    def close(self) -> None:
        """Take nothing on any more; what was begun is finished by its thread."""
        self._asking.shutdown(wait=False, cancel_futures=True)
        self._working.shutdown(wait=False, cancel_futures=True)

    @property
    def refused(self) -> int:
        """Attempts that this worker let not in."""
        return self._guard.refused

    def routes(self) -> list[Route]:
        """All of them ask who calls before they read anything else."""
        orders: dict[str, tuple[type[Order], Callable[[Params, Any, str], Any]]] = {
            "deploy": (Deploy, self._deploy),
            "canary": (Canary, self._canary),
            "rollback": (Rollback, self._rollback),
            "hold": (Hold, self._hold),
            "quarantine": (About, self._quarantine),
            "release": (About, self._release),
        }
        made = [
            Route(f"/admin/{name}", self._guarded(functools.partial(self._order, kind, act)), methods=["POST"])
            for name, (kind, act) in orders.items()
        ]
        return [
            *made,
            Route("/admin/judgement", self._guarded(self._judgement), methods=["PUT"]),
            Route("/admin/state", self._guarded(self._state), methods=["GET"]),
            Route("/admin/ledger", self._guarded(self._ledger), methods=["GET"]),
            Route("/admin/predictions", self._guarded(self._predictions), methods=["GET"]),
            Route("/admin/predictions/{name:path}", self._guarded(self._prediction_file), methods=["GET"]),
            Route("/admin/bundles/{digest}", self._guarded(self._bundle), methods=["GET", "PUT", "POST"]),
        ]

    # --- what all requests share ---

    def _guarded(self, answer: "Callable[[Request, Caller], Any]") -> "Callable[[Request], Any]":
        async def guarded(request: Request) -> Response:
            loop = asyncio.get_running_loop()
            host = request.client.host if request.client else None
            try:
                headers = dict(request.headers)
                caller = await loop.run_in_executor(self._asking, self._guard.admit, host, headers)
                response: Response = await answer(request, caller)
            except AccessError as error:
                challenge = {"www-authenticate": "Bearer"} if error.status == 401 else {}
                return _json({"error": str(error)}, error.status, challenge)
            except HeadMovedError as error:
                return _json({"error": str(error), "head": error.found.model_dump()}, 409)
            except _BodyError as error:
                return _json({"error": str(error)}, error.status)
            except UsageError as error:
                return _json({"error": str(error)}, 400)
            except ClearwayError as error:
                return _json({"error": str(error)}, 422)
            except ClientDisconnect:
                return _json({"error": "the caller left before its request was complete"}, 400)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                return _json({"error": f"the server's disk is full: {error.strerror}"}, 507)
            return response

        return guarded

    async def _do(self, work: "Callable[..., Any]", *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._working, work, *arguments)

    # --- reading ---

    async def _state(self, request: Request, caller: Caller) -> Response:
        whole = self._served()
        served = {name: whole[name] for name in ABOUT_SERVED}
        return _json({**await self._do(self._read_state), "served": served, "refused": whole["admin_refused"]})

    def _read_state(self) -> dict[str, Any]:
        from clearway.canary_state import read_state
        from clearway.skew_state import read_skew_state

        entries = read_ledger(self._folder, self._environment)
        rollout, skew = read_state(self._folder, entries), read_skew_state(self._folder)
        bundles = self._workspace.bundles
        return {
            "api": API,
            "version": __version__,
            "project": self._params.project.name,
            "environment": self._environment,
            "head": Head.of(entries).model_dump(),
            "ledger": entries[-1].model_dump(mode="json") if entries else None,
            "quarantined": sorted(quarantined(entries)),
            "bundles": sorted(path.name for path in bundles.glob("*") if _DIGEST.fullmatch(path.name)),
            "routing": _routing(self._folder / "routing.json"),
            "rollout": rollout.model_dump(mode="json") if rollout else None,
            "skew": skew.model_dump(mode="json") if skew else None,
        }

    async def _ledger(self, request: Request, caller: Caller) -> Response:
        return Response(await self._do(self._read_ledger), headers={"content-type": "application/jsonl"})

    def _read_ledger(self) -> bytes:
        count = len(read_ledger(self._folder, self._environment))
        if not count:
            return b""
        return b"".join(ledger_file(self._folder).read_bytes().splitlines(keepends=True)[:count])

    async def _predictions(self, request: Request, caller: Caller) -> Response:
        since = _whole_number(request, "since_revision", 0)
        return _json({"files": await self._do(self._list_predictions, since)})

    def _list_predictions(self, since: int) -> list[dict[str, Any]]:
        """The log's files; those that were last written before entry ``since`` was hold nothing of it."""
        entries = read_ledger(self._folder, self._environment)
        if since > len(entries):
            raise UsageError(f"since_revision = {since}: the ledger of {self._environment} has {len(entries)} entries")
        began = entries[since - 1].at.timestamp() if since else 0.0
        return [
            {
                "name": name,
                "bytes": status.st_size,
                "modified": status.st_mtime,
                "wanted": status.st_mtime >= began,
            }
            for name, status in _files(self._folder / "predictions")
        ]

    async def _prediction_file(self, request: Request, caller: Caller) -> Response:
        name, offset = request.path_params["name"], _whole_number(request, "offset", 0)
        found = dict(await self._do(lambda: list(_files(self._folder / "predictions"))))
        if name not in found:  # also what leads out of the folder
            return _json({"error": f"the prediction log has no file {name[:200]!r}"}, 404)
        pieces = _pieces(self._folder / "predictions" / name, offset, found[name].st_size)
        return StreamingResponse(_in_thread(pieces), headers={"content-type": "application/octet-stream"})

    # --- bundles ---

    async def _bundle(self, request: Request, caller: Caller) -> Response:
        digest = request.path_params["digest"]
        if not _DIGEST.fullmatch(digest):
            raise UsageError(f"digest {digest[:80]!r} is not 64 hexadecimal characters")
        if request.method in ("PUT", "POST"):
            return await self._receive(request, digest)
        folder = self._workspace.bundles / digest
        if not folder.is_dir():
            return _json({"error": f"bundle {digest} is not here"}, 404)
        bundle = await self._do(verify, folder, digest)
        return StreamingResponse(_in_thread(packed(bundle)), headers={"content-type": "application/x-tar"})

    async def _receive(self, request: Request, digest: str) -> Response:
        limit = self._params.serving.admin.max_bundle_bytes
        announced = request.headers.get("content-length", "0")
        if len(announced) > 18 or int(announced) > limit:
            raise _too_large(announced, limit)
        request.scope[OWN_PATIENCE] = True  # IDLE_SECONDS
        uploads = self._workspace.var / "uploads"
        uploads.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=uploads) as spool:
            size, waiting = 0, bytearray()
            async for piece in _body(request):
                size += len(piece)
                waiting += piece
                if size > limit:
                    raise _too_large(f"more than {limit}", limit)
                if len(waiting) >= CHUNK:
                    await asyncio.to_thread(spool.write, bytes(waiting))
                    waiting.clear()
            spool.write(waiting)
            await self._do(self._take_in, spool, uploads, digest)
        return _json({"digest": digest, "bytes": size})

    def _take_in(self, spool: IO[bytes], uploads: Path, digest: str) -> None:
        """From an archive to a kept bundle: into a fresh folder, verified by its digest, and only then kept."""
        limit = self._params.serving.admin.max_bundle_bytes
        with held(uploads / "lock", TURN_SECONDS):
            for abandoned in uploads.glob("bundle-*"):  # of a server that was killed: nobody else is in here
                remove_path(abandoned)
            with tempfile.TemporaryDirectory(dir=uploads, prefix="bundle-") as made:
                spool.seek(0)
                try:
                    unpack(spool, Path(made), limit)
                    keep(Path(made), self._workspace.bundles, digest)
                except BundleError as error:
                    if isinstance(error.__context__, OSError) and error.__context__.errno == errno.ENOSPC:
                        raise error.__context__ from None
                    raise BundleError(str(error).replace(f"{made}/", "").replace(made, "the archive")) from None

    # --- changes ---

    async def _order(
        self, kind: type[Order], act: "Callable[[Params, Any, str], Any]", request: Request, caller: Caller
    ) -> Response:
        order = await _parsed(request, kind)
        return _json(await self._do(self._carry_out, order, act, caller))

    def _carry_out(self, order: Order, act: "Callable[[Params, Any, str], Any]", caller: Caller) -> dict[str, Any]:
        self._check_head(order.expected)
        actor = caller.actor(order.actor)
        logger.warning("%s by %r: %r", type(order).__name__.lower(), actor, order.reason)
        try:
            outcome: Outcome | Entry = act(self._served_here(order), order, actor)
        except ClearwayError as error:
            head = read_ledger(self._folder, self._environment)[-1:]
            if not head or head[0].previous_hash != order.expected.hash or head[0].actor != actor:
                raise
            # It stands in the ledger, and what follows from that is repaired by the next command.
            return {**_recorded(head[0]), "sentence": str(error), "warnings": [str(error)]}
        if isinstance(outcome, Entry):
            sentence = f"{outcome.action} in {self._environment} (entry {outcome.sequence})"
            return {**_recorded(outcome), "sentence": sentence, "warnings": []}
        return {
            **_recorded(outcome.entry if outcome.changed else None),
            "sentence": outcome.sentence,
            "warnings": list(outcome.warnings),
        }

    def _check_head(self, expected: Head) -> None:
        found = Head.of(read_ledger(self._folder, self._environment))
        if found != expected:
            raise HeadMovedError(self._environment, expected, found)

    def _served_here(self, order: Order) -> Params:
        """``params.yaml`` as this server must read it: all environments are here, whatever it tells others.

        What must be live elsewhere first is in a ledger of this machine or, if there is none, what the sender found.
        """
        params = self._params
        own = params.environment(self._environment)
        here = ServedHereParams(
            expected_sequence=order.expected.sequence, expected_head=order.expected.hash, evidence=order.evidence
        )
        requires = own.requires
        if isinstance(order, Deploy) and order.bootstrap and order.expected.hash == GENESIS:
            requires = None  # the first control is no release
        elif requires is not None and isinstance(order, Deploy | Canary) and order.required is not None:
            elsewhere = not read_ledger(self._workspace.environment(requires), requires)
            if elsewhere and (order.required.environment, order.required.stable) == (requires, order.digest):
                requires = None
        environments = {
            name: each.model_copy(update={"target": LocalTargetParams()}) for name, each in params.environments.items()
        }
        environments[self._environment] = own.model_copy(update={"target": here, "requires": requires})
        return params.model_copy(update={"environments": environments})

    def _deploy(self, params: Params, order: Deploy, actor: str) -> "Outcome":
        from clearway.deployment import deploy

        # the sender has chosen the strategy
        own, kept = params.deployment, order.warm_minutes
        warm = own.blue_green if kept is None else own.blue_green.model_copy(update={"keep_warm_minutes": kept})
        how = {"strategy": "canary" if kept is None else "blue-green", "blue_green": warm}
        params = params.model_copy(update={"deployment": own.model_copy(update=how)})
        to = (self._environment, order.digest, None)
        return deploy(params, self._workspace, *to, actor=actor, reason=order.reason)

    def _canary(self, params: Params, order: Canary, actor: str) -> "Outcome":
        from clearway.deployment import deploy

        if order.expected.hash == GENESIS:  # what was packaged here, if anything was, is not the sender's baseline
            raise ClearwayError(f"{self._environment} has no stable version: a canary needs a control")
        to = (self._environment, order.digest, order.weight)
        return deploy(params, self._workspace, *to, actor=actor, reason=order.reason)

    def _rollback(self, params: Params, order: Rollback, actor: str) -> "Outcome":
        from clearway.deployment import rollback

        return rollback(params, self._workspace, self._environment, order.to, actor=actor, reason=order.reason)

    def _hold(self, params: Params, order: Hold, actor: str) -> "Outcome":
        from clearway.canary_state import read_state
        from clearway.deployment import hold

        state = read_state(self._folder, read_ledger(self._folder, self._environment))
        if state is None or state.current is None:
            raise ClearwayError(f"{self._environment} has no canary that was judged: there is nothing to hold")
        return hold(params, self._workspace, self._environment, state.current.verdict, actor=actor)

    def _quarantine(self, params: Params, order: About, actor: str) -> Entry:
        from clearway.deployment import quarantine

        return quarantine(params, self._workspace, self._environment, order.digest, actor=actor, reason=order.reason)

    def _release(self, params: Params, order: About, actor: str) -> Entry:
        from clearway.deployment import release

        return release(params, self._workspace, self._environment, order.digest, actor=actor, reason=order.reason)

    async def _judgement(self, request: Request, caller: Caller) -> Response:
        judged = await _parsed(request, Judged)
        await self._do(self._keep_judgement, judged)
        return _json({"kept": True})

    def _keep_judgement(self, judged: Judged) -> None:
        from clearway.canary_state import CanaryState, follow, write_state
        from clearway.skew_state import SkewState, write_skew_state

        rollout = None if judged.rollout is None else _made(CanaryState, judged.rollout, "rollout")
        skew = None if judged.skew is None else _made(SkewState, judged.skew, "skew")
        with locked(self._folder):
            self._check_head(judged.expected)
            entries = read_ledger(self._folder, self._environment)
            if rollout is not None:
                if follow(rollout, entries) != rollout:
                    raise ClearwayError(f"rollout: it does not speak of the open canary of {self._environment}")
                write_state(self._folder, rollout)
            if skew is not None:
                if skew.environment != self._environment:
                    raise ClearwayError(f"skew: environment is {skew.environment!r}, expected {self._environment!r}")
                write_skew_state(self._folder, skew)


class _BodyError(Exception):
    def __init__(self, status: Literal[400, 408, 413, 415], reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _too_large(said: str, limit: int) -> _BodyError:
    return _BodyError(413, f"the bundle has {said[:40]} bytes, more than serving.admin.max_bundle_bytes = {limit}")


async def _body(request: Request) -> AsyncIterator[bytes]:
    pieces = request.stream()
    while True:
        try:
            yield await asyncio.wait_for(anext(pieces), IDLE_SECONDS)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _BodyError(408, f"the body stopped coming for {IDLE_SECONDS:.0f} s") from None


async def _parsed(request: Request, kind: type[_Made]) -> _Made:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _BodyError(415, "content-type must be application/json")
    content = b""
    async for piece in _body(request):
        content += piece
        if len(content) > MOST_BODY_BYTES:
            raise _BodyError(413, f"the body has more than {MOST_BODY_BYTES:,} bytes")
    try:
        return _made(kind, orjson.loads(content), "")
    except orjson.JSONDecodeError as error:
        raise _BodyError(400, f"the body is not valid JSON: {error}") from None


def _made(kind: type[_Made], content: Any, where: str) -> _Made:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{where}: {describe(error)}".removeprefix(": ")[:2000]) from None


def _recorded(entry: Entry | None) -> dict[str, Any]:
    return {"changed": entry is not None, "entry": entry.model_dump(mode="json") if entry else None}


def _routing(path: Path) -> dict[str, Any] | None:
    """The table as it stands; None if it is missing or damaged, which the next change repairs."""
    with contextlib.suppress(ClearwayError):
        return read_routing(path).model_dump(mode="json")
    return None


def _whole_number(request: Request, name: str, default: int) -> int:
    given = request.query_params.get(name)
    if given is None:
        return default
    if not given.isascii() or not given.isdigit() or len(given) > 15:
        raise UsageError(f"{name} = {given[:40]!r}: expected a whole number from 0")
    return int(given)


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Plain files of the prediction log, by their path below it; not those that are still being made."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or path.suffix == ".lock":
            continue
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                yield relative.as_posix(), path.stat()


def _pieces(path: Path, offset: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as stream:
        stream.seek(offset)
        while offset < end and (piece := stream.read(min(CHUNK, end - offset))):
            offset += len(piece)
            yield piece


async def _in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    sent = {"content-type": "application/json", "cache-control": "no-store", **(headers or {})}
    return Response(orjson.dumps(content), status, sent)
